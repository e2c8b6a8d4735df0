"""Query points: checks of the user's, and CoTracker's support points, which are tracked with them and removed from the
result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor

from geomtx.checks import check_count, check_finite_positive, check_shape
from geomtx.layers.precision import float32_island
from geomtx.types import Float

__all__ = [
    "batch_queries",
    "check_queries",
    "join_queries",
    "local_queries",
    "support_queries",
    "take_queries",
]


def batch_queries(query_points: Tensor, num_scenes: int, *widths: int) -> Tensor:
    """Return query points with the axis of scenes, (B, N, width).

    Args:
        query_points: Query points, (B, N, width), or (N, width) for one scene.
        num_scenes: Number of scenes B.
        *widths: Permitted numbers of coordinates of a point.

    Raises:
        ValueError: If they are no tensor, or of another shape.
    """
    if not isinstance(query_points, Tensor):
        raise ValueError(f"query_points must be a tensor, got {type(query_points).__name__}; torch.tensor(…) makes one")
    batched = query_points[None] if query_points.ndim == 2 else query_points
    check_shape("query_points", batched, *((num_scenes, "N", width) for width in widths))
    return batched


def check_queries(
    query_points: Tensor,
    num_views: int,
    image_hw: tuple[int, int],
    *,
    name: str = "query_points",
    view: Literal["view", "frame"] = "view",
    slack_px: int = 0,
    on_any_device: bool = False,
) -> None:
    """Require query points to lie in the views.

    Nothing is checked while a graph is traced, where tensors have no values.

    Args:
        query_points: Query points, (…, 2) as (x, y) in pixels of view 0, or (…, 3) as (view, x, y).
        num_views: Number of views.
        image_hw: Height and width of the images in pixels.
        name: Name of the argument in the error.
        view: Word for a view in the error.
        slack_px: Number of pixels by which the images may be larger, where their size was computed from that of feature
            maps and so rounded down; defaults to 0.
        on_any_device: Whether to check points on an accelerator too, for which the host has to wait; defaults to False.

    Raises:
        ValueError: If a query point lies outside; the message has the first of them.
    """
    if type(query_points) is not Tensor or query_points.is_meta or torch.compiler.is_compiling():
        return
    if not (on_any_device or query_points.is_cpu):
        return
    height, width = image_hw
    index, x, y = torch.cat([torch.zeros_like(query_points[..., :1]), query_points], dim=-1)[..., -3:].unbind(-1)
    right, bottom = width - 0.5 + slack_px, height - 0.5 + slack_px
    inside = (index >= 0) & (index < num_views) & (x >= -0.5) & (x <= right) & (y >= -0.5) & (y <= bottom)
    whole = index == index.floor()
    if (inside & whole).all():
        return
    for fits, demand in (
        (query_points.isfinite().all(-1), "be finite"),
        (whole, f"name {view}s by whole numbers, as ({view}, x, y)"),
        (inside, f"lie in one of {num_views} {view}s of {width}x{height} pixels"),
    ):
        if not fits.all():
            raise ValueError(f"{name} must {demand}, got {query_points[~fits][0].tolist()}")


def take_queries(value: Any, num_queries: int) -> Any:
    """Return the tracks of the first queries.

    Args:
        value: Tracks as a named tuple of tensors and of such tuples, for instance `TrackPrediction`.
        num_queries: Number of queries to keep.
    """
    fields = {}
    for name, part in value._asdict().items():
        if not isinstance(part, Tensor):
            fields[name] = take_queries(part, num_queries)
        elif name in _QUERY_AXIS:
            fields[name] = part.narrow(_QUERY_AXIS[name], 0, num_queries)
    return value._replace(**fields)


_QUERY_AXIS = {
    "coords_px": -2,
    "visibility": -1,
    "confidence": -1,
    "visibility_logits": -1,
    "confidence_logits": -1,
}
"""Axis of the queries by name of the field; other fields have none."""


def join_queries(parts: Sequence[Any]) -> Any:
    """Concatenate the tracks of several sets of queries.

    Args:
        parts: Tracks of each set, as named tuples of tensors and of such tuples.
    """
    fields = {}
    for name, first in parts[0]._asdict().items():
        values = [getattr(part, name) for part in parts]
        if not isinstance(first, Tensor):
            fields[name] = join_queries(values)
        elif name in _QUERY_AXIS:
            fields[name] = torch.cat(values, dim=_QUERY_AXIS[name])
    return parts[0]._replace(**fields)


@float32_island
def support_queries(
    query_points: Float[Tensor, "b n 3"], image_hw: tuple[int, int], size: int
) -> Float[Tensor, "b m 3"]:
    """Return support points on a regular grid over the image, in the views of the queries (CoTracker).

    If all queries of a scene are in one view, so is the grid. Otherwise its points are distributed among the views of
    the queries, in proportion to the number of queries in each, and in every view over the image.

    Args:
        query_points: Query points (view, x, y), (B, N, 3).
        image_hw: Height and width of the images in pixels.
        size: Number of points G along each side of the grid; none lies on the border.

    Returns:
        Support points (view, x, y), (B, G², 3), in float32 or better; none without queries.
    """
    check_shape("query_points", query_points, ("B", "N", 3))
    check_count("size", size)
    num_scenes, num_queries = query_points.shape[:2]
    if num_queries == 0:
        return query_points
    grid = _grid(image_hw, size, query_points)
    # Steps that are coprime to the number of points visit all of them, with neighbours in the order far apart.
    count = size * size
    step = next(step for step in range(max(1, round(0.618 * count)), count + 2) if math.gcd(step, count) == 1)
    order = torch.arange(count, device=query_points.device) * step % count
    rank = torch.arange(count, device=query_points.device) * num_queries // count
    views = query_points[..., 0].sort(dim=1).values[:, rank]
    return torch.cat([views[..., None], grid[order].expand(num_scenes, -1, -1)], dim=-1)


@float32_island
def local_queries(
    query_points: Float[Tensor, "b n 3"], image_hw: tuple[int, int], size: int, *, extent_px: float = 50.0
) -> Float[Tensor, "b m 3"]:
    """Return support points on a regular grid around each query, in its view (CoTracker).

    Points beyond the border are moved to the nearest pixel of the image.

    Args:
        query_points: Query points (view, x, y), (B, N, 3).
        image_hw: Height and width of the images in pixels.
        size: Number of points G along each side of a grid.
        extent_px: Side in pixels of the square that a grid covers.

    Returns:
        Support points (view, x, y), (B, N·G², 3), in float32 or better.
    """
    check_shape("query_points", query_points, ("B", "N", 3))
    check_count("size", size)
    check_finite_positive("extent_px", extent_px)
    steps = torch.arange(size, device=query_points.device, dtype=query_points.dtype)
    offsets = ((steps + 0.5) / size - 0.5) * extent_px
    coords = query_points[:, :, None, 1:] + _grid_points(offsets, offsets)
    coords = torch.minimum(coords.clamp(min=0), coords.new_tensor([image_hw[1] - 1, image_hw[0] - 1]))
    views = query_points[:, :, None, :1].expand(-1, -1, size * size, -1)
    return rearrange(torch.cat([views, coords], dim=-1), "b n g view_xy -> b (n g) view_xy")


def _grid(image_hw: tuple[int, int], size: int, like: Tensor) -> Float[Tensor, "m 2"]:
    """Return the centres (x, y) of size × size equal cells of the image."""
    steps = (torch.arange(size, device=like.device, dtype=like.dtype) + 0.5) / size
    columns, rows = steps * image_hw[1] - 0.5, steps * image_hw[0] - 0.5
    return _grid_points(columns, rows)


def _grid_points(columns: Tensor, rows: Tensor) -> Float[Tensor, "m 2"]:
    """Return the points (x, y) of a grid, row by row."""
    return rearrange(torch.stack(torch.meshgrid(columns, rows, indexing="xy")), "xy r q -> (r q) xy")
