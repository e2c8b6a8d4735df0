"""Queries of support: followed along with those that were asked for, for the company, and dropped afterwards."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from geomtx.checks import check_count, check_finite_positive, check_shape
from geomtx.layers.float32 import float32_island
from geomtx.types import Float

__all__ = ["local_queries", "support_queries"]


@float32_island
def support_queries(
    query_points: Float[Tensor, "b n 3"], image_hw: tuple[int, int], size: int
) -> Float[Tensor, "b m 3"]:
    """A regular grid of queries over the image, in the views of the queries.

    If all queries of a scene are in one view, so is the grid. Else its points are spread over their views, as often as
    queries are there, and in every view over the image.

    Args:
        query_points: (B, N, 3), (view, x, y).
        image_hw: Pixels.
        size: Points along each side, G; none lies on the border.

    Returns:
        (B, G², 3), float32 or better; without a query, none.
    """
    check_shape("query_points", query_points, ("B", "N", 3))
    check_count("size", size)
    num_scenes, num_queries = query_points.shape[:2]
    if num_queries == 0:
        return query_points
    grid = _grid(image_hw, size, query_points)
    # A step without a common divisor visits all points, far from one another in turn.
    step = next(
        step for step in range(max(1, round(0.618 * size * size)), size * size + 2) if _coprime(step, size * size)
    )
    turn = torch.arange(size * size, device=query_points.device) * step % (size * size)
    rank = torch.arange(size * size, device=query_points.device) * num_queries // (size * size)
    views = query_points[..., 0].sort(dim=1).values[:, rank]
    return torch.cat([views[..., None], grid[turn].expand(num_scenes, -1, -1)], dim=-1)


@float32_island
def local_queries(
    query_points: Float[Tensor, "b n 3"], image_hw: tuple[int, int], size: int, *, extent_px: float = 50.0
) -> Float[Tensor, "b m 3"]:
    """A regular grid of queries around each query, in its view; moved to the nearest pixel of the image.

    Args:
        query_points: (B, N, 3), (view, x, y).
        image_hw: Pixels.
        size: Points along each side, G.
        extent_px: Side of the square that the grid fills.

    Returns:
        (B, N·G², 3), float32 or better.
    """
    check_shape("query_points", query_points, ("B", "N", 3))
    check_count("size", size)
    check_finite_positive("extent_px", extent_px)
    offsets = (
        (torch.arange(size, device=query_points.device, dtype=query_points.dtype) + 0.5) / size - 0.5
    ) * extent_px
    offsets = torch.stack(torch.meshgrid(offsets, offsets, indexing="xy"), dim=-1).flatten(0, 1)
    coords = (query_points[:, :, None, 1:] + offsets).clamp(min=0)
    coords = torch.minimum(coords, coords.new_tensor([image_hw[1] - 1, image_hw[0] - 1]))
    views = query_points[:, :, None, :1].expand(-1, -1, size * size, -1)
    return torch.cat([views, coords], dim=-1).flatten(1, 2)


def _grid(image_hw: tuple[int, int], size: int, like: Tensor) -> Float[Tensor, "m 2"]:
    """Centres of size × size equal cells."""
    steps = (torch.arange(size, device=like.device, dtype=like.dtype) + 0.5) / size
    columns, rows = steps * image_hw[1] - 0.5, steps * image_hw[0] - 0.5
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).flatten(0, 1)


def _coprime(a: int, b: int) -> bool:
    return math.gcd(a, b) == 1
