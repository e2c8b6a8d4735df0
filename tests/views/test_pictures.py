from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from geomtx.views import PhotoError, load_views, pictures
from geomtx.views.pictures import open_picture, read_mask, read_picture


def save_stored(path: Path, orientation: int) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 2, (6, 9)).astype(np.uint8) * 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return pixels


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_pixels_and_masks_as_stored(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    pixels = save_stored(path, orientation)
    picture = read_picture(path, upright=False)
    assert np.array_equal(np.asarray(picture.image)[..., 0], pixels)
    assert picture.original_hw == pixels.shape
    assert np.array_equal(read_mask(path), pixels > 0)


# Very large photos

SIZES = [(120, 80), (121, 83), (83, 121)]


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_LARGE_PIXELS", 100)


def smooth(width: int, height: int) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return Image.fromarray((np.stack([x, y, (x + y) / 2], axis=-1) * 255).astype(np.uint8))


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize("wh", SIZES)
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_a_large_picture_is_reduced_and_covers_the_whole(tmp_path: Path, wh: tuple[int, int], suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    smooth(*wh).save(path, **({"quality": 95} if suffix == "jpg" else {}))
    picture = read_picture(path, min_side=28)
    assert picture.original_hw == (wh[1], wh[0])
    assert 28 <= max(picture.image.size) < 0.6 * max(wh)
    # The same place of the whole has the same colour, also where the sides are no multiples of the factor.
    small = np.asarray(picture.image.resize((8, 8), Image.Resampling.BOX)).astype(int)
    whole = np.asarray(smooth(*wh).resize((8, 8), Image.Resampling.BOX)).astype(int)
    assert np.abs(small - whole).max() <= 4
    assert read_picture(path).image.size == wh


@pytest.mark.parametrize("mode", ["fit", "crop", "pad", "square"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_views_of_a_large_photo_know_its_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth(600, 403).save(tmp_path / "a.jpg", exif=exif, quality=95)
    whole = load_views(tmp_path, mode=mode, size=28)
    monkeypatch.setattr(pictures, "_LARGE_PIXELS", 100)
    reduced = load_views(tmp_path, mode=mode, size=28)
    assert reduced.transforms[0].original_hw == whole.transforms[0].original_hw
    assert reduced.transforms[0].exif_orientation == orientation
    torch.testing.assert_close(reduced.images, whole.images, atol=0.1, rtol=0)
    corners = torch.tensor([[0.0, 0], [600, 403], [403, 600]])
    ours, theirs = (views.transforms[0].from_original(corners) for views in (reduced, whole))
    torch.testing.assert_close(ours, theirs, atol=0.2 if mode == "square" else 0, rtol=0)


def test_photos_are_read_beyond_the_limit_that_pillow_starts_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Phones have 200 megapixels, over twice Pillow's limit, which it refuses."""
    monkeypatch.setattr(pictures, "_PILLOW_LIMIT", 1000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    smooth(80, 60).save(tmp_path / "phone.png")
    assert load_views(tmp_path, size=28).transforms[0].original_hw == (60, 80)
    assert read_picture(tmp_path / "phone.png").original_hw == (60, 80)


@pytest.mark.filterwarnings("ignore:Image size")
def test_files_that_claim_to_be_larger_than_photos_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pgm"
    for size in (40_000, 90_000):
        path.write_bytes(f"P5 {size} {size} 255\n".encode())
        with pytest.raises(PhotoError, match=r"bomb.pgm' must have at most 1000000000 pixels \(PIL[^\n]*\), got more"):
            load_views(path)


def test_settings_of_pillow_come_back_when_the_last_thread_is_done(tmp_path: Path) -> None:
    smooth(8, 8).save(tmp_path / "a.png")
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    inside, leave = threading.Event(), threading.Event()

    def read() -> None:
        with open_picture(tmp_path / "a.png"):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=read)
    thread.start()
    assert inside.wait(10)
    with open_picture(tmp_path / "a.png"):
        pass
    assert Image.MAX_IMAGE_PIXELS == 1_000_000_000
    leave.set()
    thread.join()
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


# HEIC

HEIC = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + b"\0" * 100


@pytest.mark.parametrize("name", ["phone.heic", "phone.HEIF", "phone.jpg"])
def test_heic_without_the_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(Image, "open", refuse)
    (tmp_path / name).write_bytes(HEIC)
    with pytest.raises(PhotoError, match=r'got HEIC, which needs an extra: pip install "geomtx\[heic\]"$'):
        load_views(tmp_path)


def refuse(stream: object) -> Image.Image:
    raise Image.UnidentifiedImageError


@pytest.mark.parametrize("name", ["phone.heic", "phone.hif", "phone.jpg"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_heic_is_read_upright(tmp_path: Path, name: str, orientation: int) -> None:
    heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = smooth(64, 48)
    picture.info["exif"] = exif.tobytes()  # a phone's file: EXIF says how it was held, and the container turns it
    stored = heif.from_pillow(smooth(64, 48))
    stored.info["exif"] = exif.tobytes()
    stored.save(tmp_path / "x.heic", quality=95)
    (tmp_path / "x.heic").rename(tmp_path / name)
    views = load_views(tmp_path, size=56)
    upright = picture if orientation == 1 else picture.transpose(Image.Transpose.ROTATE_270)
    assert views.transforms[0].original_hw == (upright.height, upright.width)
    expected = torch.from_numpy(np.array(upright.resize(views.image_hw[::-1]))).permute(2, 0, 1) / 255
    torch.testing.assert_close(views.images[0], expected, atol=0.05, rtol=0)
