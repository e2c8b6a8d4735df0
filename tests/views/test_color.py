from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geomtx.views import PhotoError, load_views
from geomtx.views.color import convert_to_mask, convert_to_rgb, reduce_to_rgb

COLOR = (200, 100, 50)


def _pixel(picture: Image.Image) -> tuple[int, int, int]:
    rgb = convert_to_rgb(picture, "photo")
    assert (rgb.mode, rgb.size) == ("RGB", picture.size)
    return rgb.getpixel((1, 1))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "P", "PA"])
def test_color_modes(mode: str) -> None:
    picture = Image.new("RGB", (5, 4), COLOR)
    for step in {"RGBa": ("RGBA", "RGBa"), "PA": ("P", "PA")}.get(mode, (mode,)):
        picture = picture if picture.mode == step else picture.convert(step)
    assert _pixel(picture) == pytest.approx(COLOR, abs=6 if "P" in mode else 2)  # a palette rounds to 6 levels


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La"])
def test_gray_modes(mode: str) -> None:
    picture = Image.new("L", (5, 4), 255)
    picture = picture.convert("LA").convert("La") if mode == "La" else picture.convert(mode)
    assert _pixel(picture) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N", "I"])
@pytest.mark.parametrize(("value", "expected"), [(0, 0), (255, 1), (32768, 128), (65535, 255)])
def test_16_bit_gray_spans_the_range(mode: str, value: int, expected: int) -> None:
    assert _pixel(Image.new(mode, (5, 4), value)) == (expected,) * 3


@pytest.mark.parametrize(("values", "expected"), [((0, 0.5, 1), (0, 128, 255)), ((0, 100, 255), (0, 100, 255))])
def test_float_gray_spans_1_or_255(values: tuple[float, ...], expected: tuple[int, ...]) -> None:
    rgb = convert_to_rgb(Image.fromarray(np.array([values], dtype=np.float32)), "photo")
    assert np.asarray(rgb)[0].tolist() == [[value] * 3 for value in expected]


def test_16_bit_png_file(tmp_path: Path) -> None:
    Image.fromarray(np.full((20, 20), 20000, dtype=np.uint16)).save(tmp_path / "a.png")
    images = load_views(tmp_path, size=28).images
    assert images.unique().tolist() == [pytest.approx(20000 / 65535, abs=0.5 / 255)]


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La", "PA"])
def test_an_alpha_channel_is_composed_onto_white(mode: str) -> None:
    picture = Image.new("RGBA", (5, 4), (0, 0, 0, 51))
    if mode in ("LA", "La"):
        picture = Image.new("LA", (5, 4), (0, 51))
    if mode == "PA":
        picture = Image.new("PA", (5, 4), (0, 51))
        picture.putpalette([0, 0, 0])
    picture = picture if picture.mode == mode else picture.convert(mode)
    assert _pixel(picture) == (204, 204, 204)


@pytest.mark.parametrize("transparency", [1, bytes([255, 0])])
def test_a_transparent_palette_colour_is_white(tmp_path: Path, transparency: int | bytes) -> None:
    picture = Image.new("P", (20, 20), 0)
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.paste(1, (10, 0, 20, 20))
    picture.save(tmp_path / "a.png", transparency=transparency)
    image = load_views(tmp_path, size=28).images[0]
    assert image[:, 5, 5].tolist() == [1, 0, 0]
    assert image[:, 5, 22].tolist() == [1, 1, 1]


@pytest.mark.parametrize(("mode", "color"), [("L", 7), ("RGB", (1, 2, 3))])
def test_a_transparent_color_is_white(tmp_path: Path, mode: str, color: int | tuple[int, int, int]) -> None:
    Image.new(mode, (20, 20), color).save(tmp_path / "a.png", transparency=color)
    assert load_views(tmp_path, size=28).images.min() == 1


@pytest.mark.parametrize("mode", ["fit", "crop", "pad", "square"])
def test_transparency_is_white_in_every_mode(tmp_path: Path, mode: str) -> None:
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert load_views(tmp_path, mode=mode, size=28).images.min() == 1


@pytest.mark.parametrize(
    ("values", "dtype", "message"),
    [
        ([[0.0, np.nan]], np.float32, "photo 'x.tif' must have finite grey values, got NaN or infinity"),
        ([[0.0, np.inf]], np.float32, "photo 'x.tif' must have finite grey values"),
        ([[0.0, 300.0]], np.float32, "photo 'x.tif' must have grey values from 0 to 255, got 0 to 300"),
        ([[-1.0, 1.0]], np.float32, "photo 'x.tif' must have grey values from 0 to 255, got -1 to 1"),
        ([[0, 70000]], np.int32, "photo 'x.tif' must have grey values from 0 to 65535, got 0 to 70000"),
    ],
)
def test_gray_outside_its_range_is_named(values: list[list[float]], dtype: type, message: str) -> None:
    with pytest.raises(PhotoError, match=message):
        convert_to_rgb(Image.fromarray(np.array(values, dtype=dtype)), "x.tif")


def test_a_nan_in_a_file_is_named(tmp_path: Path) -> None:
    Image.fromarray(np.full((20, 20), np.nan, dtype=np.float32)).save(tmp_path / "holes.tif")
    with pytest.raises(PhotoError, match=r"holes.tif' must have finite"):
        load_views(tmp_path)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "P", "I;16B", "F"])
def test_reduced_pictures_are_means_of_squares(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.arange(11 * 7).reshape(11, 7) * 255 / 76
    picture = Image.fromarray(rows.astype(np.uint8)).convert("L" if mode in ("I;16B", "F") else mode)
    if mode in ("I;16B", "F"):
        picture = Image.fromarray(rows.astype(np.float32) if mode == "F" else (rows * 257).astype(">u2"))
        assert picture.mode == mode
    whole = convert_to_rgb(picture, "x")
    for strip in (1, 2**24):  # one strip a row of the result, and one for all
        monkeypatch.setattr("geomtx.views.color._STRIP_PIXELS", strip)
        small = reduce_to_rgb(picture, "x", 3)
        assert small.size == (3, 4)
        np.testing.assert_allclose(np.asarray(small), np.asarray(whole.reduce(3)), atol=1)


# Masks

HALF = np.array([[1, 1, 0], [0, 1, 0]])
MASK_ARRAYS = {
    "booleans": HALF.astype(bool),
    "0 and 1": HALF.astype(np.uint8),
    "0 and 255": (HALF * 255).astype(np.uint8),
    "over 128": np.where(HALF, 129, 128).astype(np.uint8),
    "16-bit 0 and 1": HALF.astype(np.uint16),
    "16-bit 0 and 255": (HALF * 255).astype(np.uint16),
    "16-bit 0 and 65535": (HALF * 65535).astype(np.uint16),
    "big-endian 0 and 1": HALF.astype(">u2"),
    "32-bit 0 and 1": HALF.astype(np.int32),
    "float 0 and 1": HALF.astype(np.float32),
    "float 0 and 255": (HALF * 255).astype(np.float32),
    "RGB 0 and 1": np.repeat(HALF[..., None], 3, -1).astype(np.uint8),
    "RGB 0 and 255": np.repeat(HALF[..., None] * 255, 3, -1).astype(np.uint8),
    "opaque RGBA": np.stack([*[HALF * 255] * 3, np.full_like(HALF, 255)], -1).astype(np.uint8),
    "alpha of black": np.stack([*[HALF * 0] * 3, HALF * 255], -1).astype(np.uint8),
    "alpha of a photo": np.stack([HALF * 9, HALF + 200, HALF + 30, HALF * 255], -1).astype(np.uint8),
    "alpha of 0 and 1": np.stack([*[HALF * 0] * 3, HALF], -1).astype(np.uint8),
    "alpha of grey": np.stack([HALF * 0, HALF * 255], -1).astype(np.uint8),
}


@pytest.mark.parametrize("kind", MASK_ARRAYS)
def test_masks_of_every_kind(kind: str) -> None:
    mask = convert_to_mask(Image.fromarray(MASK_ARRAYS[kind]), "m.png")
    assert mask.dtype == bool
    assert np.array_equal(mask, HALF == 1)


@pytest.mark.parametrize("colors", [[0, 0, 0, 255, 255, 255], [0, 0, 0, 128, 0, 0], [0, 0, 0, 1, 1, 1]])
def test_palette_masks(colors: list[int]) -> None:
    """Segmentation tools colour their numbers: of 0 and 1 the second may be dark red."""
    picture = Image.fromarray(HALF.astype(np.uint8))
    picture.putpalette(colors)
    assert picture.mode == "P"
    assert np.array_equal(convert_to_mask(picture, "m.png"), HALF == 1)


@pytest.mark.parametrize("value", [0, 255])
def test_masks_of_one_value(value: int) -> None:
    assert (convert_to_mask(Image.new("L", (4, 3), value), "m.png") == (value == 255)).all()
    whole = Image.new("RGBA", (4, 3), (200, 90, 10, value))  # a cut-out of all of a photo, or of nothing
    assert (convert_to_mask(whole, "m.png") == (value == 255)).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0, 2, 3]], np.uint8), "mask 'm.png' must hold 0 and 1, or 0 … 255 .*, got 0 to 3$"),
        (np.array([[0, 300]], np.uint16), "mask 'm.png' must hold 0 and 1, or 0 … 255 .*, got 0 to 300$"),
        (np.array([[0, 70000]], np.int32), "mask 'm.png' must have values from 0 to 65535, got 0 to 70000$"),
        (np.array([[-1, 1]], np.float32), "mask 'm.png' must have values from 0 to 65535, got -1 to 1$"),
        (np.array([[0, np.nan]], np.float32), "mask 'm.png' must have finite values, got NaN or infinity$"),
    ],
)
def test_what_is_no_mask_is_named(values: np.ndarray, message: str) -> None:
    with pytest.raises(PhotoError, match=message):
        convert_to_mask(Image.fromarray(values), "m.png")
