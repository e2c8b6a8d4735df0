from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from geomtx import load_views
from geomtx.views.two_resizes import BOUND_MODES, _resize, size_in_two_steps


@pytest.mark.parametrize(
    ("photo_wh", "mode", "size", "first", "second"),
    [
        ((1600, 1200), "upper_bound_resize", 504, (504, 378), (504, 378)),
        ((256, 144), "upper_bound_resize", 504, (504, 284), (504, 280)),
        ((144, 256), "upper_bound_crop", 504, (284, 504), (280, 504)),
        ((1600, 1200), "lower_bound_crop", 100, (133, 100), (126, 98)),
        ((1600, 1200), "upper_bound_resize", 100, (100, 75), (98, 70)),
        ((70, 49), "upper_bound_resize", 70, (70, 49), (70, 56)),  # up in a tie
        ((1600, 1200), "lower_bound_resize", 504, (672, 504), (672, 504)),
    ],
)
def test_sizes(photo_wh, mode, size, first, second):
    assert size_in_two_steps(photo_wh, mode, size, 14) == (first, second)


def test_smaller_pictures_are_means_of_what_pixels_cover():
    image = np.random.default_rng(0).integers(0, 256, (12, 30, 3), dtype=np.uint8)
    blocks = image.reshape(6, 2, 10, 3, 3).mean(axis=(1, 3))
    assert np.abs(_resize(image, (10, 6)).astype(float) - blocks).max() <= 0.5
    # Two and a half pixels each: the pixel in the middle counts half for both.
    row = np.array([10, 20, 30, 40, 50], dtype=np.uint8)
    wide = np.broadcast_to(row[None, :, None], (4, 5, 3))
    assert _resize(wide, (2, 4))[0, :, 0].tolist() == [18, 42]


def test_larger_pictures_are_cubic():
    image = np.random.default_rng(1).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    expected = torch.nn.functional.interpolate(pixels, size=(13, 21), mode="bicubic", align_corners=False)
    got = torch.from_numpy(_resize(image, (21, 13))).permute(2, 0, 1).double()
    assert (got - expected[0].clamp(0, 255)).abs().max() <= 0.51


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """A landscape and a portrait, whose colours say where a pixel is."""
    for name, (width, height) in (("a", (80, 60)), ("b", (60, 90))):
        y, x = np.mgrid[:height, :width]
        pixels = np.stack([2 * x, 2 * y, 0 * x], axis=-1).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return sorted(tmp_path.glob("*.png"))


@pytest.mark.parametrize("mode", BOUND_MODES)
@pytest.mark.parametrize("cut", [False, True])
def test_pixels_find_back_to_the_photo(photos, mode, cut):
    views = load_views(photos, mode=mode, size=60, cut=cut)
    assert all(side % 14 == 0 for side in views.image_hw)
    if cut or mode.endswith("crop"):
        assert views.masks.all()
    else:
        assert not views.masks.all()
    for view, transform in enumerate(views.transforms):
        y, x = (each.float() for each in torch.meshgrid(*map(torch.arange, views.image_hw), indexing="ij"))
        original = transform.to_original(torch.stack([x, y], dim=-1))
        seen = views.images[view, :2].movedim(0, -1) * 255 / 2
        width, height = (transform.original_hw[1], transform.original_hw[0])
        inside = (original > 2).all(-1) & (original[..., 0] < width - 3) & (original[..., 1] < height - 3)
        inside &= views.masks[view]
        assert inside.sum() > 100
        assert (seen - original)[inside].abs().max() < 0.8


def test_views_are_prepared_again_as_they_were(photos):
    from geomtx.views.loading import prepare_again

    views = load_views(photos, mode="upper_bound_resize", size=60, cut=True)
    again = prepare_again(views, 14, 70)
    assert torch.equal(again.images, views.images)
    other = prepare_again(load_views(photos, mode="upper_bound_resize"), 14, 70)
    assert max(other.image_hw) == 70
