"""Multi-head attention, over itself or over a context."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from geomtx.checks import check_divisible
from geomtx.layers.backends import BackendName, resolve_backend
from geomtx.layers.rope import RotaryTable, apply_rotary
from geomtx.types import Bool, Float, Int

__all__ = ["Attention", "KeySubset", "key_mask"]


def key_mask(mask: Bool[Tensor, "batch n"]) -> Bool[Tensor, "batch 1 1 n"]:
    """Attention mask that keeps False tokens out as keys.

    A sequence without any valid key lets all of them in: its own outputs mean nothing and nobody reads them, but they
    stay finite.
    """
    return (mask | ~mask.any(dim=-1, keepdim=True))[:, None, None, :]


class KeySubset(NamedTuple):
    """Which tokens of a sequence are its keys and values, where not all are.

    Attributes:
        tokens: (batch, M), indices of different tokens.
        rope: Table of these M tokens; None = without positions.
    """

    tokens: Int[Tensor, "batch m"]
    rope: RotaryTable | None = None

    def take(self, x: Float[Tensor, "batch n c"]) -> Float[Tensor, "batch m c"]:
        """These tokens."""
        return x.gather(1, self.tokens[..., None].expand(-1, -1, x.shape[-1]))

    def rows(self, rows: slice) -> KeySubset:
        """Some of them."""
        return KeySubset(self.tokens[:, rows], None if self.rope is None else self.rope.rows(rows))


class Attention(nn.Module):
    """Multi-head attention with packed projections, optional qk-norm, rotary positions and mask.

    Args:
        dim: Width C of the tokens.
        num_heads: Number of heads; must divide `dim`.
        qk_norm: LayerNorm over the head dimension on queries and keys (Dehghani et al. 2023), before the rotation.
        backend: See `geomtx.layers.backends`.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, or the backend's name is unknown.
        ImportError: If the backend is not installed.
    """

    def __init__(self, dim: int, num_heads: int, *, qk_norm: bool = False, backend: BackendName = "auto") -> None:
        super().__init__()
        check_divisible(f"dim (for {num_heads} heads)", dim, num_heads)
        self.dim = dim
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.attend = resolve_backend(backend)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity()
        self.out = nn.Linear(dim, dim)

    def forward(
        self,
        x: Float[Tensor, "batch n c"],
        context: Float[Tensor, "batch m c"] | None = None,
        *,
        rope: RotaryTable | None = None,
        mask: Bool[Tensor, "#batch #heads #n #m"] | None = None,
        keys: KeySubset | None = None,
    ) -> Float[Tensor, "batch n c"]:
        """Attend.

        Args:
            x: (batch, N, C), the queries; keys and values too when there is no context.
            context: (batch, M, C), where keys and values come from.
            rope: Table of the N tokens; self-attention only.
            mask: Bool, broadcastable to (batch, heads, N, M), True = attend. `key_mask` makes one from a token mask.
            keys: Which of `x` are keys; None = all. `mask` is of these M, then. Not with a context.

        Raises:
            ValueError: For rotary positions or a choice of keys together with a context.
        """
        for name, value in (("rope", rope), ("keys", keys)):
            if value is not None and context is not None:
                raise ValueError(f"{name} must be None with a context, whose tokens have positions of their own")
        key_rope = None
        if keys is not None:
            context, key_rope = keys.take(x), keys.rope
        if context is not None:
            return self.attend_to(x, *self.project_keys(context, key_rope), rope=rope, mask=mask)
        # (batch, N, H, D): heads stay beside each other in memory, as the fused kernels read and write them.
        q, k, v = self._split(x)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = apply_rotary(torch.stack([q, k]), rope.over_heads())
        # Under autocast the norms return float32; the values tell the precision of the product.
        q, k = q.to(v.dtype), k.to(v.dtype)
        out = self.attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask)
        return self.out(out.transpose(1, 2).flatten(2))

    def project_keys(
        self, x: Float[Tensor, "batch m c"], rope: RotaryTable | None = None
    ) -> tuple[Float[Tensor, "batch m h d"], Float[Tensor, "batch m h d"]]:
        """Keys, normed and rotated, and values of `x` alone: with `attend_to`, attention piece by piece.

        Args:
            x: (batch, M, C).
            rope: Table of these M tokens.
        """
        k, v = self._split(x, slice(self.dim, None))
        return self._place(self.k_norm(k), rope).to(v.dtype), v

    def attend_to(
        self,
        x: Float[Tensor, "batch n c"],
        keys: Float[Tensor, "batch m h d"],
        values: Float[Tensor, "batch m h d"],
        *,
        rope: RotaryTable | None = None,
        mask: Bool[Tensor, "#batch #heads #n #m"] | None = None,
    ) -> Float[Tensor, "batch n c"]:
        """Let the queries of `x` attend to what `project_keys` gave; `rope` is the table of these N tokens."""
        (q,) = self._split(x, slice(0, self.dim))
        q = self._place(self.q_norm(q), rope).to(values.dtype)
        out = self.attend(q.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), mask)
        return self.out(out.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor, rows: slice | None = None) -> tuple[Tensor, ...]:
        """All or some rows of the packed projection, which are all of q, then k, then v; (batch, N, H, D) each."""
        if rows is None:
            projected = self.qkv(x)
        elif getattr(type(self.qkv), "forward", None) is nn.Linear.forward:  # parametrised ones, too
            projected = nn.functional.linear(x, self.qkv.weight[rows], self.qkv.bias[rows])
        else:  # what stands in for it, an adapter of another library for instance, may not be cut
            projected = self.qkv(x)[..., rows]
        return tuple(t.unflatten(-1, (self.num_heads, -1)) for t in projected.split(self.dim, dim=-1))

    def _place(self, x: Tensor, rope: RotaryTable | None) -> Tensor:
        return x if rope is None else apply_rotary(x, rope.over_heads())

    def start_by_similarity(self, gain: float) -> None:
        """Make queries and keys equal, so that a token attends to what looks like it before anything is learned.

        Random projections attend to everything alike, and small models take long to find out that matching helps
        (mimetic initialization, Trockman & Kolter 2023).

        Args:
            gain: Weight of the norms of queries and keys; larger looks at less.

        Raises:
            ValueError: Without qk-norm.
        """
        if not isinstance(self.q_norm, nn.LayerNorm) or not isinstance(self.k_norm, nn.LayerNorm):
            raise ValueError("qk_norm must be on to start by similarity, got False")
        with torch.no_grad():
            for packed in (self.qkv.weight, self.qkv.bias):
                packed[self.dim : 2 * self.dim] = packed[: self.dim]
            for norm in (self.q_norm, self.k_norm):
                norm.weight.fill_(gain)

    def extra_repr(self) -> str:
        """Name the number of heads and the backend."""
        return f"num_heads={self.num_heads}, backend={self.attend.__name__.removeprefix('attend_')}"
