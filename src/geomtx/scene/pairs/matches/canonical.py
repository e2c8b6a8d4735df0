"""What all pairs of an image say of it alone: one point map, a focal length, and depth relative to blocks of pixels.

Facts of MASt3R-SfM (Duisterhof et al. 2024): a block of 8x8 pixels has one depth of its own, and every pixel in it
keeps its ratio to that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.checks import check_count
from geomtx.geometry.camera_fit import fit_focal
from geomtx.inference.pair_maps import PairMaps
from geomtx.types import Float, show_shapes

__all__ = ["BLOCK", "CanonicalImage", "anchor_pixels", "canonical_image", "canonical_images"]

BLOCK = 8
"""Pixels of a block along each axis; its centre is at (4, 4)."""
_LEAST_CONFIDENCE = 0.999
_SHORTEST, _LONGEST = 0.5, 3.5  # focal lengths, of that of a field of view of 60°
_TINY = 1e-8


@show_shapes
class CanonicalImage(NamedTuple):
    """One image in its own camera.

    Attributes:
        points: Mean points, (H, W, 3).
        confidence: Their confidence, (H, W).
        focal: Focal length in pixels, ().
        core_depth: Depth at the centres of blocks, (rows, columns).
        depth_ratio: Depth of each pixel relative to that of its block, (H, W).
    """

    points: Float[Tensor, "h w 3"]
    confidence: Float[Tensor, "h w"]
    focal: Float[Tensor, ""]
    core_depth: Float[Tensor, "r q"]
    depth_ratio: Float[Tensor, "h w"]


def canonical_images(maps: PairMaps, num_images: int) -> list[CanonicalImage]:
    """Return each image as all pairs that start at it see it.

    Args:
        maps: Point maps of the pairs.
        num_images: Number of images.

    Raises:
        ValueError: If no pair starts at an image; the message names it.
    """
    check_count("num_images", num_images)
    own: list[list[int]] = [[] for _ in range(num_images)]
    for index, (first, _) in enumerate(maps.pairs.tolist()):
        own[first].append(index)
    for image, indices in enumerate(own):
        if not indices:
            raise ValueError(f"pairs must start at every image, got none that starts at image {image}")
    return [
        canonical_image([maps.points1[i] for i in indices], [maps.confidence1[i] for i in indices]) for indices in own
    ]


def canonical_image(points: Sequence[Tensor], confidence: Sequence[Tensor]) -> CanonicalImage:
    """Return one image from its points in its own camera, in all of its pairs.

    Args:
        points: Points of the image, K tensors (H, W, 3).
        confidence: Their confidences, K tensors (H, W); what is less than 1 doesn't count.
    """
    dtype = torch.promote_types(points[0].dtype, torch.float32)
    total = sure = angle = radius = torch.zeros((), dtype=dtype)
    mean = torch.zeros((), dtype=dtype)
    for own, weight in zip(points, confidence, strict=True):
        own, weight = own.to(dtype), (weight.to(dtype) - _LEAST_CONFIDENCE).clamp(min=0)
        center = _spread(own[BLOCK // 2 :: BLOCK, BLOCK // 2 :: BLOCK], own.shape[:2])
        across = (own[..., :2] - center[..., :2]).norm(dim=-1).clamp(min=_TINY)
        rise = own[..., 2] - center[..., 2].clamp(min=torch.finfo(dtype).eps)
        mean = mean + weight[..., None] * own
        total, sure = total + weight, sure + weight.square()
        angle = angle + weight * torch.atan(rise / across)
        radius = radius + across / len(points)
    total = total.clamp(min=_TINY)  # of a pixel that no pair is sure of
    mean = mean / total[..., None]
    height, width = mean.shape[:2]
    usual = max(height, width) / (2 * math.tan(math.radians(30)))
    focal = fit_focal(mean).clamp(_SHORTEST * usual, _LONGEST * usual)
    core = mean[BLOCK // 2 :: BLOCK, BLOCK // 2 :: BLOCK, 2]
    ratio = 1 + radius * torch.tan(angle / total) / _spread(core, (height, width))
    return CanonicalImage(mean, sure / total, focal, core, ratio)


def anchor_pixels(image: CanonicalImage, coords_px: Tensor) -> tuple[Tensor, Tensor]:
    """Return the block of each pixel, row by row, and the pixel's depth relative to the block's centre, (K,) each.

    Where the two have no positive ratio, as a point lies behind the camera, the pixel has the depth of its block.

    Args:
        image: The image.
        coords_px: Pixels (x, y), (K, 2) int64.
    """
    x, y = coords_px.unbind(-1)
    num_rows, num_columns = image.core_depth.shape
    rows, columns = (y // BLOCK).clamp(max=num_rows - 1), (x // BLOCK).clamp(max=num_columns - 1)
    center = image.depth_ratio[BLOCK * rows + BLOCK // 2, BLOCK * columns + BLOCK // 2]
    ratio = image.depth_ratio[y, x] / center
    usable = (center > 0) & (ratio > 0) & ratio.isfinite()
    return rows * num_columns + columns, torch.where(usable, ratio, 1.0)


def _spread(centers: Tensor, size: Sequence[int]) -> Tensor:
    """Return what lies at the centre of each pixel's block, (H, W, …)."""
    rows, columns = (
        (torch.arange(length, device=centers.device) // BLOCK).clamp(max=count - 1)
        for length, count in zip(size, centers.shape[:2], strict=True)
    )
    return centers[rows[:, None], columns]
