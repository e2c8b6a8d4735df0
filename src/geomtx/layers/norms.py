"""Layers that add, scale or modulate tokens: residual branches and adaptive modulation of normalised tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geomtx.types import Float

__all__ = [
    "LayerScale",
    "Modulation",
    "Residual",
]


class LayerScale(nn.Module):
    """Add a residual branch, multiplied by a learned factor for each channel (LayerScale, Touvron et al. 2021).

    Args:
        dim: Number of channels C of the tokens.
        init: Initial value of all factors.
    """

    def __init__(self, dim: int, init: float = 0.01) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Float[Tensor, "*batch c"], branch: Float[Tensor, "*batch c"]) -> Float[Tensor, "*batch c"]:
        """Return x + gamma · branch, (..., C) each, computed in one operation and rounded once."""
        return torch.addcmul(x, branch, self.gamma)


class Residual(nn.Module):
    """Add a residual branch as it is; stands where a `LayerScale` would."""

    def forward(self, x: Float[Tensor, "*batch c"], branch: Float[Tensor, "*batch c"]) -> Float[Tensor, "*batch c"]:
        """Return x + branch, (..., C) each."""
        return x + branch


class Modulation(nn.Module):
    """gate · (LN(x) · (1 + scale) + shift), with shift, scale and gate from a condition (adaLN, Peebles & Xie 2023).

    Args:
        dim: Number of channels C of the tokens and of the condition.
        norm_eps: Epsilon of the LayerNorm, which has no affine part.
    """

    def __init__(self, dim: int, *, norm_eps: float = 1e-6) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=norm_eps, elementwise_affine=False)
        self.activation = nn.SiLU()
        self.project = nn.Linear(dim, 3 * dim)

    def forward(self, x: Float[Tensor, "*batch c"], condition: Float[Tensor, "*batch c"]) -> Float[Tensor, "*batch c"]:
        """Return the modulated tokens.

        Args:
            x: Tokens, (..., C).
            condition: Vectors that shift, scale and gate are computed from, (..., C).
        """
        shift, scale, gate = self.project(self.activation(condition)).chunk(3, dim=-1)
        return gate * (self.norm(x) * (1 + scale) + shift)
