"""Photos resized in two steps to whole patches, as the authors of Depth Anything 3 do it."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from geomtx.encoder.vit import cubic_weights

__all__ = ["BOUND_MODES", "BoundMode", "resize_twice", "size_in_two_steps"]

BoundMode = Literal["upper_bound_resize", "upper_bound_crop", "lower_bound_resize", "lower_bound_crop"]
BOUND_MODES: tuple[str, ...] = get_args(BoundMode)


def size_in_two_steps(
    photo_wh: tuple[int, int], mode: str, size: int, patch_size: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (width, height) after the first step, in whole pixels, and after the second, in whole patches.

    Args:
        photo_wh: Width and height of the photo.
        mode: "upper_bound_…" brings the longer side to `size`, "lower_bound_…" the shorter one; "…_resize" resizes then
            to the nearest whole patches, up in a tie, "…_crop" cuts the centre out.
        size: Side in pixels.
        patch_size: Side of a patch in pixels.
    """
    side = max(photo_wh) if mode.startswith("upper") else min(photo_wh)
    width, height = (max(1, round(each * size / side)) for each in photo_wh)
    if mode.endswith("crop"):
        return (width, height), (_floor(width, patch_size), _floor(height, patch_size))
    return (width, height), (_nearest(width, patch_size), _nearest(height, patch_size))


def resize_twice(
    photo: Image.Image, original_wh: tuple[int, int], mode: str, size: int, patch_size: int
) -> tuple[Image.Image, tuple[float, float], tuple[float, float]]:
    """Return the image of a photo, its scale and its offset, see `ViewTransform`.

    Args:
        photo: The photo, which may be smaller than `original_wh`, where it was reduced.
        original_wh: Width and height of the photo in full resolution.
        mode: One of `BOUND_MODES`, see `size_in_two_steps`.
        size: Side in pixels.
        patch_size: Side of a patch in pixels.
    """
    first, second = size_in_two_steps(original_wh, mode, size, patch_size)
    image = _resize(np.asarray(photo), first)
    offset = (0, 0)
    if mode.endswith("crop"):
        offset = ((first[0] - second[0]) // 2, (first[1] - second[1]) // 2)
        image = image[offset[1] : offset[1] + second[1], offset[0] : offset[0] + second[0]]
    else:
        image = _resize(image, second)
    resized = first if mode.endswith("crop") else second
    scale = (resized[0] / original_wh[0], resized[1] / original_wh[1])
    return Image.fromarray(np.ascontiguousarray(image)), scale, (-float(offset[0]), -float(offset[1]))


def _resize(image: np.ndarray, wh: tuple[int, int]) -> np.ndarray:
    """Resize 8-bit colours (H, W, 3): cubic where a side grows, else the mean of what a pixel covers."""
    height, width = image.shape[:2]
    if wh == (width, height):
        return image
    weights = _cubic if wh[0] > width or wh[1] > height else _means
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
    resized = weights(height, wh[1]) @ (pixels @ weights(width, wh[0]).T)
    # Halves are rounded up.
    return (resized + 0.5).floor().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()


def _cubic(length: int, size: int) -> Tensor:
    return cubic_weights(size, length, torch.zeros((), dtype=torch.float64)).float()


def _means(length: int, size: int) -> Tensor:
    """Return the weights (size, length) of the means over `size` equal parts of a side."""
    edges = torch.arange(size + 1, dtype=torch.float64) * length / size
    pixels = torch.arange(length, dtype=torch.float64)
    covered = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    return (covered.clamp(min=0) * size / length).float()


def _floor(length: int, patch_size: int) -> int:
    return max(length // patch_size, 1) * patch_size


def _nearest(length: int, patch_size: int) -> int:
    return max((length + patch_size // 2) // patch_size, 1) * patch_size
