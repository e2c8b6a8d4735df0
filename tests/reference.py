"""The mathematics written a second time, from the formulas, for tests to compare with."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / sqrt(D)) v over (B, H, N, D), True in the mask = attend."""
    scores = torch.einsum("bhnd,bhmd->bhnm", q, k) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = torch.where(mask, scores, -torch.inf)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return torch.einsum("bhnm,bhmd->bhnd", weights / weights.sum(-1, keepdim=True), v)


def normalize(x: Tensor, weight: Tensor | float = 1.0, bias: Tensor | float = 0.0, *, eps: float = 1e-5) -> Tensor:
    """LayerNorm over the last axis."""
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).square().mean(-1, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * weight + bias


def gelu(x: Tensor) -> Tensor:
    """x Φ(x)."""
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """2-D rotary positions with complex numbers: x (..., P, D), positions (P, 2) as (row, column)."""
    half = x.shape[-1] // 2
    frequencies = base ** (-torch.arange(half // 2, dtype=torch.float64) * 2 / half)
    out = []
    for axis, part in enumerate(x.split(half, dim=-1)):
        turns = torch.polar(torch.ones(half // 2).double(), positions[:, axis, None].double() * frequencies)
        turned = torch.complex(part[..., : half // 2], part[..., half // 2 :]) * turns
        out += [turned.real, turned.imag]
    return torch.cat(out, dim=-1)


def self_attention(
    x: Tensor,
    qkv: tuple[Tensor, Tensor],
    out: tuple[Tensor, Tensor],
    num_heads: int,
    *,
    context: Tensor | None = None,
    mask: Tensor | None = None,
    change: Callable[[Tensor, str], Tensor] = lambda heads, _: heads,
) -> Tensor:
    """Attention with packed projections; `change` gets queries and keys, (B, H, N, D), and "q" or "k"."""
    dim = x.shape[-1]
    heads = {}
    for index, name in enumerate("qkv"):
        weight, bias = (p.reshape(3, dim, *p.shape[1:])[index] for p in qkv)
        source = x if name == "q" or context is None else context
        projected = torch.einsum("bnc,dc->bnd", source, weight) + bias
        heads[name] = projected.reshape(*projected.shape[:2], num_heads, dim // num_heads).permute(0, 2, 1, 3)
    result = attend(change(heads["q"], "q"), change(heads["k"], "k"), heads["v"], mask)
    return torch.einsum("bhnd,chd->bnc", result, out[0].reshape(dim, num_heads, -1)) + out[1]


def bilinear(maps: Tensor, x: float, y: float) -> Tensor:
    """Value of a map (C, H, W) at one position, pixel centres at integers, zero outside; an axis of one is constant."""
    height, width = maps.shape[-2:]
    x, y = (0.0 if width == 1 else x), (0.0 if height == 1 else y)
    total = maps.new_zeros(maps.shape[0])
    for column in (math.floor(x), math.floor(x) + 1):
        for row in (math.floor(y), math.floor(y) + 1):
            if 0 <= column < width and 0 <= row < height:
                total = total + maps[:, row, column] * (1 - abs(x - column)) * (1 - abs(y - row))
    return total


def relative_error(ours: Tensor, reference: Tensor) -> float:
    """||ours - reference|| / ||reference||."""
    assert ours.shape == reference.shape
    return ((ours.double() - reference.double()).norm() / reference.double().norm().clamp(min=1e-30)).item()


def randomize(module: nn.Module, scale: float = 0.3) -> nn.Module:
    """Move every parameter off its initial value, so that a wrong use of any of them shows."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.randn_like(parameter) / max(1, math.prod(parameter.shape[1:])) ** 0.5
    return module


def without_gradient(module: nn.Module) -> list[str]:
    """Names of parameters that a backward pass left without a gradient, with a zero or a non-finite one."""
    return [
        name
        for name, parameter in module.named_parameters()
        if parameter.numel()
        and (parameter.grad is None or not parameter.grad.isfinite().all() or not parameter.grad.any())
    ]


def named_tensors(value: object, name: str = "") -> dict[str, Tensor]:
    """Tensors of nested named tuples and dicts by their dotted names; None is left out."""
    if isinstance(value, Tensor):
        return {name: value}
    if value is None:
        return {}
    found = {}
    for field, part in (value if isinstance(value, dict) else value._asdict()).items():
        found.update(named_tensors(part, f"{name}.{field}".lstrip(".")))
    return found
