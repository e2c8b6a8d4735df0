"""Run a function over chunks of views."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from geomtx.checks import check_positive
from geomtx.layers.placement import empty_on, wait_for_copies

__all__ = ["map_chunks"]


def map_chunks(
    function: Callable[[slice], tuple[Tensor, ...]],
    num_views: int,
    view_chunk: int | None,
    *,
    device: torch.device | None = None,
) -> tuple[Tensor, ...]:
    """Concatenate what `function` returns for slices of `view_chunk` views; None = all views at once.

    The outputs are allocated once and filled, so the peak is one set of outputs and the work of one chunk.

    Args:
        function: Slice of views → tuple of tensors whose first axis is the slice's.
        num_views: In all.
        view_chunk: Views at a time.
        device: Of the outputs; None = where `function` leaves them. From a GPU to the host they are copied while the
            next chunk is worked on.
    """
    if view_chunk is None and device is None:
        return function(slice(None))
    view_chunk = num_views if view_chunk is None else view_chunk
    check_positive("view_chunk", view_chunk)
    outputs: tuple[Tensor, ...] | None = None
    for start in range(0, num_views, view_chunk):
        chunk = slice(start, start + view_chunk)
        parts = function(chunk)
        if outputs is None:
            outputs = tuple(empty_on(device, part, num_views, *part.shape[1:]) for part in parts)
        for output, part in zip(outputs, parts, strict=True):
            output[chunk].copy_(part, non_blocking=True)
    assert outputs is not None, "a scene has at least one view"
    if device is not None:
        wait_for_copies(outputs, parts[0].device)
    return outputs
