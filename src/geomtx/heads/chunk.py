"""Run a function over chunks of views."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from geomtx.checks import check_positive

__all__ = ["map_chunks"]


def map_chunks(
    function: Callable[[slice], tuple[Tensor, ...]], num_views: int, view_chunk: int | None
) -> tuple[Tensor, ...]:
    """Concatenate what `function` returns for slices of `view_chunk` views; None = all views at once.

    The outputs are allocated once and filled, so the peak is one set of outputs and the work of one chunk.
    """
    if view_chunk is None:
        return function(slice(None))
    check_positive("view_chunk", view_chunk)
    outputs: tuple[Tensor, ...] | None = None
    for start in range(0, num_views, view_chunk):
        chunk = slice(start, start + view_chunk)
        parts = function(chunk)
        if outputs is None:
            outputs = tuple(part.new_empty(num_views, *part.shape[1:]) for part in parts)
        for output, part in zip(outputs, parts, strict=True):
            output[chunk] = part
    assert outputs is not None, "a scene has at least one view"
    return outputs
