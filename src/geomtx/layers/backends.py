"""Scaled dot-product attention backends, resolved once, in a module's constructor.

A backend is a function of q (B, H, N, D), k and v (B, H, M, D) and an optional mask, bool and broadcastable to
(B, H, N, M), True = attend. All return (B, H, N, D) and scale by 1/sqrt(D). Only this file may import xformers.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from geomtx.checks import check_option

__all__ = ["AttentionBackend", "BackendName", "available_backends", "resolve_backend"]

BackendName = Literal["auto", "sdpa", "math", "xformers"]
AttentionBackend = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """PyTorch's fused attention; picks its own kernel."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def attend_math(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """The definition, softmax(q kᵀ / sqrt(D)) v, with its softmax in float32 or better. Needs memory for N x M."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(dim=-1).to(v.dtype) @ v


def attend_xformers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """`xformers.ops.memory_efficient_attention`, which wants (B, N, H, D) and an additive mask of full size."""
    from xformers.ops import memory_efficient_attention

    bias = None
    if mask is not None:
        shape = (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
        # The kernels read the mask in aligned rows of 8, so it is cut out of a padded tensor.
        padded = q.new_zeros(*shape[:3], -(-shape[3] // 8) * 8)
        bias = padded[..., : shape[3]].masked_fill_(~mask, -torch.inf)
    out = memory_efficient_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_bias=bias)
    return out.transpose(1, 2)


_BACKENDS: dict[str, AttentionBackend] = {"sdpa": attend_sdpa, "math": attend_math, "xformers": attend_xformers}


def available_backends() -> dict[str, bool]:
    """Name → whether it can be used in this environment."""
    return {name: name != "xformers" or importlib.util.find_spec("xformers") is not None for name in _BACKENDS}


def resolve_backend(name: BackendName) -> AttentionBackend:
    """The function of a backend's name; "auto" is "sdpa".

    Raises:
        ValueError: For an unknown name.
        ImportError: For a backend that is not installed; the message names the extra that brings it.
    """
    check_option("backend", name, ("auto", *_BACKENDS))
    if name == "auto":
        return attend_sdpa
    if not available_backends()[name]:
        raise ImportError(f'backend "{name}" is not installed; `pip install "geomtx[{name}]"` brings it')
    return _BACKENDS[name]
