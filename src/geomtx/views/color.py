"""Every Pillow mode → 8-bit RGB, without clipping 16-bit and without black where a picture is transparent."""

from __future__ import annotations

import numpy as np
from PIL import Image

from geomtx.views.error import PhotoError

__all__ = ["convert_to_rgb"]


def convert_to_rgb(picture: Image.Image, name: str) -> Image.Image:
    """A picture of any mode as 8-bit RGB of the same size.

    Transparency (an alpha channel, or a transparent colour of a palette, grey or RGB picture) is composed onto white.
    Integer grey of more than 8 bits spans 0 … 65535. Float grey spans 0 … 1 if no value is above 1, else 0 … 255.
    Colour profiles are not applied.

    Args:
        picture: Any mode that Pillow knows.
        name: What error messages call the picture.

    Raises:
        PhotoError: A grey value that is not finite or outside the range above.
    """
    if picture.mode == "F" or picture.mode.startswith("I"):
        return _quantize_gray(np.asarray(picture), name)
    if picture.has_transparency_data:
        if picture.mode == "La":  # the one premultiplied mode without a direct way to RGBA
            picture = picture.convert("LA")
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")


def _quantize_gray(values: np.ndarray, name: str) -> Image.Image:
    if not np.isfinite(values).all():
        raise PhotoError(f"photo '{name}' must have finite grey values, got NaN or infinity")
    low, high = values.min(), values.max()
    if values.dtype.kind == "f":
        white, span = (1.0 if high <= 1 else 255.0), 255.0
    else:
        white = span = 65535.0
    if low < 0 or high > span:
        raise PhotoError(f"photo '{name}' must have grey values from 0 to {span:g}, got {low:g} to {high:g}")
    gray = np.rint(values.astype(np.float64) * (255.0 / white)).astype(np.uint8)
    return Image.fromarray(gray).convert("RGB")
