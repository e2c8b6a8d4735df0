"""Query points: checks of those that a user asks for, and CoTracker's support points, which are tracked with them
and removed from the result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
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
    """With the B axis; ValueError for what is no tensor (B, N, one of `widths`), or (N, …) for one scene."""
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
    """Require query points to lie in the views; not while a graph is traced, where there are no values.

    Args:
        query_points: (…, 2) as (x, y) in view 0, or (…, 3) as (view, x, y).
        num_views: How many there are.
        image_hw: Pixels.
        name: Of the argument, for the error.
        view: What a view is called there.
        slack_px: Pixels that an image may be larger, at the right and at the bottom: where its size is known from maps
            of it, which rounded it down.
        on_any_device: Also where looking at values means waiting for an accelerator.

    Raises:
        ValueError: For the first query that doesn't.
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
    """Return the tracks of the first queries, from nested named tuples of tracks."""
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
"""Name of a field → its axis of queries; other fields have none."""


def join_queries(parts: Sequence[Any]) -> Any:
    """Put the tracks of several sets of queries together, from nested named tuples of tracks."""
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
