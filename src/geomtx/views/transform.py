"""The invertible map between the pixels of a photo and those of the model's image, and how photos are placed in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from geomtx.checks import check_option, check_positive
from geomtx.layers.precision import at_least_float32
from geomtx.types import Bool, Float, show_shapes
from geomtx.views.aspect_limit import LIMITED_MODES, LimitedMode, cut_and_resize
from geomtx.views.layout import CENTER_MODES, lay_out
from geomtx.views.listing import PhotoError
from geomtx.views.pictures import Picture
from geomtx.views.two_resizes import BOUND_MODES, BoundMode, resize_twice

__all__ = [
    "MODES",
    "RESAMPLING",
    "Axis",
    "Mode",
    "ViewTransform",
    "cut_to_smallest",
    "place_photo",
    "resample",
    "stack_padded",
]

RESAMPLING = ("bilinear", "nearest")


@show_shapes
class Axis(NamedTuple):
    """Source positions of the output pixels along one axis.

    Attributes:
        position: (L,) float64 on the CPU, in pixels of the source (centres at integers), inside the source.
        valid: (L,) bool; where False, the output pixel gets the fill value.
    """

    position: Tensor
    valid: Tensor


def resample(values: Tensor, rows: Axis, columns: Axis, mode: str, fill: float) -> Tensor:
    """Resample (..., h, w) to (..., len(rows), len(columns)), with `fill` where a row or column is not valid."""
    out = _resample_axis(_resample_axis(values, rows.position, -2, mode), columns.position, -1, mode)
    hidden = ~(rows.valid[:, None] & columns.valid)
    if hidden.any():
        out = out.masked_fill(hidden.to(values.device), fill)
    return out


def _resample_axis(values: Tensor, position: Tensor, dim: int, mode: str) -> Tensor:
    if mode == "nearest":
        return _pick(values, dim, (position + 0.5).floor().clamp(max=values.shape[dim] - 1))
    below = position.floor()
    weight = (position - below).to(values.dtype).to(values.device)
    low, high = _pick(values, dim, below), _pick(values, dim, position.ceil())
    return torch.lerp(low, high, weight if dim == -1 else weight[:, None])


def _pick(values: Tensor, dim: int, index: Tensor) -> Tensor:
    return values.index_select(dim, index.long().to(values.device))


@dataclass(frozen=True)
class ViewTransform:
    """Map between original pixels and the model's pixels, by a scale and an offset per axis.

    Pixel centres are at integers, so x_model = (x_original + 0.5)·scale + offset - 0.5, and the same for y. "Original"
    means the upright photo, after its EXIF orientation is applied.

    Tensors keep their dtype and device, may have any leading axes, and gradients flow through.

    Attributes:
        original_hw: Height and width of the upright photo, pixels.
        image_hw: Height and width of the model's image, padding included.
        scale: (x, y), model pixels per original pixel. They differ slightly if sides were rounded to whole patches.
        offset: (x, y) of the photo's upper left corner in the model's image, in pixels; positive for padding, negative
            for cropping.
        exif_orientation: EXIF orientation (1 … 8) that was applied when the photo was loaded; no method uses it.
    """

    original_hw: tuple[int, int]
    image_hw: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)
    exif_orientation: int = 1

    def __post_init__(self) -> None:
        for name in ("original_hw", "image_hw", "scale"):
            for value in getattr(self, name):
                check_positive(name, value)

    @classmethod
    def identity(cls, hw: tuple[int, int]) -> ViewTransform:
        """Return the transform of an image that is neither resized, cropped nor padded."""
        return cls(hw, hw)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ViewTransform:
        """Build a transform from the result of `to_dict`, also after it was written to JSON."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as plain numbers and lists, ready for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def shift(self, offset_xy: tuple[int, int], image_hw: tuple[int, int]) -> ViewTransform:
        """Return the transform after the model's image is placed at `offset_xy` of an image of size `image_hw`."""
        offset = (self.offset[0] + offset_xy[0], self.offset[1] + offset_xy[1])
        return replace(self, offset=offset, image_hw=image_hw)

    @property
    def matrix(self) -> Float[Tensor, "3 3"]:
        """Matrix (3, 3) float64 from homogeneous original pixels to the model's pixels, pixel centres at integers."""
        (sx, tx), (sy, ty) = self._forward
        return torch.tensor([[sx, 0, tx], [0, sy, ty], [0, 0, 1]], dtype=torch.float64)

    @property
    def content_box(self) -> tuple[float, float, float, float]:
        """Corners (x1, y1, x2, y2) of the photo in the model's image, not rounded.

        Coordinates start at the image's upper left corner, so that a photo without padding has (0, 0, W, H). They lie
        outside of the image where the photo was cropped.
        """
        (x, y), (sx, sy), (h, w) = self.offset, self.scale, self.original_hw
        return x, y, x + sx * w, y + sy * h

    @property
    def mask(self) -> Bool[Tensor, "h w"]:
        """Mask (H, W) bool over the model's image, True where the pixel's centre lies in the photo."""
        (top, bottom), (left, right) = self._content_rows, self._content_columns
        mask = torch.zeros(self.image_hw, dtype=torch.bool)
        mask[top : bottom + 1, left : right + 1] = True
        return mask

    def to_original(self, coords_px: Tensor) -> Tensor:
        """Map points or tracks (..., 2) as (x, y) from the model's pixels to original pixels.

        The result has the dtype of the input and is rounded once; float16 holds whole pixels to 2048, bfloat16 to 256.
        """
        return _map_points(coords_px, self._backward)

    def from_original(self, coords_px: Tensor) -> Tensor:
        """Map points, tracks or queries (..., 2), as (x, y), from original pixels to the model's pixels."""
        return _map_points(coords_px, self._forward)

    def intrinsics_to_original(self, intrinsics: Tensor) -> Tensor:
        """Map intrinsics (..., 3, 3) of the model's image to those of the photo.

        A projection with the result equals `to_original` of a projection with `intrinsics`.
        """
        return _map_intrinsics(intrinsics, self._backward)

    def intrinsics_from_original(self, intrinsics: Tensor) -> Tensor:
        """Map intrinsics (..., 3, 3) of the photo to those of the model's image."""
        return _map_intrinsics(intrinsics, self._forward)

    def depth_to_original(self, depth: Tensor, *, mode: str = "bilinear", fill: float = 0.0) -> Tensor:
        """Resample a map over the model's image (..., H, W) to the photo (..., h, w).

        The map may hold depth, confidence, or any other value per pixel. Padding is never mixed into the photo: at its
        border the value of the last pixel inside is repeated.

        Args:
            depth: Map (..., H, W) with H, W = `image_hw`; floating point, or any dtype with "nearest".
            mode: "bilinear", or "nearest" for masks and for maps with unknown pixels; defaults to "bilinear".
            fill: Value of the photo's pixels that were cropped; defaults to 0.

        Raises:
            ValueError: For another size, an unknown mode, or "bilinear" for a map that is not floating point.
        """
        _check_map("depth", depth, self.image_hw, mode)
        axes = []
        for (scale, shift), length, size, content in self._axes:
            position = torch.arange(length, dtype=torch.float64) * scale + shift
            seen = (position >= -0.5) & (position <= size - 0.5)
            axes.append(Axis(position.clamp(*content), seen))
        return resample(depth, axes[0], axes[1], mode, fill)

    def depth_from_original(self, depth: Tensor, *, mode: str = "bilinear", fill: float = 0.0) -> Tensor:
        """Resample a map over the photo (..., h, w) to the model's image (..., H, W).

        Each pixel is sampled at its centre, not averaged over its area: an average across an edge is no depth.

        Args:
            depth: Map (..., h, w) with h, w = `original_hw`; floating point, or any dtype with "nearest".
            mode: "bilinear", or "nearest" for masks and for maps with unknown pixels; defaults to "bilinear".
            fill: Value of the padding; defaults to 0.

        Raises:
            ValueError: As in `depth_to_original`.
        """
        _check_map("depth", depth, self.original_hw, mode)
        axes = []
        for (scale, shift), length, size, (first, last) in self._axes:
            index = torch.arange(size)
            position = (index.double() - shift) / scale
            axes.append(Axis(position.clamp(0, length - 1), (index >= first) & (index <= last)))
        return resample(depth, axes[0], axes[1], mode, fill)

    @property
    def _forward(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return (factor, shift) for x and y: model = factor·original + shift, pixel centres at integers."""
        (sx, sy), (x, y) = self.scale, self.offset
        return (sx, 0.5 * sx + x - 0.5), (sy, 0.5 * sy + y - 0.5)

    @property
    def _backward(self) -> tuple[tuple[float, float], tuple[float, float]]:
        (sx, sy), (x, y) = self.scale, self.offset
        return (1 / sx, (0.5 - x) / sx - 0.5), (1 / sy, (0.5 - y) / sy - 0.5)

    @property
    def _content_rows(self) -> tuple[int, int]:
        """Return the first and last row of the model's image whose centre lies in the photo."""
        _, y1, _, y2 = self.content_box
        return max(math.ceil(y1 - 0.5), 0), min(math.ceil(y2 - 0.5), self.image_hw[0]) - 1

    @property
    def _content_columns(self) -> tuple[int, int]:
        x1, _, x2, _ = self.content_box
        return max(math.ceil(x1 - 0.5), 0), min(math.ceil(x2 - 0.5), self.image_hw[1]) - 1

    @property
    def _axes(self) -> tuple[tuple[tuple[float, float], int, int, tuple[int, int]], ...]:
        """Return for rows and columns (factor, shift), photo's length, image's length, first and last photo pixel."""
        column_map, row_map = self._forward
        return (
            (row_map, self.original_hw[0], self.image_hw[0], self._content_rows),
            (column_map, self.original_hw[1], self.image_hw[1], self._content_columns),
        )


def lies_inside(coords_px: Tensor, image_hw: tuple[int, int]) -> Bool[Tensor, "*points"]:
    """Whether points (..., 2) lie on an image, whose pixels reach half a pixel beyond their centres; (...) bool.

    NaN lies outside.
    """
    height, width = image_hw
    x, y = coords_px.unbind(-1)
    return (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)


def _map_points(coords_px: Tensor, maps: tuple[tuple[float, float], tuple[float, float]]) -> Tensor:
    if coords_px.shape[-1:] != (2,):
        raise ValueError(f"coords_px must have shape (..., 2), got {tuple(coords_px.shape)}")
    (sx, tx), (sy, ty) = maps
    x, y = at_least_float32(coords_px).unbind(-1)
    mapped = torch.stack([x * sx + tx, y * sy + ty], dim=-1)
    return mapped.to(coords_px.dtype) if coords_px.is_floating_point() else mapped


def _map_intrinsics(intrinsics: Tensor, maps: tuple[tuple[float, float], tuple[float, float]]) -> Tensor:
    if intrinsics.shape[-2:] != (3, 3):
        raise ValueError(f"intrinsics must have shape (..., 3, 3), got {tuple(intrinsics.shape)}")
    (sx, tx), (sy, ty) = maps
    x, y, one = at_least_float32(intrinsics).unbind(-2)  # a matrix product would be rounded under autocast
    mapped = torch.stack([sx * x + tx * one, sy * y + ty * one, one], dim=-2)
    return mapped.to(intrinsics.dtype) if intrinsics.is_floating_point() else mapped


def _check_map(name: str, values: Tensor, hw: tuple[int, int], mode: str) -> None:
    check_option("mode", mode, RESAMPLING)
    if tuple(values.shape[-2:]) != tuple(hw):
        raise ValueError(f"{name} must have shape (..., {hw[0]}, {hw[1]}), got {tuple(values.shape)}")
    if mode == "bilinear" and not values.is_floating_point():
        raise ValueError(f"{name} must be floating point for mode 'bilinear', got {values.dtype}")


Mode = Literal["fit", "crop", "pad", "square", "area", "center", "center_square"] | BoundMode | LimitedMode
MODES: tuple[str, ...] = ("fit", "crop", "pad", "square", "area", *CENTER_MODES, *BOUND_MODES, *LIMITED_MODES)

Color = tuple[int, int, int]
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)


def place_photo(
    photo: Picture, mode: str, size: int | tuple[int, int], patch_size: int, *, name: str = "photo"
) -> tuple[Tensor, ViewTransform]:
    """Resize, crop and pad one upright photo.

    Args:
        photo: Upright photo from `read_picture`.
        mode: One of `MODES`, see `load_views`.
        size: Side of the model's image in pixels, a multiple of `patch_size`; for "area" its width and height.
        patch_size: Side of a patch in pixels.
        name: Name of the photo in error messages; defaults to "photo".

    Returns:
        Image (3, H, W) uint8, and the transform to it from the photo's pixels in full resolution.

    Raises:
        PhotoError: If the photo is under 2 pixels wide or high, or so thin that it would fill less than half a patch.
    """
    original_wh = (photo.original_hw[1], photo.original_hw[0])
    _check_extent(original_wh, size if isinstance(size, int) else max(size), patch_size, name)
    if not isinstance(size, int):
        image = photo.image.resize(size, Image.Resampling.LANCZOS)
        scale, offset = (size[0] / original_wh[0], size[1] / original_wh[1]), (0.0, 0.0)
    elif mode in BOUND_MODES:
        image, scale, offset = resize_twice(photo.image, original_wh, mode, size, patch_size)
    elif mode in LIMITED_MODES:
        image, scale, offset = cut_and_resize(photo.image, original_wh, mode, size, patch_size)
    elif mode == "square":
        image, scale, offset = _place_square(photo.image, original_wh, size)
    else:
        resized_wh, image_wh, shift = lay_out(original_wh, mode, size, patch_size)
        smaller = mode in CENTER_MODES and max(resized_wh) < max(photo.image.size)
        resized = photo.image.resize(resized_wh, Image.Resampling.LANCZOS if smaller else Image.Resampling.BICUBIC)
        image = resized if resized_wh == image_wh else _paste(resized, image_wh, shift, _WHITE)
        scale = (resized_wh[0] / original_wh[0], resized_wh[1] / original_wh[1])
        offset = (float(shift[0]), float(shift[1]))
    transform = ViewTransform(photo.original_hw, (image.height, image.width), scale, offset, photo.orientation)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1), transform


def cut_to_smallest(
    images: Sequence[Tensor], transforms: Sequence[ViewTransform]
) -> tuple[list[Tensor], list[ViewTransform]]:
    """Cut images to the smallest height and width among them, centred, with the smaller half at the top and left.

    Args:
        images: S images (3, H, W).
        transforms: Transform of each image.
    """
    height, width = (min(image.shape[axis] for image in images) for axis in (-2, -1))
    cut, moved = [], []
    for image, transform in zip(images, transforms, strict=True):
        top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
        cut.append(image[:, top : top + height, left : left + width])
        moved.append(transform.shift((-left, -top), (height, width)))
    return cut, moved


def stack_padded(
    images: Sequence[Tensor], transforms: Sequence[ViewTransform]
) -> tuple[Float[Tensor, "s 3 h w"], tuple[ViewTransform, ...]]:
    """Pad images with white to the largest height and width, centred, with the smaller half at the top and left.

    Args:
        images: S images (3, H, W), uint8 or float in [0, 1].
        transforms: Transform of each image.

    Returns:
        Images (S, 3, H, W) float32 in [0, 1], and the transforms to them.
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


def _place_square(
    photo: Image.Image, original_wh: tuple[int, int], size: int
) -> tuple[Image.Image, tuple[float, float], tuple[float, float]]:
    side = max(photo.size)
    left, top = (side - photo.width) // 2, (side - photo.height) // 2
    padded = _paste(photo, (side, side), (left, top), _BLACK)
    image = padded.resize((size, size), Image.Resampling.BICUBIC)
    factor = size / side
    # The picture may have been reduced; in full resolution both are `factor` itself.
    scale = (factor * (photo.width / original_wh[0]), factor * (photo.height / original_wh[1]))
    return image, scale, (left * size / side, top * size / side)


def _paste(
    photo: Image.Image, wh: tuple[int, int], corner: tuple[int, int], color: tuple[int, int, int]
) -> Image.Image:
    canvas = Image.new("RGB", wh, color)
    canvas.paste(photo, corner)
    return canvas
