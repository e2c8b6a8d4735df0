"""Multi-head attention of tokens over themselves or over a context."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from geomtx.checks import check_divisible
from geomtx.layers.backends import AttentionBackend, BackendName, resolve_backend
from geomtx.layers.rope import RotaryTable, apply_rotary
from geomtx.types import Bool, Float

__all__ = ["Attention", "CrossAttention", "MaskedBiasLinear", "key_mask"]


def key_mask(mask: Bool[Tensor, "batch n"]) -> Bool[Tensor, "batch 1 1 n"]:
    """Return the attention mask, (batch, 1, 1, N), of sequences in which only valid tokens are keys.

    In a sequence without any valid token all tokens are keys: its outputs have no meaning and aren't read, but they
    stay finite.

    Args:
        mask: Mask of the valid tokens, (batch, N) bool.
    """
    return (mask | ~mask.any(dim=-1, keepdim=True))[:, None, None, :]


class MaskedBiasLinear(nn.Linear):
    """`nn.Linear` whose bias is multiplied by a stored mask of zeros and ones (DINOv3).

    Args:
        in_features: Number of channels of the input.
        out_features: Number of channels of the output.
        device: Device of the parameters; defaults to torch's.
        dtype: Type of the parameters; defaults to torch's.
    """

    bias_mask: Tensor

    def __init__(self, in_features: int, out_features: int, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__(in_features, out_features, device=device, dtype=dtype)
        self.register_buffer("bias_mask", torch.ones(out_features, device=device, dtype=dtype))

    @property
    def masked_bias(self) -> Float[Tensor, " c_out"]:
        """Bias times mask, (out_features,)."""
        return self.bias * self.bias_mask.to(self.bias.dtype)

    def forward(self, x: Float[Tensor, "*batch c_in"]) -> Float[Tensor, "*batch c_out"]:
        """Return x Wᵀ + mask · b, (..., in_features) → (..., out_features)."""
        return nn.functional.linear(x, self.weight, self.masked_bias)


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017) with one packed projection for queries, keys and values.

    The steps of `forward` are public, for attention whose keys and values come from elsewhere (fewer tokens, other
    processes, a cache): `project_keys`, `project_queries` and `attend`.

    Args:
        dim: Number of channels C of the tokens.
        num_heads: Number of attention heads; must divide `dim`.
        qk_norm: Whether to apply a LayerNorm over each head's channels to queries and keys (Dehghani et al. 2023),
            before the rotation by position.
        masked_bias: Whether the bias of the projection has a stored mask, see `MaskedBiasLinear`. It starts with ones
            but for the keys, whose bias only matters with `qk_norm`.
        backend: Name of the attention backend, see `geomtx.layers.backends`.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, or the backend's name is unknown.
        ImportError: If the backend is not installed.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qk_norm: bool = False,
        masked_bias: bool = False,
        backend: BackendName = "auto",
    ) -> None:
        super().__init__()
        check_divisible(f"dim (for {num_heads} heads)", dim, num_heads)
        self.dim = dim
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.backend: AttentionBackend = resolve_backend(backend)
        self.qkv: nn.Linear = (MaskedBiasLinear if masked_bias else nn.Linear)(dim, 3 * dim)
        if isinstance(self.qkv, MaskedBiasLinear):
            self.qkv.bias_mask[dim : 2 * dim] = 0
        self.q_norm = nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity()
        self.out = nn.Linear(dim, dim)

    def forward(
        self,
        x: Float[Tensor, "batch n c"],
        context: Float[Tensor, "batch m c"] | None = None,
        *,
        rope: RotaryTable | None = None,
        context_rope: RotaryTable | None = None,
        mask: Bool[Tensor, "#batch #heads #n #m"] | None = None,
        core: AttentionBackend | None = None,
    ) -> Float[Tensor, "batch n c"]:
        """Let every token attend to the tokens of `x`, or to those of `context`.

        Args:
            x: Tokens that attend, (batch, N, C).
            context: Tokens that keys and values are made of, (batch, M, C); defaults to `x`.
            rope: Rotary table of the N tokens of `x`; defaults to no rotation.
            context_rope: Rotary table of the M tokens of `context`; defaults to no rotation.
            mask: Boolean mask, broadcastable to (batch, heads, N, M), True where a query may attend to a key.
                `key_mask` makes one from a mask of tokens. Defaults to all pairs.
            core: Function that computes attention from queries, keys and values; defaults to the module's backend.
        """
        if context is None:
            q, k, v = self.project(x, rope)
        else:
            q, (k, v) = self.project_queries(x, rope), self.project_keys(context, context_rope)
        return self.attend(q, k, v, mask=mask, core=core)

    def project(
        self, x: Float[Tensor, "batch n c"], rope: RotaryTable | None = None
    ) -> tuple[Float[Tensor, "batch n h d"], Float[Tensor, "batch n h d"], Float[Tensor, "batch n h d"]]:
        """Return queries, keys and values of the same tokens, from one matrix product.

        Args:
            x: Tokens, (batch, N, C).
            rope: Rotary table of the N tokens; defaults to no rotation.

        Returns:
            Queries and keys, normalised and rotated, and values, each (batch, N, heads, D).
        """
        # (batch, N, 3, H, D): heads stay beside each other in memory, as the fused kernels read and write them.
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = apply_rotary(torch.stack([q, k]), rope.over_heads())
        # Under autocast the norms return float32; the values have the precision of the product.
        return q.to(v.dtype), k.to(v.dtype), v

    def project_queries(
        self, x: Float[Tensor, "batch n c"], rope: RotaryTable | None = None
    ) -> Float[Tensor, "batch n h d"]:
        """Return the queries of tokens, normalised and rotated, (batch, N, heads, D).

        Args:
            x: Tokens, (batch, N, C).
            rope: Rotary table of the N tokens; defaults to no rotation.
        """
        q = self._project_rows(x, slice(0, self.dim)).unflatten(-1, (self.num_heads, -1))
        return _rotate(self.q_norm(q), rope).to(q.dtype)

    def project_keys(
        self, x: Float[Tensor, "batch m c"], rope: RotaryTable | None = None
    ) -> tuple[Float[Tensor, "batch m h d"], Float[Tensor, "batch m h d"]]:
        """Return the keys, normalised and rotated, and the values of tokens, (batch, M, heads, D) each.

        Args:
            x: Tokens, (batch, M, C).
            rope: Rotary table of the M tokens; defaults to no rotation.
        """
        k, v = self._project_rows(x, slice(self.dim, None)).unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        return _rotate(self.k_norm(k), rope).to(v.dtype), v

    def attend(
        self,
        q: Float[Tensor, "batch n h d"],
        k: Float[Tensor, "batch m h d"],
        v: Float[Tensor, "batch m h d"],
        *,
        mask: Bool[Tensor, "#batch #heads #n #m"] | None = None,
        core: AttentionBackend | None = None,
    ) -> Float[Tensor, "batch n c"]:
        """Return softmax(q kᵀ / √D) v of every head, concatenated and projected to C channels.

        Args:
            q: Queries, (batch, N, heads, D).
            k: Keys, (batch, M, heads, D).
            v: Values, (batch, M, heads, D).
            mask: Attention mask, as for `forward`.
            core: Function that computes attention, as for `forward`.
        """
        out = (core or self.backend)(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask)
        return self.out(out.transpose(1, 2).flatten(2))

    def _project_rows(self, x: Tensor, rows: slice) -> Tensor:
        """Multiply by some rows of the packed projection, whose rows are those of q, then of k, then of v."""
        # Also where LoRA parametrises the weight.
        if getattr(type(self.qkv), "forward", None) in (nn.Linear.forward, MaskedBiasLinear.forward):
            bias = self.qkv.masked_bias if isinstance(self.qkv, MaskedBiasLinear) else self.qkv.bias
            return nn.functional.linear(x, _cut(self.qkv.weight, rows), bias[rows])
        # A layer of another library in its place, for instance an adapter, can only be called with all its rows.
        return self.qkv(x)[..., rows]

    def start_by_similarity(self, gain: float) -> None:
        """Initialise queries and keys alike, so that a token attends to similar tokens before training.

        With independent random projections attention starts uniform, and small models take long to leave that state
        (mimetic initialization, Trockman & Kolter 2023).

        Args:
            gain: Initial weight of the LayerNorms of queries and keys; a larger gain makes attention sharper.

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
        """Return the number of heads and the backend's name, for `repr`."""
        return f"num_heads={self.num_heads}, backend={self.backend.__name__.removeprefix('attend_')}"


class CrossAttention(Attention):
    """Multi-head attention over a context, with a projection each for queries, keys and values (CroCo).

    Args:
        dim: Number of channels C of the tokens and of the context.
        num_heads: Number of attention heads; must divide `dim`.
        backend: Name of the attention backend, see `geomtx.layers.backends`.

    Raises:
        ValueError: As `Attention`.
        ImportError: If the backend is not installed.
    """

    def __init__(self, dim: int, num_heads: int, *, backend: BackendName = "auto") -> None:
        super().__init__(dim, num_heads, backend=backend)
        del self.qkv
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)

    def project(
        self, x: Float[Tensor, "batch n c"], rope: RotaryTable | None = None
    ) -> tuple[Float[Tensor, "batch n h d"], Float[Tensor, "batch n h d"], Float[Tensor, "batch n h d"]]:
        """Return queries, keys and values of the same tokens, as `Attention.project`.

        Args:
            x: Tokens, (batch, N, C).
            rope: Rotary table of the N tokens; defaults to no rotation.
        """
        return self.project_queries(x, rope), *self.project_keys(x, rope)

    def _project_rows(self, x: Tensor, rows: slice) -> Tensor:
        if rows.start == 0:
            return self.query(x)
        return torch.cat([self.key(x), self.value(x)], dim=-1)


def _rotate(x: Tensor, rope: RotaryTable | None) -> Tensor:
    return x if rope is None else apply_rotary(x, rope.over_heads())


def _cut(weight: Tensor, rows: slice) -> Tensor:
    if type(weight) is nn.Parameter or not torch.is_inference_mode_enabled():
        return weight[rows]
    # Tensor subclasses, for instance quantised weights, can't be sliced in inference mode.
    with torch.inference_mode(False), torch.no_grad():
        return weight[rows]
