from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from geomtx.data.files import read_image
from geomtx.data.scene_check import SceneError
from geomtx.views import PhotoError, load_views
from geomtx.views.pictures import read_picture
from views.tiff_files import Directory, tiff_bytes

SMALL = np.full((16, 24, 3), (200, 0, 0), np.uint8)
LARGE = np.full((48, 64, 3), (0, 200, 0), np.uint8)
PREVIEW = Directory(SMALL, {254: 1})
PHOTO = Directory(LARGE, {254: 0})
ENCODINGS = pytest.mark.parametrize("options", [{}, {"order": ">"}, {"big": True}])


def write(path: Path, *chain: Directory, **options: object) -> Path:
    path.write_bytes(tiff_bytes(list(chain), **options))
    return path


@ENCODINGS
@pytest.mark.parametrize("mark", [{254: 1}, {254: 5}, {255: 2}, {254: 4}])
def test_a_preview_before_the_photo_is_passed_over(tmp_path: Path, options: dict, mark: dict[int, int]) -> None:
    path = write(tmp_path / "a.tif", Directory(SMALL, mark), Directory(SMALL, mark), PHOTO, **options)
    picture = read_picture(path)
    assert picture.original_hw == (48, 64)
    assert picture.image.getpixel((1, 1)) == (0, 200, 0)
    assert load_views(path, size=56).transforms[0].original_hw == (48, 64)
    assert np.array_equal(read_image(path), LARGE)


@ENCODINGS
@pytest.mark.parametrize("first", [{254: 0}, {255: 1}, {}, {254: 2}])
def test_the_first_image_is_the_photo_where_previews_follow(tmp_path: Path, options: dict, first: dict) -> None:
    path = write(tmp_path / "a.tif", Directory(LARGE, first, (PREVIEW, PREVIEW)), PREVIEW, **options)
    assert np.array_equal(read_image(path), LARGE)


@ENCODINGS
@pytest.mark.parametrize("nested", [(PHOTO,), (PREVIEW, PHOTO), (Directory(SMALL, {254: 1}, (PHOTO,)),)])
@pytest.mark.parametrize("mark", [{254: 1}, {}])
def test_a_photo_within_a_preview_is_refused(tmp_path: Path, options: dict, nested: tuple, mark: dict) -> None:
    path = write(tmp_path / "a.tif", Directory(SMALL, mark, nested), **options)
    with pytest.raises(PhotoError, match=r"^photo '.*a.tif' must hold the photo[^\n]*, got (only )?a preview of 24x16"):
        load_views(path)
    with pytest.raises(SceneError, match=r"^picture '.*a.tif' must hold the photo"):
        read_image(path)


@pytest.mark.parametrize(
    ("name", "chain", "options"),
    [
        ("a.dng", [Directory(SMALL, {254: 1, 50706: 0x401}, (PHOTO,))], {}),
        ("a.tif", [Directory(SMALL, {50706: 0x401})], {"order": ">"}),
        ("a.tif", [Directory(SMALL, {254: 0}, (Directory(LARGE, {254: 0, 262: 32803}),))], {}),
        ("a.tif", [Directory(SMALL, {254: 0}), Directory(LARGE, {262: 34892})], {}),
        ("a.tif", [Directory(SMALL)], {"signature": b"CR\x02\x00\x00\x00\x00\x00"}),
        *((f"a.{suffix}", [Directory(SMALL)], {}) for suffix in ("NEF", "arw", "pef")),
    ],
)
def test_raw_files_are_refused(tmp_path: Path, name: str, chain: list[Directory], options: dict) -> None:
    path = write(tmp_path / name, *chain, **options)
    with pytest.raises(PhotoError, match=rf"^photo '.*{name}' must be a developed photo, got a camera's raw file"):
        load_views([path])


def test_a_larger_image_further_on_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pages = [Image.new("RGB", (20, 20)), Image.new("RGB", (40, 30))]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert load_views(tmp_path, size=28).transforms[0].original_hw == (20, 20)
    assert "holds 2 images: the first, of 20x20 pixels, is read; the largest has 40x30 pixels" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        pages[1].save(tmp_path / "a.tif", save_all=True, append_images=pages[:1])
        load_views(tmp_path, size=28)
    assert caplog.messages == []


def test_directories_in_a_circle_and_cut_off_end(tmp_path: Path) -> None:
    content = bytearray(tiff_bytes([PHOTO]))
    content[-4:] = content[4:8]  # the next directory is the first
    (tmp_path / "a.tif").write_bytes(content)
    assert np.array_equal(read_image(tmp_path / "a.tif"), LARGE)
    for size in (4, 9, len(content) - 100):
        (tmp_path / "a.tif").write_bytes(content[:size])
        with pytest.raises(PhotoError, match=r"photo '.*a.tif' must be"):
            load_views(tmp_path)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("number", [0, 1])
def test_orientation_of_any_directory(tmp_path: Path, orientation: int, number: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    chain = [*[PREVIEW][:number], Directory(pixels, {274: orientation})]
    path = write(tmp_path / "a.tif", *chain)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=_exif(orientation))
    tiff, png = (read_picture(tmp_path / name) for name in ("a.tif", "a.png"))
    assert tiff.orientation == png.orientation == orientation
    assert tiff.original_hw == png.original_hw == ((30, 20) if orientation >= 5 else (20, 30))
    assert np.array_equal(np.asarray(tiff.image), np.asarray(png.image))
    # Datasets see what is stored, which Pillow gives up for TIFF files.
    assert np.array_equal(read_image(path), pixels)
    assert read_picture(path, upright=False).original_hw == (20, 30)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_a_tiff_view_is_the_photo(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", PREVIEW, PHOTO)
    torch.testing.assert_close(load_views(path, size=56).images[0, :, 5, 5], torch.tensor([0, 200 / 255, 0]))
