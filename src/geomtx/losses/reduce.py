"""Reductions that a mask takes part in by selection: what it hides can be NaN and still has no influence."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["average_stages", "masked_mean", "select"]


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

    Args:
        values: (…).
        mask: bool, broadcastable to `values`; None = everything.

    Returns:
        A scalar.
    """
    if mask is None:
        return values.mean() if values.numel() else values.sum()
    mask = mask.expand_as(values)
    return select(values, mask).sum() / mask.sum().clamp(min=1)


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
