"""Queries, keys and values for attention backends, and how far a backend is from the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from geomtx.layers.backends import AttentionBackend, resolve_backend

# Two scenes, three heads, and lengths that are multiples of nothing.
B, H, N, M = 2, 3, 37, 53
MASKS = {"none": None, "keys": (B, 1, 1, M), "pairs": (1, 1, N, M), "all": (B, H, N, M)}
HEAD_DIMS = (32, 64, 128)


def draw(
    mask: str, head_dim: int, dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """q (B, H, N, D), k and v (B, H, M, D) as modules have them, heads beside each other; and a mask."""
    q = torch.randn(B, N, H, head_dim).to(device, dtype).transpose(1, 2)
    k, v = torch.randn(B, M, 2, H, head_dim).to(device, dtype).transpose(1, 3).unbind(2)
    shape = MASKS[mask]
    if shape is None:
        return q, k, v, None
    allowed = torch.rand(*shape) < 0.6
    allowed[..., 0] = True  # every query sees a key
    return q, k, v, allowed.to(device)


def relative_error(out: Tensor, reference: Tensor) -> float:
    """The largest, relative to the largest number, in units of the precision of `out`."""
    eps = torch.finfo(out.dtype).eps
    return ((out.double() - reference).abs().max() / reference.abs().max() / eps).item()


def forward_error(backend: AttentionBackend, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> float:
    """Against "math" in float64 on the same numbers."""
    with torch.no_grad():
        out = backend(q, k, v, mask)
        assert (out.dtype, out.device) == (q.dtype, q.device)
        return relative_error(out, resolve_backend("math")(q.double(), k.double(), v.double(), mask))


def gradient_errors(
    backend: AttentionBackend, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
) -> dict[str, float]:
    """Of q, k and v, as `forward_error`."""
    weights = torch.randn_like(q)
    gradients = []
    for function, dtype in ((backend, q.dtype), (resolve_backend("math"), torch.float64)):
        leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in (q, k, v)]
        gradients.append(torch.autograd.grad(function(*leaves, mask), leaves, weights.to(dtype)))
    return {name: relative_error(*pair) for name, *pair in zip("qkv", *gradients, strict=True)}
