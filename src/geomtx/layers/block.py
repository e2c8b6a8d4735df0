"""The pre-norm transformer block."""

from __future__ import annotations

from torch import Tensor, nn

from geomtx.layers.attention import Attention
from geomtx.layers.backends import BackendName
from geomtx.layers.mlp import MLP
from geomtx.layers.rope import RotaryTable
from geomtx.layers.scale import LayerScale
from geomtx.types import Bool, Float

__all__ = ["TransformerBlock"]


class TransformerBlock(nn.Module):
    """x + scale · attention(norm(x)), then x + scale · MLP(norm(x)) (ViT; LayerScale from CaiT).

    Args:
        dim: Width C of the tokens.
        num_heads: Heads of the attention.
        mlp_ratio: Hidden width of the MLP over `dim`.
        qk_norm: See `Attention`.
        layer_scale: Initial factor of both residual branches.
        norm_eps: Of both LayerNorms.
        backend: See `geomtx.layers.backends`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        qk_norm: bool = False,
        layer_scale: float = 0.01,
        norm_eps: float = 1e-5,
        backend: BackendName = "auto",
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim, eps=norm_eps)
        self.attention = Attention(dim, num_heads, qk_norm=qk_norm, backend=backend)
        self.attention_scale = LayerScale(dim, layer_scale)
        self.mlp_norm = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = MLP(dim, int(dim * mlp_ratio))
        self.mlp_scale = LayerScale(dim, layer_scale)

    def forward(
        self,
        x: Float[Tensor, "batch n c"],
        *,
        rope: RotaryTable | None = None,
        mask: Bool[Tensor, "#batch #heads #n #m"] | None = None,
    ) -> Float[Tensor, "batch n c"]:
        """(batch, N, C) → (batch, N, C); `rope` and `mask` as in `Attention`."""
        x = self.attention_scale(x, self.attention(self.attention_norm(x), rope=rope, mask=mask))
        return self.mlp_scale(x, self.mlp(self.mlp_norm(x)))

    def project_keys(
        self, x: Float[Tensor, "batch m c"], *, rope: RotaryTable | None = None
    ) -> tuple[Float[Tensor, "batch m h d"], Float[Tensor, "batch m h d"]]:
        """Keys and values of some tokens: with `attend_to`, `forward` piece by piece; `rope` is their table."""
        return self.attention.project_keys(self.attention_norm(x), rope)

    def attend_to(
        self,
        x: Float[Tensor, "batch n c"],
        keys: Float[Tensor, "batch m h d"],
        values: Float[Tensor, "batch m h d"],
        *,
        rope: RotaryTable | None = None,
        mask: Bool[Tensor, "#batch #heads #n #m"] | None = None,
    ) -> Float[Tensor, "batch n c"]:
        """What `forward` gives for the tokens `x` among those of `keys` and `values`; `rope` is the table of `x`."""
        attended = self.attention.attend_to(self.attention_norm(x), keys, values, rope=rope, mask=mask)
        x = self.attention_scale(x, attended)
        return self.mlp_scale(x, self.mlp(self.mlp_norm(x)))
