"""Residual branches with a learned scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geomtx.types import Float

__all__ = ["LayerScale"]


class LayerScale(nn.Module):
    """Add a residual branch with a learned factor a channel (LayerScale, Touvron et al. 2021).

    Args:
        dim: Channels.
        init: Initial factor.
    """

    def __init__(self, dim: int, init: float = 0.01) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Float[Tensor, "*batch c"], branch: Float[Tensor, "*batch c"]) -> Float[Tensor, "*batch c"]:
        """Give x + gamma · branch, (..., C) each; one operation, rounded once."""
        return torch.addcmul(x, branch, self.gamma)
