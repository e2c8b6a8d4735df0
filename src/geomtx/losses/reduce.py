"""Reductions over the entries that a mask selects. Entries that it hides may be NaN and have no influence."""

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
    """`values` where `mask` is True, elsewhere 0; neither hidden values nor their gradients get through.

    Selecting an input before any arithmetic, rather than its result, is what keeps gradients finite: 0 · NaN is NaN.

    Args:
        values: (…).
        mask: bool, broadcastable to `values`; None = everything.
    """
    return values if mask is None else torch.where(mask, values, torch.zeros_like(values))


def masked_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over the values where `mask` is True; of none, a zero that still has a graph.

    Within `counting`, the values are divided by their number in the whole batch.

    Args:
        values: (…).
        mask: bool, broadcastable to `values`; None = everything.

    Returns:
        A scalar.
    """
    if mask is None and _ACTIVE.get() is None:
        return values.mean() if values.numel() else values.sum()
    mask = torch.ones_like(values, dtype=torch.bool) if mask is None else mask.expand_as(values)
    return select(values, mask).sum() / over_batch(mask.sum()).clamp(min=1)


class BatchCounts:
    """How many pixels, cameras, tracks … the means of a loss are taken over, in a chunk and in the whole batch.

    A batch may be worked on in chunks, one after the other or in several processes. A mean over all of it is the sum
    of the chunks' sums, each divided by the count over the whole batch, which therefore has to be known beforehand:
    the loss is first run to collect the counts of every chunk, then within the counts of all of them.

    Args:
        whole: Name of a count → its values over the whole batch; None = collect only: means are those of the chunk.

    Attributes:
        own: Name of a count → its values in this chunk, filled while the loss runs.
    """

    def __init__(self, whole: Mapping[str, list[float]] | None = None) -> None:
        self.whole = whole
        self.own: dict[str, Tensor] = {}
        self._scope: tuple[str, ...] = ()
        self._number = 0

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Within the block, counts are numbered from 0 under this name: other parts of a loss don't shift them."""
        outside = self._scope, self._number
        self._scope, self._number = (*self._scope, name), 0
        try:
            yield
        finally:
            self._scope, self._number = outside

    def look_up(self, count: Tensor) -> Tensor:
        """Note a chunk's count; return that of the whole batch."""
        name = "/".join((*self._scope, str(self._number)))
        self._number += 1
        self.own[name] = count.detach()
        if self.whole is None:
            return count
        values = self.whole[name]
        return count.new_tensor(values[: count.numel()]).view_as(count)

    def values(self) -> dict[str, list[float]]:
        """The chunk's counts as plain numbers."""
        return {name: count.flatten().tolist() for name, count in self.own.items()}


_ACTIVE: ContextVar[BatchCounts | None] = ContextVar("counts of the batch", default=None)


@contextmanager
def counting(counts: BatchCounts | None) -> Iterator[None]:
    """Within the block, losses of this thread use these counts; None = each mean has the count of its own values."""
    token = _ACTIVE.set(counts)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def is_counting() -> bool:
    """Whether the block of a `counting` with counts is entered."""
    return _ACTIVE.get() is not None


@contextmanager
def count_scope(name: str) -> Iterator[None]:
    """`BatchCounts.scope` of the counts in use, if there are any."""
    counts = _ACTIVE.get()
    with nullcontext() if counts is None else counts.scope(name):
        yield


def over_batch(count: Tensor) -> Tensor:
    """The count over the whole batch, where `counting` knows it, else `count` itself.

    Args:
        count: Number of values that a mean is taken over, or one for each of several means, any shape.

    Returns:
        Shape and dtype of `count`.
    """
    counts = _ACTIVE.get()
    return count if counts is None else counts.look_up(count)


def has_enough(count: Tensor, least: int) -> Tensor:
    """Whether there are at least so many values in the whole batch, a bool scalar.

    While the counts are collected it is True: later ones must not depend on what a single chunk has.
    """
    counts = _ACTIVE.get()
    enough = over_batch(count) >= least
    return torch.ones_like(enough) if counts is not None and counts.whole is None else enough


def weigh(mean: Tensor, count: Tensor, whole: Tensor) -> Tensor:
    """A chunk's own mean, weighted by its share of the values: such parts add up to the mean over the whole batch.

    Args:
        mean: (…), over `count` values.
        count: Number of values in the chunk, a scalar.
        whole: `over_batch(count)`.

    Returns:
        (…), `mean` itself where the chunk is all there is.
    """
    return mean * (count.to(mean.dtype) / whole.to(mean.dtype).clamp(min=1))


def average_stages(errors: Tensor, decay: float) -> Tensor:
    """Errors of all refinements as one: refinement i of I counts decay^(I-1-i) / I.

    The sum is divided by the number of refinements, not by the sum of their weights, as published.

    Args:
        errors: (I, …), floating point.
        decay: Weight of a refinement relative to the next one.

    Returns:
        (…).

    Raises:
        ValueError: Without a refinement.
    """
    if len(errors) == 0:
        raise ValueError("refinements must be at least 1, got 0")
    exponents = torch.arange(len(errors) - 1, -1, -1, device=errors.device, dtype=errors.dtype)
    return torch.tensordot(decay**exponents, errors, dims=1) / len(errors)


def masked_median(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Median over the last axis: of an even number the mean of the two in the middle, which `torch.median` is not.

    Args:
        values: (..., N), any N.
        mask: (..., N) bool, True = the value counts; None = all do.

    Returns:
        (...); NaN where nothing counts, or something that counts is NaN.
    """
    if mask is None:
        mask = torch.ones_like(values, dtype=torch.bool)
    if values.shape[-1] == 0:
        return values.new_full(values.shape[:-1], torch.nan)
    # Sorting puts NaN last, behind the infinite values that stand for what is not selected.
    broken = (values.isnan() & mask).any(-1)
    ordered = torch.where(mask, values, torch.inf).sort(-1).values
    count = mask.sum(-1, keepdim=True)
    low, high = ((count - 1) // 2).clamp(min=0), (count // 2).clamp(max=values.shape[-1] - 1)
    # Halves are added: the sum of two large numbers may overflow.
    middle = ordered.gather(-1, low) / 2 + ordered.gather(-1, high) / 2
    return torch.where((count > 0).squeeze(-1) & ~broken, middle.squeeze(-1), torch.nan)
