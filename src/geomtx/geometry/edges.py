"""Edges of depth maps, where a network interpolates between what is in front and what is behind."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from geomtx.checks import check_range, check_shape
from geomtx.layers.precision import float32_island
from geomtx.types import Bool, Float

__all__ = ["depth_edges"]


@float32_island
def depth_edges(
    depth: Float[Tensor, "*batch h w"],
    intrinsics: Float[Tensor, "*batch 3 3"],
    mask: Tensor | None = None,
    *,
    max_slant_deg: float = 85.0,
    min_jump: float = 0.05,
) -> Bool[Tensor, "*batch h w"]:
    """Return which pixels lie on no surface but between two, as "flying pixels" do, (..., H, W) bool.

    Two neighbours are on one surface unless their depth differs by more than `min_jump` of the smaller one and a plane
    through both would be seen at more than `max_slant_deg` from its normal. A pixel is on an edge if, in its row or in
    its column, its depth lies between those of its two neighbours, and it is on one surface with neither. So the last
    pixel of an object, the first of what is behind it, and a pole one pixel wide stay; those between surfaces don't.

    Args:
        depth: Depth maps, z-depth, (..., H, W). Pixels that are not finite and positive are nobody's neighbours.
        intrinsics: Intrinsics in pixels of the depth maps, (..., 3, 3).
        mask: Boolean mask of the pixels that count, (..., H, W); others are nobody's neighbours. Defaults to all.
        max_slant_deg: Largest angle between a surface's normal and the viewing ray, in degrees, 0 to 90.
        min_jump: Smallest difference in depth between two surfaces, as a share of the depth.

    Raises:
        ValueError: If a shape or an angle is another one.
    """
    check_shape("depth", depth, ("...", "H", "W"))
    check_shape("intrinsics", intrinsics, (*depth.shape[:-2], 3, 3))
    check_range("max_slant_deg", max_slant_deg, 0, 90)
    known = depth.isfinite() & (depth > 0)
    if mask is not None:
        check_shape("mask", mask, tuple(depth.shape))
        known = known & mask
    depth = torch.where(known, depth, 1.0)
    steepest = math.tan(math.radians(max_slant_deg))
    edges = torch.zeros_like(known)
    for dim, focal in ((-1, intrinsics[..., 0, 0]), (-2, intrinsics[..., 1, 1])):
        # Neighbours are depth / focal apart, across the viewing direction.
        largest = (steepest / focal.abs()).clamp(min=min_jump)[..., None, None]
        edges |= _between_neighbours(depth, known, largest, dim)
    return edges


def _between_neighbours(depth: Tensor, known: Tensor, largest: Tensor, dim: int) -> Tensor:
    """Return which pixels lie between both neighbours along an axis, on one surface with neither."""
    length = depth.shape[dim]
    if length < 3:
        return torch.zeros_like(known)
    steps = depth.diff(dim=dim)
    nearer = torch.minimum(depth.narrow(dim, 0, length - 1), depth.narrow(dim, 1, length - 1))
    known_pairs = known.narrow(dim, 0, length - 1) & known.narrow(dim, 1, length - 1)
    jumps = known_pairs & (steps.abs() > largest * nearer)
    rising = steps > 0
    both = jumps.narrow(dim, 0, length - 2) & jumps.narrow(dim, 1, length - 2)
    same_way = rising.narrow(dim, 0, length - 2) == rising.narrow(dim, 1, length - 2)
    border = (1, 1) if dim == -1 else (0, 0, 1, 1)
    return torch.nn.functional.pad(both & same_way, border)
