"""The pre-norm transformer block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geomtx.layers.attention import Attention, KeySubset, key_mask
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
        keys: KeySubset | None = None,
    ) -> Float[Tensor, "batch n c"]:
        """(batch, N, C) → (batch, N, C); `rope`, `mask` and `keys` as in `Attention`."""
        x = self.attention_scale(x, self.attention(self.attention_norm(x), rope=rope, mask=mask, keys=keys))
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

    def attend_apart(
        self,
        x: Float[Tensor, "b s p c"],
        num_apart: int,
        *,
        rope: RotaryTable | None,
        mask: Bool[Tensor, "b s p"] | None,
    ) -> Float[Tensor, "b s p c"]:
        """Attend across views, where nothing sees the last `num_apart` of them but each of these itself.

        Keys and values of the others are projected once; no attention is computed to be masked.

        Args:
            x: (B, S, P, C).
            num_apart: 1 … S - 1.
            rope: Table of one view's tokens.
            mask: (B, S, P), True = takes part.
        """
        num_scenes, num_views = x.shape[:2]
        num_shared = num_views - num_apart
        shared, apart = x[:, :num_shared].flatten(1, 2), x[:, num_shared:].flatten(0, 1)
        of_shared = None if rope is None else rope.repeat(num_shared)
        keys, values = self.project_keys(shared, rope=of_shared)
        own_keys, own_values = self.project_keys(apart, rope=rope)
        all_keys = torch.cat([keys.repeat_interleave(num_apart, dim=0), own_keys], dim=1)
        all_values = torch.cat([values.repeat_interleave(num_apart, dim=0), own_values], dim=1)
        shared_mask = apart_mask = None
        if mask is not None:
            seen = mask[:, :num_shared].flatten(1)
            shared_mask = key_mask(seen)
            own = mask[:, num_shared:].flatten(0, 1)
            apart_mask = key_mask(torch.cat([seen.repeat_interleave(num_apart, dim=0), own], dim=1))
        shared = self.attend_to(shared, keys, values, rope=of_shared, mask=shared_mask)
        apart = self.attend_to(apart, all_keys, all_values, rope=rope, mask=apart_mask)
        return torch.cat([shared.unflatten(1, (num_shared, -1)), apart.unflatten(0, (num_scenes, num_apart))], dim=1)
