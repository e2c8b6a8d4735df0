from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geomtx.views import PhotoError, load_views
from geomtx.views.color import convert_to_rgb

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
