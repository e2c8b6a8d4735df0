"""Multi-layer perceptrons with one hidden layer."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from geomtx.checks import check_positive
from geomtx.types import Float

__all__ = ["MLP", "SwiGLU"]


class MLP(nn.Module):
    """A linear layer, exact GELU, and a second linear layer.

    Args:
        dim: Number of channels of the input.
        hidden_dim: Number of channels between the two layers.
        out_dim: Number of channels of the output; defaults to `dim`.
        out_type: Class of the second layer, for instance `Float32Linear`; defaults to `nn.Linear`.
    """

    def __init__(
        self, dim: int, hidden_dim: int, out_dim: int | None = None, *, out_type: type[nn.Linear] = nn.Linear
    ) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden_dim)
        self.activation = nn.GELU()
        self.contract = out_type(hidden_dim, dim if out_dim is None else out_dim)

    def forward(self, x: Float[Tensor, "*batch c_in"]) -> Float[Tensor, "*batch c_out"]:
        """Transform every token by itself, (..., dim) → (..., out_dim)."""
        return self.contract(self.activation(self.expand(x)))


class SwiGLU(nn.Module):
    """W (silu(a) · b) with a and b from one linear layer (Shazeer 2020), as in DINOv2's giant.

    Args:
        dim: Number of channels of input and output.
        hidden_dim: Number of channels of a and of b.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        check_positive("hidden_dim", hidden_dim)
        self.expand = nn.Linear(dim, 2 * hidden_dim)
        self.contract = nn.Linear(hidden_dim, dim)

    def forward(self, x: Float[Tensor, "*batch c"]) -> Float[Tensor, "*batch c"]:
        """Transform every token by itself, (..., dim) → (..., dim)."""
        gate, value = self.expand(x).chunk(2, dim=-1)
        return self.contract(F.silu(gate) * value)
