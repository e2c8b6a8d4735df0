"""Layers that scale or modulate tokens: LayerScale and adaptive modulation of normalised tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geomtx.types import Float

__all__ = [
    "LayerScale",
    "Modulation",
]


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


class Modulation(nn.Module):
    """gate · (LN(x) · (1 + scale) + shift), with shift, scale and gate from a condition (adaLN, Peebles & Xie 2023).

    Args:
        dim: Channels of tokens and condition.
        norm_eps: Of the LayerNorm, which has no affine part.
    """

    def __init__(self, dim: int, *, norm_eps: float = 1e-6) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=norm_eps, elementwise_affine=False)
        self.activation = nn.SiLU()
        self.project = nn.Linear(dim, 3 * dim)

    def forward(self, x: Float[Tensor, "*batch c"], condition: Float[Tensor, "*batch c"]) -> Float[Tensor, "*batch c"]:
        """Tokens and condition, both (..., C) → (..., C)."""
        shift, scale, gate = self.project(self.activation(condition)).chunk(3, dim=-1)
        return gate * (self.norm(x) * (1 + scale) + shift)
