"""Masked reductions. Masked entries may be NaN and have no influence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar

import torch
from torch import Tensor

__all__ = [
    "BatchCounts",
    "average_stages",
    "count_scope",
    "counting",
    "has_enough",
    "is_counting",
    "masked_mean",
    "masked_median",
    "over_batch",
    "select",
    "weigh",
]


def select(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the values where the mask is True and 0 elsewhere, without a gradient there.

    Inputs have to be selected before any arithmetic for gradients to stay finite, since 0 · NaN is NaN.

    Args:
        values: Values, (…).
        mask: Whether a value counts, bool, broadcastable to `values`; None counts all.
    """
    return values if mask is None else torch.where(mask, values, torch.zeros_like(values))


def masked_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean over the values where the mask is True.

    Within `counting`, the sum is divided by the number of values in the whole batch.

    Args:
        values: Values, (…).
        mask: Whether a value counts, bool, broadcastable to `values`. Defaults to all values.

    Returns:
        A scalar; a zero with a graph if nothing counts.
    """
    if mask is None and _ACTIVE.get() is None:
        return values.mean() if values.numel() else values.sum()
    mask = torch.ones_like(values, dtype=torch.bool) if mask is None else mask.expand_as(values)
    return select(values, mask).sum() / over_batch(mask.sum()).clamp(min=1)


class BatchCounts:
    """Numbers of pixels, cameras, tracks, … that the means of a loss divide by, in a chunk and in the whole batch.

    A batch may be split into chunks that are processed one after the other or by several processes. A mean over the
    whole batch is the sum over all chunks, divided by the count of the whole batch. The loss is therefore first
    computed to collect the counts of every chunk, and then again with the counts of all chunks.

    Args:
        whole: Counts over the whole batch by name. Defaults to None: counts are collected and means are those of the
            chunk.

    Attributes:
        own: Counts of this chunk by name, collected while the loss is computed.
    """

    def __init__(self, whole: Mapping[str, list[float]] | None = None) -> None:
        self.whole = whole
        self.own: dict[str, Tensor] = {}
        self._scope: tuple[str, ...] = ()
        self._number = 0

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Number the counts within the block from 0 under this name, independently of other parts of a loss."""
        outside = self._scope, self._number
        self._scope, self._number = (*self._scope, name), 0
        try:
            yield
        finally:
            self._scope, self._number = outside

    def look_up(self, count: Tensor) -> Tensor:
        """Store the count of a chunk and return that of the whole batch."""
        name = "/".join((*self._scope, str(self._number)))
        self._number += 1
        self.own[name] = count.detach()
        if self.whole is None:
            return count
        values = self.whole[name]
        return count.new_tensor(values[: count.numel()]).view_as(count)

    def values(self) -> dict[str, list[float]]:
        """Return the counts of the chunk as Python numbers."""
        return {name: count.flatten().tolist() for name, count in self.own.items()}


_ACTIVE: ContextVar[BatchCounts | None] = ContextVar("counts of the batch", default=None)


@contextmanager
def counting(counts: BatchCounts | None) -> Iterator[None]:
    """Let losses of this thread use these counts within the block; with None, means divide by their own counts."""
    token = _ACTIVE.set(counts)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def is_counting() -> bool:
    """Return whether losses currently use counts of the whole batch, or collect them."""
    return _ACTIVE.get() is not None


@contextmanager
def count_scope(name: str) -> Iterator[None]:
    """Enter `BatchCounts.scope` of the counts in use, if there are any."""
    counts = _ACTIVE.get()
    with nullcontext() if counts is None else counts.scope(name):
        yield


def over_batch(count: Tensor) -> Tensor:
    """Return a count over the whole batch within `counting`, or `count` itself otherwise.

    Args:
        count: Number of values that a mean divides by, or one for each of several means; any shape.

    Returns:
        Counts with the shape and dtype of `count`.
    """
    counts = _ACTIVE.get()
    return count if counts is None else counts.look_up(count)


def has_enough(count: Tensor, least: int) -> Tensor:
    """Return whether the whole batch has at least `least` values, a bool scalar.

    The result is True while counts are collected, since later counts must not depend on those of a single chunk.
    """
    counts = _ACTIVE.get()
    enough = over_batch(count) >= least
    return torch.ones_like(enough) if counts is not None and counts.whole is None else enough


def weigh(mean: Tensor, count: Tensor, whole: Tensor) -> Tensor:
    """Weight the mean of a chunk by its share of the values; the results of all chunks add up to the whole mean.

    Args:
        mean: Mean over `count` values, (…).
        count: Number of values in the chunk, a scalar.
        whole: Number of values in the whole batch, `over_batch(count)`.

    Returns:
        Weighted mean, (…); `mean` itself if the chunk is the whole batch.
    """
    return mean * (count.to(mean.dtype) / whole.to(mean.dtype).clamp(min=1))


def average_stages(errors: Tensor, decay: float) -> Tensor:
    """Average the errors of all refinements, where refinement i of I has the weight decay^(I-1-i) / I.

    The sum is divided by the number of refinements, not by the sum of their weights, as published.

    Args:
        errors: Errors of I refinements, (I, …), floating point.
        decay: Weight of a refinement relative to the next one.

    Returns:
        Weighted average, (…).

    Raises:
        ValueError: Without a refinement.
    """
    if len(errors) == 0:
        raise ValueError("refinements must be at least 1, got 0")
    exponents = torch.arange(len(errors) - 1, -1, -1, device=errors.device, dtype=errors.dtype)
    return torch.tensordot(decay**exponents, errors, dims=1) / len(errors)


def masked_median(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute the median over the last axis; of an even number of values, the mean of the middle two.

    `torch.median` returns the lower of the middle two.

    Args:
        values: Values, (…, N), any N.
        mask: Whether a value counts, (…, N) bool. Defaults to all values.

    Returns:
        Median, (…); NaN where nothing counts or a value that counts is NaN.
    """
    if mask is None:
        mask = torch.ones_like(values, dtype=torch.bool)
    if values.shape[-1] == 0:
        return values.new_full(values.shape[:-1], torch.nan)
    # NaN is sorted to the end, after the infinite values that replace masked ones.
    broken = (values.isnan() & mask).any(-1)
    ordered = torch.where(mask, values, torch.inf).sort(-1).values
    count = mask.sum(-1, keepdim=True)
    low, high = ((count - 1) // 2).clamp(min=0), (count // 2).clamp(max=values.shape[-1] - 1)
    # Adding halves avoids an overflow of the sum.
    middle = ordered.gather(-1, low) / 2 + ordered.gather(-1, high) / 2
    return torch.where((count > 0).squeeze(-1) & ~broken, middle.squeeze(-1), torch.nan)
