"""Adaptive modulation of normalised tokens."""

from __future__ import annotations

from torch import Tensor, nn

from geomtx.types import Float

__all__ = ["Modulation"]


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
