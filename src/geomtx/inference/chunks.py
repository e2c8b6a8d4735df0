"""The one loop over chunks: a function of some entries at a time, into outputs that are allocated once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from geomtx.checks import check_count, check_positive
from geomtx.tracking.queries import join_queries
from geomtx.types import Float

__all__ = ["chunk_slices", "empty_on", "map_chunks", "track_in_chunks", "wait_for_copies"]

Output = TypeVar("Output")


def chunk_slices(length: int, chunk: int) -> list[slice]:
    """Return the slices of `chunk` entries that make up `length` entries; the last may be shorter."""
    check_positive("chunk", chunk)
    return [slice(start, min(start + chunk, length)) for start in range(0, length, chunk)]


def map_chunks(
    function: Callable[[slice], Output],
    length: int,
    chunk: int | None,
    *,
    dim: int = 0,
    device: torch.device | None = None,
) -> Output:
    """Concatenate what `function` returns for slices of `chunk` entries.

    Outputs are allocated once and filled, so the peak is one set of outputs and the work of one chunk.

    Args:
        function: Function from a slice to tensors, in any nesting of tuples and dicts, which have the slice's entries
            along `dim`.
        length: Number of entries in all.
        chunk: Number of entries at a time; None for all.
        dim: Axis of the entries in the outputs.
        device: Device of the outputs; defaults to where `function` leaves them. From a GPU to the host they are copied
            while the next chunk is computed; the host reads them after `wait_for_copies` only.
    """
    if chunk is None and device is None:
        return function(slice(0, length))
    outputs: list[Tensor] = []
    parts: list[Any] = []
    for here in chunk_slices(length, chunk or length):
        parts, structure = tree_flatten(function(here))
        if not outputs:
            shapes = [(*part.shape[:dim], length, *part.shape[dim + 1 :]) for part in parts]
            outputs = [empty_on(device, part, *shape) for part, shape in zip(parts, shapes, strict=True)]
        for output, part in zip(outputs, parts, strict=True):
            output.narrow(dim, here.start, here.stop - here.start).copy_(part, non_blocking=True)
    return tree_unflatten(outputs, structure)


def track_in_chunks(
    track: Callable[[Tensor], Output], query_points: Float[Tensor, "b n q"], query_chunk: int
) -> Output:
    """Track some queries at a time, which bounds the memory, and put the tracks together.

    Tracks inform each other, so those of a chunk are what they are if only that chunk is asked for.

    Args:
        track: Function from queries (B, n, …) to tracks, for instance
            `functools.partial(model.track_head.track, features)` or `functools.partial(tracker, video)`.
        query_points: All queries, (B, N, 2 or 3).
        query_chunk: Number of queries at a time.

    Raises:
        ValueError: For a number of queries below 1.
    """
    check_count("query_chunk", query_chunk)
    return join_queries([track(chunk) for chunk in query_points.split(query_chunk, dim=1)])


def empty_on(device: torch.device | None, like: Tensor, *shape: int) -> Tensor:
    """Return an empty tensor, to be filled with `copy_(…, non_blocking=True)`.

    Args:
        device: Its device; defaults to that of `like`. Host memory for what comes from a GPU is pinned, so that the
            copy doesn't wait.
        like: Tensor with its dtype and memory format: what it will be filled with, or a part of that.
        shape: Its shape; defaults to that of `like`.
    """
    device = device or like.device
    pinned = like.device.type not in ("cpu", "meta") and device.type == "cpu"
    out = torch.empty(*(shape or like.shape), dtype=like.dtype, device=device, pin_memory=pinned)
    # Maps stay channels last: in another order a copy can't go straight to the host, and convolutions are slower.
    if like.ndim == 4 and not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last):
        rows_first = (out.shape[0], *out.shape[2:], out.shape[1])
        return out.view(rows_first).permute(0, 3, 1, 2)
    return out


def wait_for_copies(tensors: Iterable[Tensor], device: torch.device) -> None:
    """Wait until copies from `device` into pinned tensors are complete; before that the host would read old values."""
    if device.type not in ("cpu", "meta") and any(tensor.is_pinned() for tensor in tensors):
        torch.accelerator.current_stream(device).synchronize()
