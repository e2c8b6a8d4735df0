"""Where a photo lies in the model's image: the four modes, and padding views of different sizes together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from geomtx.types import Float
from geomtx.views.error import PhotoError
from geomtx.views.pictures import Picture
from geomtx.views.transform import ViewTransform

__all__ = ["MODES", "Mode", "place_photo", "stack_padded"]

Mode = Literal["fit", "crop", "pad", "square"]
MODES: tuple[str, ...] = get_args(Mode)

Color = tuple[int, int, int]
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)


def place_photo(
    photo: Picture, mode: str, size: int, patch_size: int, *, name: str = "photo"
) -> tuple[Tensor, ViewTransform]:
    """Resize, crop and pad one upright photo.

    Args:
        photo: As `read_picture` gives it.
        mode: One of `MODES`, see `load_views`.
        size: Target side, a multiple of `patch_size`.
        patch_size: Side of a patch.
        name: What error messages call the photo.

    Returns:
        (3, H, W) uint8, and the transform from the photo's pixels, in full resolution, to it.

    Raises:
        PhotoError: The photo is under 2 pixels wide or high, or so thin that it would fill less than half a patch.
    """
    original_wh = (photo.original_hw[1], photo.original_hw[0])
    _check_extent(original_wh, size, patch_size, name)
    if mode == "square":
        image, scale, offset = _place_square(photo.image, original_wh, size)
    else:
        resized_wh, image_wh, shift = _lay_out(original_wh, mode, size, patch_size)
        resized = photo.image.resize(resized_wh, Image.Resampling.BICUBIC)
        image = resized if resized_wh == image_wh else _paste(resized, image_wh, shift, _WHITE)
        scale = (resized_wh[0] / original_wh[0], resized_wh[1] / original_wh[1])
        offset = (float(shift[0]), float(shift[1]))
    transform = ViewTransform(photo.original_hw, (image.height, image.width), scale, offset, photo.orientation)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1), transform


def stack_padded(
    images: Sequence[Tensor], transforms: Sequence[ViewTransform]
) -> tuple[Float[Tensor, "s 3 h w"], tuple[ViewTransform, ...]]:
    """Pad images with white to the largest height and width, centred, the smaller half first.

    Args:
        images: (3, H, W) each, uint8 or float in [0, 1].
        transforms: One an image.

    Returns:
        (S, 3, H, W) float32 in [0, 1], and the transforms with the padding in them.
    """
    height = max(image.shape[1] for image in images)
    width = max(image.shape[2] for image in images)
    stacked = torch.ones(len(images), 3, height, width, device=images[0].device)
    shifted = []
    for index, (image, transform) in enumerate(zip(images, transforms, strict=True)):
        h, w = image.shape[1:]
        top, left = (height - h) // 2, (width - w) // 2
        content = image / 255 if image.dtype == torch.uint8 else image
        stacked[index, :, top : top + h, left : left + w] = content
        shifted.append(transform.shift((left, top), (height, width)))
    return stacked, tuple(shifted)


def _check_extent(photo_wh: tuple[int, int], size: int, patch_size: int, name: str) -> None:
    short, long = min(photo_wh), max(photo_wh)
    if short < 2 or short * size * 2 < long * patch_size:
        raise PhotoError(
            f"photo '{name}' must be at least 2 pixels wide and high and at most {2 * size / patch_size:g} times "
            f"longer than short, got {photo_wh[0]}x{photo_wh[1]}"
        )


def _lay_out(
    photo_wh: tuple[int, int], mode: str, size: int, patch_size: int
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """(width, height) to resize to, (width, height) of the image, and where the resized photo's corner goes in it."""
    width, height = photo_wh
    if mode != "crop" and height > width:
        resized = (_round_to_patch(width * size / height, patch_size), size)
    else:
        resized = (size, _round_to_patch(height * size / width, patch_size))
    if mode == "fit":
        return resized, resized, (0, 0)
    if mode == "crop":
        cut = max(resized[1] - size, 0)
        return resized, (size, resized[1] - cut), (0, -(cut // 2))
    return resized, (size, size), ((size - resized[0]) // 2, (size - resized[1]) // 2)


def _place_square(
    photo: Image.Image, original_wh: tuple[int, int], size: int
) -> tuple[Image.Image, tuple[float, float], tuple[float, float]]:
    side = max(photo.size)
    left, top = (side - photo.width) // 2, (side - photo.height) // 2
    padded = _paste(photo, (side, side), (left, top), _BLACK)
    image = padded.resize((size, size), Image.Resampling.BICUBIC)
    factor = size / side
    # The picture may be a reduced one; one in full resolution gives `factor` itself.
    scale = (factor * (photo.width / original_wh[0]), factor * (photo.height / original_wh[1]))
    return image, scale, (left * size / side, top * size / side)


def _round_to_patch(length: float, patch_size: int) -> int:
    return max(round(length / patch_size), 1) * patch_size


def _paste(
    photo: Image.Image, wh: tuple[int, int], corner: tuple[int, int], color: tuple[int, int, int]
) -> Image.Image:
    canvas = Image.new("RGB", wh, color)
    canvas.paste(photo, corner)
    return canvas
