from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import geomtx
from geomtx.views import PhotoError, load_masks
from geomtx.views.listing import list_masks


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.jpg", "b b.png", "ü.jpg"):
        Image.new("RGB", (56, 42), (200, 90, 60)).save(folder / name)
    return folder


def save_mask(path: Path, size: tuple[int, int] = (56, 42), white: int = 28) -> None:
    """The left part is white."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((size[1], size[0]), np.uint8)
    mask[:, :white] = 255
    Image.fromarray(mask).save(path)


def test_masks_are_found_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "masks"
    for name in ("a.png", "b b.png.png", "sub/c.jpg", "sub/d.png", "notes.bmp"):
        save_mask(folder / name)
    (folder / "readme.txt").write_text("no mask")
    found = list_masks(folder, ("a.jpg", "b b.png", "sub/c.jpg", "other/d.jpg", "e.jpg"))
    assert found == [folder / "a.png", folder / "b b.png.png", folder / "sub" / "c.jpg", None, None]
    assert "2 of 5 photos without a mask, which take part as a whole: 'other/d.jpg', 'e.jpg'" in caplog.text
    assert "2 of 5 masks are of no photo" in caplog.text
    caplog.clear()
    assert list_masks(folder, ("a.jpg", "e.jpg"), warn=False) == [folder / "a.png", None]
    assert not caplog.text


def test_black_takes_no_part(photos: Path, tmp_path: Path) -> None:
    save_mask(tmp_path / "masks" / "a.png")
    views = load_masks(tmp_path / "masks", geomtx.load_views(photos, size=56))
    assert views.masks[0, :, :28].all()
    assert not views.masks[0, :, 28:].any()
    assert views.masks[1:].all()
    assert views.patch_mask is not None
    assert views.patch_mask[0, 0].tolist() == [True, True, False, False]


def test_a_photo_that_is_turned_has_its_mask_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (56, 42), (200, 90, 60)).save(tmp_path / "photos" / "a.jpg", exif=exif)
    views = geomtx.load_views(tmp_path / "photos", size=56)
    save_mask(tmp_path / "masks" / "a.png")
    with pytest.raises(PhotoError, match=r"a.png' must have the 42x56 pixels of 'a.jpg' when it is upright, got 56x42"):
        load_masks(tmp_path / "masks", views)
    save_mask(tmp_path / "masks" / "a.png", (42, 56), 21)
    assert load_masks(tmp_path / "masks", views).masks[0].float().mean() == pytest.approx(0.5, abs=0.02)


def test_masks_that_can_not_be_used(tmp_path: Path, photos: Path) -> None:
    masks = tmp_path / "masks"
    with pytest.raises(PhotoError, match=r"masks must be in an existing folder, got '.*masks'"):
        list_masks(masks, ("a.jpg",))
    masks.mkdir()
    with pytest.raises(PhotoError, match=r"masks in '.*' must have the names of the photos, got none for 'a.jpg'"):
        list_masks(masks, ("a.jpg",))
    save_mask(masks / "x.png")
    with pytest.raises(PhotoError, match=r"must have the names of the photos, got 'x.png' for 'a.jpg'"):
        list_masks(masks, ("a.jpg",))
    save_mask(masks / "a.png")
    with pytest.raises(PhotoError, match=r"a.png' must be of one photo, got 'a.jpg' and 'a.png'"):
        list_masks(masks, ("a.jpg", "a.png"))
    save_mask(masks / "a.bmp")
    with pytest.raises(PhotoError, match=r"photo 'a.jpg' must have one mask, got 'a.bmp', 'a.png'"):
        list_masks(masks, ("a.jpg",))
    black = tmp_path / "black"
    for name in ("a", "b b", "ü"):
        save_mask(black / f"{name}.png", white=0)
    with pytest.raises(PhotoError, match=r"must leave some pixel of a photo, got none"):
        load_masks(black, geomtx.load_views(photos, size=56))
