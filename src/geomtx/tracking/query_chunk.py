"""Tracking some queries at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from geomtx.checks import check_count
from geomtx.types import Float

__all__ = ["map_query_chunks", "take_queries"]

Output = TypeVar("Output")


def map_query_chunks(
    track: Callable[[Tensor], Output], query_points: Float[Tensor, "b n q"], query_chunk: int | None
) -> Output:
    """Call `track` with some queries at a time and put the results together.

    Tracks inform each other, so those of a chunk are what they would be if only the chunk had been asked for.

    Args:
        track: From queries (B, n, …) to nested named tuples of their tracks.
        query_points: (B, N, 2 or 3).
        query_chunk: Queries at a time; None = all.
    """
    if query_chunk is None:
        return track(query_points)
    check_count("query_chunk", query_chunk)
    return _join([track(chunk) for chunk in query_points.split(query_chunk, dim=1)])


def take_queries(value: Any, num_queries: int) -> Any:
    """The first queries of nested named tuples of tracks."""
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
"""Field → its axis of queries; other fields have none."""


def _join(parts: list[Any]) -> Any:
    fields = {}
    for name, first in parts[0]._asdict().items():
        values = [getattr(part, name) for part in parts]
        if not isinstance(first, Tensor):
            fields[name] = _join(values)
        elif name in _QUERY_AXIS:
            fields[name] = torch.cat(values, dim=_QUERY_AXIS[name])
    return parts[0]._replace(**fields)
