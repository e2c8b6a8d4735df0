"""Backends of scaled dot-product attention, resolved by name in a module's constructor.

A backend is a function of queries (B, H, N, D), keys and values (B, H, M, D) and an optional boolean mask,
broadcastable to (B, H, N, M) and True where a query may attend to a key; every query has a key. All return
(B, H, N, D) and scale by 1/sqrt(D). "auto" is PyTorch's own choice of kernel.

Device, precision and head dimension have to suit a backend that is named: what it can't do is an error, never another
kernel. Only masks are left to `attend_sdpa` by backends without masks. Only this file may import xformers and
flash-attention.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from geomtx.checks import check_at_least, check_option

__all__ = ["AttentionBackend", "BackendName", "available_backends", "resolve_backend"]

BackendName = Literal[
    "auto", "math", "sdpa", "sdpa_flash", "sdpa_cudnn", "sdpa_efficient", "xformers", "flash3", "flex"
]
AttentionBackend = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]

# What PyTorch says on different devices when all kernels that are allowed refuse.
_NO_KERNEL = ("No available kernel", "No viable backend")


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attend with PyTorch's fused attention, which picks its own kernel."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def attend_math(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """The definition, softmax(q kᵀ / sqrt(D)) v, with its softmax in float32 or better. Needs memory for N x M."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(dim=-1).to(v.dtype) @ v


def attend_sdpa_flash(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """PyTorch's FlashAttention kernel; with a mask, `attend_sdpa`."""
    return _attend_with(SDPBackend.FLASH_ATTENTION, q, k, v, None) if mask is None else attend_sdpa(q, k, v, mask)


def attend_sdpa_cudnn(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """PyTorch's cuDNN kernel."""
    return _attend_with(SDPBackend.CUDNN_ATTENTION, q, k, v, mask)


def attend_sdpa_efficient(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """PyTorch's memory-efficient kernel."""
    return _attend_with(SDPBackend.EFFICIENT_ATTENTION, q, k, v, mask)


def _attend_with(kernel: SDPBackend, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    try:
        with sdpa_kernel(kernel):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    except RuntimeError as error:
        if not str(error).startswith(_NO_KERNEL):
            raise
        raise ValueError(
            f"q, k and v must suit PyTorch's kernel {kernel.name}, got {q.dtype} on {q.device.type}, "
            f"q {tuple(q.shape)} {'without' if mask is None else 'with'} a mask"
        ) from error


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


def attend_flash3(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """FlashAttention-3's `flash_attn_func`, which wants (B, N, H, D); with a mask, `attend_sdpa`."""
    check_option('dtype of q for backend "flash3"', q.dtype, (torch.float16, torch.bfloat16))
    if mask is not None:
        return attend_sdpa(q, k, v, mask)
    from flash_attn_interface import flash_attn_func

    out = flash_attn_func(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    # Some versions return the logarithms of the sums too.
    return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)


def attend_flex(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """PyTorch's flex attention: compiled on accelerators, else not fused; no gradients on a CPU."""
    if q.device.type == "cpu" or torch.compiler.is_compiling():
        return _attend_flex(q, k, v, mask)
    check_at_least('head dimension for backend "flex"', q.shape[-1], 16)
    return _compiled_flex()(q, k, v, mask)


def _attend_flex(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    if mask is None:
        return flex_attention(q, k, v)

    stretched = mask.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    # Of one pair, at (scene, head, query, key). A lambda: what checks a function's types can't be traced here.
    return flex_attention(q, k, v, score_mod=lambda score, *index: torch.where(stretched[index], score, -torch.inf))


@functools.cache
def _compiled_flex() -> AttentionBackend:
    return torch.compile(_attend_flex)


_BACKENDS: dict[BackendName, AttentionBackend] = {
    "auto": attend_sdpa,
    "math": attend_math,
    "sdpa": attend_sdpa,
    "sdpa_flash": attend_sdpa_flash,
    "sdpa_cudnn": attend_sdpa_cudnn,
    "sdpa_efficient": attend_sdpa_efficient,
    "xformers": attend_xformers,
    "flash3": attend_flash3,
    "flex": attend_flex,
}
# Backends that torch doesn't bring: the module, and where it comes from.
_MODULES = {
    "xformers": ("xformers", '`pip install "geomtx[xformers]"` brings it'),
    "flash3": ("flash_attn_interface", "it is flash_attn_interface of FlashAttention-3, which no extra brings"),
}


def available_backends() -> dict[BackendName, bool]:
    """Name → whether it is installed; what a device can run, `measure_backends` finds out."""
    return {name: _is_installed(name) for name in _BACKENDS if name != "auto"}


def _is_installed(name: BackendName) -> bool:
    return name not in _MODULES or importlib.util.find_spec(_MODULES[name][0]) is not None


def resolve_backend(name: BackendName) -> AttentionBackend:
    """The function of a backend's name.

    Raises:
        ValueError: For an unknown name.
        ImportError: For a backend that is not installed; the message says what brings it.
    """
    check_option("backend", name, _BACKENDS)
    if not _is_installed(name):
        raise ImportError(f'backend "{name}" is not installed; {_MODULES[name][1]}')
    return _BACKENDS[name]
