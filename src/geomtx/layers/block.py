"""Pre-norm transformer blocks: over tokens themselves, and over the tokens of another image besides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from geomtx.layers.attention import Attention, CrossAttention
from geomtx.layers.backends import AttentionBackend, BackendName
from geomtx.layers.mlp import MLP, SwiGLU
from geomtx.layers.norms import LayerScale, Residual
from geomtx.layers.rope import RotaryTable
from geomtx.types import Bool, Float

__all__ = ["Attend", "DecoderBlock", "TransformerBlock"]

Attend = Callable[[int, Callable[..., Tensor], Tensor], Tensor]
"""How a loop of blocks runs one of them: (number of the block, block, tokens) → tokens after the block."""


class TransformerBlock(nn.Module):
    """x + scale · attention(norm(x)), then x + scale · MLP(norm(x)) (ViT; LayerScale from CaiT).

    Args:
        dim: Number of channels C of the tokens.
        num_heads: Number of attention heads.
        mlp_ratio: Number of hidden channels of the MLP, divided by `dim`.
        gated: Whether the MLP is a `SwiGLU`. It has two thirds of the hidden channels, rounded up to a multiple of 8,
            and so about as many parameters.
        layer_scale: Initial factor of both residual branches; None for branches that are added as they are.
        norm_eps: Epsilon of both LayerNorms.
        attention: `qk_norm`, `masked_bias` and `backend`, as for `Attention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        gated: bool = False,
        layer_scale: float | None = 0.01,
        norm_eps: float = 1e-5,
        **attention: Any,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim, eps=norm_eps)
        self.attention = Attention(dim, num_heads, **attention)
        self.attention_scale = Residual() if layer_scale is None else LayerScale(dim, layer_scale)
        self.mlp_norm = nn.LayerNorm(dim, eps=norm_eps)
        hidden_dim = int(dim * mlp_ratio)
        self.mlp = SwiGLU(dim, 8 * -(-2 * hidden_dim // 24)) if gated else MLP(dim, hidden_dim)
        self.mlp_scale = Residual() if layer_scale is None else LayerScale(dim, layer_scale)

    def forward(
        self,
        x: Float[Tensor, "batch n c"],
        *,
        rope: RotaryTable | None = None,
        mask: Bool[Tensor, "#batch #heads #n #m"] | None = None,
        core: AttentionBackend | None = None,
    ) -> Float[Tensor, "batch n c"]:
        """Transform tokens, (batch, N, C) → (batch, N, C).

        Args:
            x: Tokens, (batch, N, C).
            rope: Rotary table of the N tokens; defaults to no rotation.
            mask: Attention mask, see `Attention`; defaults to all pairs.
            core: Function that computes attention from queries, keys and values; defaults to the block's backend.
        """
        x = self.attention_scale(x, self.attention(self.attention_norm(x), rope=rope, mask=mask, core=core))
        return self.mlp_scale(x, self.mlp(self.mlp_norm(x)))

    def project_keys(
        self, x: Float[Tensor, "batch m c"], *, rope: RotaryTable | None = None
    ) -> tuple[Float[Tensor, "batch m h d"], Float[Tensor, "batch m h d"]]:
        """Return the keys and values that the block's attention computes for tokens, (batch, M, heads, D) each.

        Together with `attend_to` this is `forward` in two steps, for keys and values that are kept, gathered from
        other processes, or made of fewer tokens.

        Args:
            x: Tokens, (batch, M, C).
            rope: Rotary table of the M tokens; defaults to no rotation.
        """
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
        """Transform tokens that attend to given keys and values.

        Args:
            x: Tokens, (batch, N, C).
            keys: Keys from `project_keys`, (batch, M, heads, D).
            values: Values from `project_keys`, (batch, M, heads, D).
            rope: Rotary table of the N tokens of `x`; defaults to no rotation.
            mask: Attention mask over the M keys, see `Attention`; defaults to all pairs.
        """
        q = self.attention.project_queries(self.attention_norm(x), rope)
        x = self.attention_scale(x, self.attention.attend(q, keys, values, mask=mask))
        return self.mlp_scale(x, self.mlp(self.mlp_norm(x)))


class DecoderBlock(nn.Module):
    """x + attention(norm(x)), x + attention(norm(x) over norm(y)), then x + MLP(norm(x)), with a context y (CroCo).

    Args:
        dim: Number of channels C of the tokens and of the context.
        num_heads: Number of attention heads.
        mlp_ratio: Number of hidden channels of the MLP, divided by `dim`.
        norm_eps: Epsilon of the LayerNorms.
        backend: Name of the attention backend, see `geomtx.layers.backends`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-6,
        backend: BackendName = "auto",
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim, eps=norm_eps)
        self.attention = Attention(dim, num_heads, backend=backend)
        self.cross_norm = nn.LayerNorm(dim, eps=norm_eps)
        self.context_norm = nn.LayerNorm(dim, eps=norm_eps)
        self.cross_attention = CrossAttention(dim, num_heads, backend=backend)
        self.mlp_norm = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = MLP(dim, int(dim * mlp_ratio))

    def forward(
        self,
        x: Float[Tensor, "batch n c"],
        context: Float[Tensor, "batch m c"],
        *,
        rope: RotaryTable | None = None,
        context_rope: RotaryTable | None = None,
    ) -> Float[Tensor, "batch n c"]:
        """Transform tokens, (batch, N, C) → (batch, N, C).

        Args:
            x: Tokens, (batch, N, C).
            context: Tokens that the second attention looks at, (batch, M, C).
            rope: Rotary table of the N tokens; defaults to no rotation.
            context_rope: Rotary table of the M tokens of the context; defaults to no rotation.
        """
        x = x + self.attention(self.attention_norm(x), rope=rope)
        context = self.context_norm(context)
        x = x + self.cross_attention(self.cross_norm(x), context, rope=rope, context_rope=context_rope)
        return x + self.mlp(self.mlp_norm(x))
