"""LayerScale."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geomtx.types import Float

__all__ = ["LayerScale"]


class LayerScale(nn.Module):
    """A learned factor a channel on a residual branch (Touvron et al. 2021).

    Args:
        dim: Channels.
        init: Initial factor.
    """

    def __init__(self, dim: int, init: float = 0.01) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Float[Tensor, "*batch c"]) -> Float[Tensor, "*batch c"]:
        """(..., C) → (..., C)."""
        return x * self.gamma
