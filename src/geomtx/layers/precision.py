"""Layers and functions that compute in float32 or better whatever the precision of the model around them.

The last layers of a network, where rounding to bfloat16 would show in a pose or a depth, and all geometry are such
islands of float32: autocast is off inside, half precision is converted to float32, and float64 stays float64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geomtx.types import Float

__all__ = ["Float32Conv2d", "Float32Linear", "at_least_float32", "float32_island"]

P = ParamSpec("P")
R = TypeVar("R")


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half precision to float32; float32 and float64 stay as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def float32_island(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function of tensors so that it computes in float32 or better, also under autocast.

    Half precision can't represent all pixel coordinates of a row, and squares of its numbers underflow or overflow;
    under autocast, matrix products of float32 tensors are computed in half precision. Within the decorated function all
    floating-point tensors among the arguments, also those in tuples, have the widest precision among them, at least
    float32, and autocast is off. Gradients have the precision of each argument.

    Args:
        function: Function of tensors, tuples of tensors and other values.

    Returns:
        Function with the same arguments and results, the results in float32 or better.
    """

    @functools.wraps(function)
    def compute(*args: P.args, **kwargs: P.kwargs) -> R:
        tensors = _floating_tensors([*args, *kwargs.values()])
        if not tensors:
            return function(*args, **kwargs)
        dtype = torch.float32
        for tensor in tensors:
            if tensor.dtype != dtype:
                dtype = torch.promote_types(dtype, tensor.dtype)
        wide: Any = [_widen(value, dtype) for value in args]
        wide_by_name: Any = {name: _widen(value, dtype) for name, value in kwargs.items()}
        device = tensors[0].device.type
        if not torch.amp.is_autocast_available(device):  # such as "meta", whose tensors have no values
            return function(*wide, **wide_by_name)
        with torch.autocast(device, enabled=False):
            return function(*wide, **wide_by_name)

    return compute


def _floating_tensors(values: Iterable[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point():
            found.append(value)
        elif isinstance(value, tuple):
            found += _floating_tensors(value)
    return found


def _widen(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if not isinstance(value, tuple):
        return value
    parts = [_widen(part, dtype) for part in value]
    return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)


class Float32Linear(nn.Linear):
    """`nn.Linear` that computes in float32 or better, whatever the precision of its input and weights."""

    def forward(self, x: Float[Tensor, "*batch c_in"]) -> Float[Tensor, "*batch c_out"]:
        """Return x Wᵀ + b, (..., in_features) → (..., out_features), in float32 or better."""
        with torch.autocast(x.device.type, enabled=False):
            dtype = torch.promote_types(at_least_float32(x).dtype, self.weight.dtype)
            bias = None if self.bias is None else self.bias.to(dtype)
            return F.linear(x.to(dtype), self.weight.to(dtype), bias)


class Float32Conv2d(nn.Conv2d):
    """`nn.Conv2d` that computes in float32 or better, whatever the precision of its input and weights."""

    def forward(self, x: Float[Tensor, "n c_in h w"]) -> Float[Tensor, "n c_out h2 w2"]:
        """Return the convolution, (N, in_channels, H, W) → (N, out_channels, H', W'), in float32 or better."""
        with torch.autocast(x.device.type, enabled=False):
            dtype = torch.promote_types(at_least_float32(x).dtype, self.weight.dtype)
            bias = None if self.bias is None else self.bias.to(dtype)
            return self._conv_forward(x.to(dtype), self.weight.to(dtype), bias)
