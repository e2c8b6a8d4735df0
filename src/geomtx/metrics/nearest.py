"""Nearest neighbours between point clouds, exact, on any device.

Points are sorted into the boxes of a balanced k-d tree; boxes are compared with boxes, and points only with those of
boxes that can hold a nearer one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.checks import check_floating, check_shape
from geomtx.types import Float, Int

__all__ = ["check_points", "nearest_points", "pairs_within"]

_BOX_POINTS = 64
# Boxes looked at in a round, and bytes of the largest intermediate.
_BOXES_A_ROUND = 4
_CHUNK_BYTES = 2**27


class _Boxes(NamedTuple):
    points: Tensor  # (boxes, points a box, 3)
    indices: Tensor  # (boxes, points a box), where each point was; boxes are filled up with repetitions
    low: Tensor  # (boxes, 3)
    high: Tensor


def nearest_points(
    source: Float[Tensor, "n 3"], target: Float[Tensor, "m 3"]
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """The nearest point of `target` for every point of `source`.

    Args:
        source: (N, 3).
        target: (M, 3), at least one.

    Returns:
        Distances (N,), in float32 or better, and indices into `target` (N,). Of points equally near, any.

    Raises:
        ValueError: For other shapes, integer points, points that are not finite, or an empty target.
    """
    for name, points in (("source", source), ("target", target)):
        check_points(name, points)
    if len(target) == 0:
        raise ValueError(f"target must hold at least 1 point, got {tuple(target.shape)}")
    if len(source) == 0:
        return source.new_zeros(0), torch.zeros(0, dtype=torch.long, device=source.device)
    dtype = torch.promote_types(torch.promote_types(source.dtype, target.dtype), torch.float32)
    queries, boxes = _sort_into_boxes(source.to(dtype)), _sort_into_boxes(target.to(dtype))
    distances = source.new_empty(len(source), dtype=dtype)
    indices = torch.empty(len(source), dtype=torch.long, device=source.device)
    for part in torch.arange(len(queries.low), device=source.device).split(_chunk(queries, boxes)):
        nearest, found = _search(queries, part, boxes)
        distances[queries.indices[part]] = nearest
        indices[queries.indices[part]] = found
    return distances, indices


def pairs_within(points: Float[Tensor, "n 3"], radius: float) -> Int[Tensor, "2 pairs"]:
    """All pairs i < j of points no farther apart than `radius`, (2, pairs).

    Raises:
        ValueError: For another shape, integer points, or points that are not finite.
    """
    check_points("points", points)
    if len(points) == 0:
        return torch.zeros(2, 0, dtype=torch.long, device=points.device)
    boxes = _sort_into_boxes(points.to(torch.promote_types(points.dtype, torch.float32)))
    found = [torch.zeros(2, 0, dtype=torch.long, device=points.device)]
    for part in torch.arange(len(boxes.low), device=points.device).split(_chunk(boxes, boxes)):
        near = (_box_distances(boxes, part, boxes) <= radius).nonzero()
        for a, b in _chunks_of_pairs(part[near[:, 0]], near[:, 1], boxes):
            close = _distances(boxes.points[a], boxes.points[b]) <= radius
            pair, row, column = close.nonzero(as_tuple=True)
            i, j = boxes.indices[a[pair], row], boxes.indices[b[pair], column]
            found.append(torch.stack([i[i < j], j[i < j]]))
    # Repetitions that fill up boxes have found some pairs twice.
    return torch.cat(found, dim=1).unique(dim=1)


def check_points(name: str, points: Tensor) -> None:
    """Require (N, 3) floating point numbers, all finite; waits for the device."""
    check_shape(name, points, ("N", 3))
    check_floating(name, points)
    if not points.isfinite().all():
        raise ValueError(f"{name} must be finite, got NaN or inf")


def _sort_into_boxes(points: Tensor) -> _Boxes:
    """Halve every box at the median of its longest side until few points are left."""
    levels = max(0, math.ceil(math.log2(len(points) / _BOX_POINTS)))
    size = math.ceil(len(points) / 2**levels)
    indices = torch.arange(size * 2**levels, device=points.device).clamp(max=len(points) - 1)[None]
    for _ in range(levels):
        inside = points[indices]
        side = (inside.amax(1) - inside.amin(1)).argmax(-1)
        along = inside.gather(2, side[:, None, None].expand(*indices.shape, 1)).squeeze(2)
        indices = indices.gather(1, along.argsort(dim=1)).reshape(2 * len(indices), -1)
    inside = points[indices]
    return _Boxes(inside, indices, inside.amin(1), inside.amax(1))


def _search(queries: _Boxes, part: Tensor, boxes: _Boxes) -> tuple[Tensor, Tensor]:
    """Distances and indices (boxes of `part`, points a box) of the nearest points."""
    bounds = _box_distances(queries, part, boxes)
    nearest = torch.full_like(queries.points[part, :, 0], torch.inf)
    found = torch.zeros_like(queries.indices[part])
    open_rows = torch.arange(len(part), device=part.device)
    while len(open_rows):
        rounds = min(_BOXES_A_ROUND, bounds.shape[1])
        candidates = bounds[open_rows].topk(rounds, dim=1, largest=False).indices
        targets = boxes.points[candidates].flatten(1, 2)
        least, position = _distances(queries.points[part[open_rows]], targets).min(-1)
        there = boxes.indices[candidates].flatten(1, 2).gather(1, position)
        better = least < nearest[open_rows]
        found[open_rows] = torch.where(better, there, found[open_rows])
        nearest[open_rows] = torch.where(better, least, nearest[open_rows])
        bounds[open_rows[:, None], candidates] = torch.inf
        open_rows = open_rows[bounds[open_rows].amin(1) < nearest[open_rows].amax(1)]
    return nearest, found


def _box_distances(queries: _Boxes, part: Tensor, boxes: _Boxes) -> Tensor:
    """The distance between each box of `part` and each of `boxes`: no two of their points are nearer."""
    gaps = torch.maximum(boxes.low - queries.high[part, None], queries.low[part, None] - boxes.high)
    # A hair less, so that rounding never rules out a box.
    return gaps.clamp(min=0).norm(dim=-1) * (1 - 1e-5)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """By differences: the quicker way over products loses what small distances are made of."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _chunk(queries: _Boxes, boxes: _Boxes) -> int:
    """How many boxes of queries at once."""
    gaps, distances = 3 * len(boxes.low), queries.points.shape[1] * _BOXES_A_ROUND * boxes.points.shape[1]
    return max(1, _CHUNK_BYTES // (boxes.points.element_size() * max(gaps, distances)))


def _chunks_of_pairs(a: Tensor, b: Tensor, boxes: _Boxes) -> Iterator[tuple[Tensor, Tensor]]:
    size = max(1, _CHUNK_BYTES // (boxes.points.element_size() * boxes.points.shape[1] ** 2))
    yield from zip(a.split(size), b.split(size), strict=True)
