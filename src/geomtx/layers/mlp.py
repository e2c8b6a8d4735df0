"""Multi-layer perceptron with one hidden layer."""

from __future__ import annotations

from torch import Tensor, nn

from geomtx.types import Float

__all__ = ["MLP"]


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
