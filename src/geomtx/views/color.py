"""Conversion of pictures of every Pillow mode to 8-bit RGB or to a mask.

16-bit grey is scaled instead of clipped, and transparent pixels become white instead of black.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from geomtx.views.listing import PhotoError

__all__ = ["convert_to_mask", "convert_to_rgb", "reduce_to_rgb"]

_STRIP_PIXELS = 2**24


def convert_to_rgb(picture: Image.Image, name: str, *, kind: str = "photo") -> Image.Image:
    """Convert a picture of any mode to 8-bit RGB of the same size.

    Transparent pixels (an alpha channel, or a transparent colour of a palette, grey or RGB picture) are composed onto
    white. Integer grey of more than 8 bits has the range 0 … 65535. Float grey has the range 0 … 1 if no value is above
    1, else 0 … 255. Colour profiles are not applied.

    Args:
        picture: Picture of any mode that Pillow knows.
        name: Name of the picture in error messages.
        kind: Noun before the name in error messages; defaults to "photo".

    Raises:
        PhotoError: If a grey value is not finite or is outside of the range above.
    """
    return _to_rgb(picture, _find_white(picture, f"{kind} '{name}'"))


def reduce_to_rgb(picture: Image.Image, name: str, factor: int, *, kind: str = "photo") -> Image.Image:
    """Convert as `convert_to_rgb` and reduce by the whole number `factor`, strip by strip to save memory.

    Every pixel is the mean over a square of pixels. Sides are rounded up; the last row and column are means over
    fewer pixels.
    """
    white = _find_white(picture, f"{kind} '{name}'")
    width, height = picture.size
    small = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    is_gray = picture.mode in ("1", "L") and not picture.has_transparency_data
    rows = max(_STRIP_PIXELS // (width * factor), 1) * factor
    for top in range(0, height, rows):
        strip = picture.crop((0, top, width, min(top + rows, height)))
        strip = strip.convert("L") if is_gray else _to_rgb(strip, white)
        small.paste(strip.reduce(factor), (0, top // factor))
    return small


def convert_to_mask(picture: Image.Image, name: str, *, kind: str = "mask") -> NDArray[np.bool_]:
    """Convert a picture of any mode to a mask (H, W) bool, True where it is bright or opaque.

    The alpha channel is the mask if it varies or if the picture is not grey, as in a photo with its background cut out.
    Otherwise the grey value is. A pixel is True above half of the range: above 128 of 255, above 0 if the largest value
    is 1 (booleans), and above the same share of 65535 for 16-bit values above 255. In a palette picture whose colours
    are all darker than that, indices 0 and 1 are taken as booleans.

    Args:
        picture: Picture of any mode that Pillow knows.
        name: Name of the mask in error messages.
        kind: Noun before the name in error messages; defaults to "mask".

    Raises:
        PhotoError: If values are not finite, negative or above 65535, or if no value is above half of the range and
            some are neither 0 nor 1, as in a map of object numbers.
    """
    values = _mask_values(picture)
    if not np.isfinite(values).all():
        raise PhotoError(f"{kind} '{name}' must have finite values, got NaN or infinity")
    low, high = values.min(), values.max()
    if low < 0 or high > 65535:
        raise PhotoError(f"{kind} '{name}' must have values from 0 to 65535, got {low:g} to {high:g}")
    half = 0.5 if high <= 1 else 128 if high <= 255 else 128 * 257
    mask = values > half
    if high > 0 and not mask.any():
        if picture.mode == "P" and np.asarray(picture).max() == 1:
            return np.asarray(picture) == 1
        raise PhotoError(
            f"{kind} '{name}' must hold 0 and 1, or 0 … 255 (or 65535) with over half for what counts, "
            f"got {low:g} to {high:g}"
        )
    return mask


def _mask_values(picture: Image.Image) -> NDArray[Any]:
    """Return the channel that holds the mask, (H, W)."""
    if _is_deep_gray(picture):
        return np.asarray(picture)
    if not picture.has_transparency_data:
        if picture.mode in ("1", "L", "P"):
            return np.asarray(picture.convert("L"))
        picture = picture.convert("RGB")
        return np.asarray(picture).max(-1) if _is_gray(picture) else np.asarray(picture.convert("L"))
    rgba = _to_rgba(picture)
    alpha = np.asarray(rgba.getchannel("A"))
    if alpha.min() == alpha.max() and _is_gray(rgba):
        return np.asarray(rgba)[..., 0]
    return alpha


def _is_gray(picture: Image.Image) -> bool:
    pixels = np.asarray(picture)
    return bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all())


def _is_deep_gray(picture: Image.Image) -> bool:
    return picture.mode == "F" or picture.mode.startswith("I")


def _find_white(picture: Image.Image, name: str) -> float:
    """Return the value of white in a grey picture of more than 8 bits, after a check of its range."""
    if not _is_deep_gray(picture):
        return 255.0
    values = np.asarray(picture)
    low, high = values.min(), values.max()  # NaN if a value is
    if not (np.isfinite(low) and np.isfinite(high)):
        raise PhotoError(f"{name} must have finite grey values, got NaN or infinity")
    if values.dtype.kind == "f":
        white, span = (1.0 if high <= 1 else 255.0), 255.0
    else:
        white = span = 65535.0
    if low < 0 or high > span:
        raise PhotoError(f"{name} must have grey values from 0 to {span:g}, got {low:g} to {high:g}")
    return white


def _to_rgb(picture: Image.Image, white: float) -> Image.Image:
    if _is_deep_gray(picture):
        gray = np.rint(np.asarray(picture).astype(np.float64) * (255.0 / white)).astype(np.uint8)
        return Image.fromarray(gray).convert("RGB")
    if picture.has_transparency_data:
        rgba = _to_rgba(picture)
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba).convert("RGB")
    return picture.convert("RGB")


def _to_rgba(picture: Image.Image) -> Image.Image:
    # Pillow cannot convert "La", grey with premultiplied alpha, to RGBA directly.
    return (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")
