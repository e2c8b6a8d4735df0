"""The median, of what a mask selects."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["masked_median"]


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
