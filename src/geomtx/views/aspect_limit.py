"""Photos cut to at most twice as long as short and resized to whole patches, as the authors of VGGT-Omega do it."""

from __future__ import annotations

import math
from typing import Literal, get_args

from PIL import Image

__all__ = ["LIMITED_MODES", "LimitedMode", "cut_and_resize"]

LimitedMode = Literal["balanced", "max_size"]
LIMITED_MODES: tuple[str, ...] = get_args(LimitedMode)


def cut_and_resize(
    photo: Image.Image, original_wh: tuple[int, int], mode: str, size: int, patch_size: int
) -> tuple[Image.Image, tuple[float, float], tuple[float, float]]:
    """Return the image of a photo, its scale and its offset, see `ViewTransform`.

    Args:
        photo: The photo, which may be smaller than `original_wh`, where it was reduced.
        original_wh: Width and height of the photo in full resolution.
        mode: "balanced" gives about as many patches as a square of this size has, "max_size" a longer side of this
            size; both keep the photo's proportions but for rounding.
        size: Side in pixels.
        patch_size: Side of a patch in pixels.
    """
    width, height = photo.size
    cut_wh = (min(width, round(height / 0.5)), min(height, round(2 * width)))
    left, top = (width - cut_wh[0]) // 2, (height - cut_wh[1]) // 2
    aspect, patches = cut_wh[1] / cut_wh[0], size / patch_size
    if mode == "balanced":
        columns = math.sqrt(patches**2 / aspect)
        grid = (columns, patches**2 / columns)
    else:
        grid = (patches / aspect, patches) if aspect >= 1 else (patches, patches * aspect)
    resized_wh = (max(round(grid[0]), 1) * patch_size, max(round(grid[1]), 1) * patch_size)
    image = photo.crop((left, top, left + cut_wh[0], top + cut_wh[1])).resize(resized_wh, Image.Resampling.BICUBIC)
    stretch = (resized_wh[0] / cut_wh[0], resized_wh[1] / cut_wh[1])
    scale = (stretch[0] * width / original_wh[0], stretch[1] * height / original_wh[1])
    return image, scale, (-left * stretch[0], -top * stretch[1])
