"""Backends of scaled dot-product attention, resolved by name in a module's constructor.

A backend is a function of queries (B, H, N, D), keys and values (B, H, M, D) and an optional boolean mask,
broadcastable to (B, H, N, M) and True where a query may attend to a key; every query has a key. All return
(B, H, N, D) and scale by 1/sqrt(D). "auto" is PyTorch's own choice of kernel.

A backend that was named raises an error for a device, precision or head dimension that it can't handle; it never
falls back to another kernel, except that backends without masks leave masked attention to `attend_sdpa`.
`measure_backends` compares their speed on a device. Only this file may import xformers and flash-attention.
"""

from __future__ import annotations

import functools
import importlib.util
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from geomtx.checks import check_at_least, check_option

__all__ = [
    "CANDIDATES",
    "SHAPES",
    "AttentionBackend",
    "BackendName",
    "BackendTime",
    "available_backends",
    "fastest_backend",
    "measure_backends",
    "resolve_backend",
]

BackendName = Literal[
    "auto", "math", "sdpa", "sdpa_flash", "sdpa_cudnn", "sdpa_efficient", "xformers", "flash3", "flex"
]
AttentionBackend = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]

# Beginnings of the errors that PyTorch raises, on different devices, when no permitted kernel can run.
_NO_KERNEL = ("No available kernel", "No viable backend")


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attend with PyTorch's fused attention, which picks its own kernel."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def attend_math(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attend by the definition, softmax(q kᵀ / sqrt(D)) v, with the softmax in float32 or better and all N x M scores
    in memory.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(dim=-1).to(v.dtype) @ v


def attend_sdpa_flash(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attend with PyTorch's FlashAttention kernel; where there is a mask, with `attend_sdpa`."""
    return _attend_with(SDPBackend.FLASH_ATTENTION, q, k, v, None) if mask is None else attend_sdpa(q, k, v, mask)


def attend_sdpa_cudnn(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attend with PyTorch's cuDNN kernel."""
    return _attend_with(SDPBackend.CUDNN_ATTENTION, q, k, v, mask)


def attend_sdpa_efficient(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attend with PyTorch's memory-efficient kernel."""
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
    """Attend with xformers' memory-efficient attention, which takes (B, N, H, D) and an additive mask of full size."""
    from xformers.ops import memory_efficient_attention

    bias = None
    if mask is not None:
        shape = (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
        # The kernels read the mask in aligned rows of 8, so it is a slice of a padded tensor.
        padded = q.new_zeros(*shape[:3], -(-shape[3] // 8) * 8)
        bias = padded[..., : shape[3]].masked_fill_(~mask, -torch.inf)
    out = memory_efficient_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_bias=bias)
    return out.transpose(1, 2)


def attend_flash3(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attend with FlashAttention-3, which takes (B, N, H, D); where there is a mask, with `attend_sdpa`."""
    check_option('dtype of q for backend "flash3"', q.dtype, (torch.float16, torch.bfloat16))
    if mask is not None:
        return attend_sdpa(q, k, v, mask)
    from flash_attn_interface import flash_attn_func

    out = flash_attn_func(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    # Some versions also return the logarithms of the softmax's denominators.
    return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)


def attend_flex(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attend with PyTorch's flex attention, compiled on accelerators; on a CPU it is not fused and has no gradients."""
    if q.device.type == "cpu" or torch.compiler.is_compiling():
        return _attend_flex(q, k, v, mask)
    check_at_least('head dimension for backend "flex"', q.shape[-1], 16)
    return _compiled_flex()(q, k, v, mask)


def _attend_flex(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    if mask is None:
        return flex_attention(q, k, v)

    stretched = mask.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    # The score of one pair, at (batch, head, query, key). A lambda, as functions whose types are checked at run time
    # can't be traced here.
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
# Backends that are not part of torch: the module, and how it is installed.
_MODULES = {
    "xformers": ("xformers", '`pip install "geomtx[xformers]"` brings it'),
    "flash3": ("flash_attn_interface", "it is flash_attn_interface of FlashAttention-3, which no extra brings"),
}


def available_backends() -> dict[BackendName, bool]:
    """Return whether each backend is installed, by name; `measure_backends` tests which of them run on a device."""
    return {name: _is_installed(name) for name in _BACKENDS if name != "auto"}


def _is_installed(name: BackendName) -> bool:
    return name not in _MODULES or importlib.util.find_spec(_MODULES[name][0]) is not None


def resolve_backend(name: BackendName) -> AttentionBackend:
    """Return the attention function of a backend.

    Args:
        name: Name of the backend.

    Raises:
        ValueError: If the name is unknown.
        ImportError: If the backend is not installed; the message says how to install it.
    """
    check_option("backend", name, _BACKENDS)
    if not _is_installed(name):
        raise ImportError(f'backend "{name}" is not installed; {_MODULES[name][1]}')
    return _BACKENDS[name]


CANDIDATES: tuple[BackendName, ...] = ("sdpa", "sdpa_flash", "sdpa_cudnn", "sdpa_efficient", "xformers", "flash3")
"""Backends to compare: without "math", which stores all scores, and "flex", which compiles for many seconds."""
SHAPES: tuple[tuple[int, int], ...] = ((8, 1024), (1, 8192))
"""Numbers of sequences and of tokens in each: eight short sequences, and one that is as long as all of them."""

_ROUNDS, _CALLS = 3, 4
_GAIN = 0.95  # largest share of the time of "sdpa" that counts as faster: smaller differences vary from run to run
_ROUNDING = 8.0  # largest relative difference from "sdpa", in units of the type's epsilon


class BackendTime(NamedTuple):
    """Time of one call of a backend.

    Attributes:
        milliseconds: Time in milliseconds; None where the backend could not be measured.
        problem: Reason for which it could not be measured; None where it was.
    """

    milliseconds: float | None
    problem: str | None


@torch.no_grad()
def measure_backends(
    device: torch.device,
    dtype: torch.dtype,
    *,
    head_dim: int,
    num_tokens: int,
    num_heads: int = 16,
    num_sequences: int = 1,
    names: Sequence[BackendName] = CANDIDATES,
) -> dict[BackendName, BackendTime]:
    """Time self-attention, forward and without a mask, with each backend.

    Args:
        device: Device to run on.
        dtype: Type of queries, keys and values, which are views of one tensor, as in `Attention`.
        head_dim: Number of channels D of a head.
        num_tokens: Number of tokens N of a sequence.
        num_heads: Number of heads H.
        num_sequences: Number of sequences B.
        names: Names of the backends; defaults to `CANDIDATES`.

    Returns:
        For each name the smallest time of a call, or the problem where the backend isn't installed, fails with such
        tensors, or differs from "sdpa" by more than rounding.
    """
    generator = torch.Generator(device).manual_seed(0)  # the caller's random numbers stay as they are
    shape = (num_sequences, num_tokens, 3, num_heads, head_dim)
    packed = torch.randn(shape, generator=generator, device=device, dtype=dtype)
    q, k, v = packed.transpose(1, 3).unbind(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns of every kernel that refuses
        return {name: _measure(name, q, k, v) for name in names}


def fastest_backend(times: dict[BackendName, BackendTime]) -> BackendName:
    """Return the name of the fastest measured backend: "sdpa" unless another one is at least 5 % faster.

    Args:
        times: Result of `measure_backends`.
    """
    # Where "sdpa" could not be measured, no backend is known to be faster.
    sdpa = times.get("sdpa")
    reference = 0.0 if sdpa is None else sdpa.milliseconds or 0.0
    known = [(each.milliseconds, name) for name, each in times.items() if each.milliseconds is not None]
    least, best = min(known, default=(0.0, "sdpa"))
    return best if least < _GAIN * reference else "sdpa"


def _measure(name: BackendName, q: Tensor, k: Tensor, v: Tensor) -> BackendTime:
    try:
        attend = resolve_backend(name)
        out = attend(q, k, v, None)
        expected = resolve_backend("sdpa")(q, k, v, None)
        error = (out.float() - expected.float()).square().mean().sqrt()
        if not error <= _ROUNDING * torch.finfo(q.dtype).eps * expected.float().square().mean().sqrt():
            return BackendTime(None, "differs from sdpa")
        return BackendTime(_milliseconds(lambda: attend(q, k, v, None), q.device), None)
    except Exception as error:  # other packages raise errors of any type
        return BackendTime(None, (str(error).splitlines() or [type(error).__name__])[0])


def _milliseconds(run: Callable[[], object], device: torch.device) -> float:
    """Return the smallest time of a call in several rounds, each of several calls, as waiting takes time too."""
    rounds = []
    for _ in range(_ROUNDS):
        _wait(device)
        start = time.perf_counter()
        for _ in range(_CALLS):
            run()
        _wait(device)
        rounds.append((time.perf_counter() - start) / _CALLS)
    return 1e3 * min(rounds)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
