"""Robust losses of squared residuals, as solvers of least squares define them (Ceres, `LossFunction`)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from geomtx.layers.precision import float32_island
from geomtx.types import Float

__all__ = ["RobustLoss", "robust_loss"]

RobustLoss = Literal["trivial", "soft_l1", "huber", "cauchy"]
"""Name of a robust loss: "trivial" is plain least squares; the others grow more slowly beyond their scale."""


@float32_island
def robust_loss(
    squared: Float[Tensor, "*batch"], kind: RobustLoss, scale: float
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Return ρ(s) and its derivative ρ'(s) for squared residuals s; a cost is half the sum of ρ.

    With a the scale: trivial s; soft-L1 2a²(√(1 + s/a²) - 1); Huber s up to a², 2a√s - a² beyond;
    Cauchy a² ln(1 + s/a²).

    Args:
        squared: Squared residuals s, not negative.
        kind: Name of the loss.
        scale: Residual a from which on the loss grows more slowly, in the unit of the residuals, above 0.
    """
    square = scale * scale
    if kind == "trivial":
        return squared, torch.ones_like(squared)
    if kind == "huber":
        # The root of what is within the scale is never used, and has no finite gradient at 0.
        root = torch.where(squared > square, squared, square).sqrt()
        outside = squared > square
        return torch.where(outside, 2 * scale * root - square, squared), scale / root
    ratio = 1 + squared / square
    if kind == "soft_l1":
        root = ratio.sqrt()
        return 2 * square * (root - 1), 1 / root
    return square * torch.log1p(squared / square), 1 / ratio
