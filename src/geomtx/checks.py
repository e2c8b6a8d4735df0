"""Argument checks: each raises a ValueError of one line, "NAME must …, got …"."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__ = [
    "check_at_least",
    "check_count",
    "check_divisible",
    "check_finite_positive",
    "check_floating",
    "check_mask",
    "check_option",
    "check_positive",
    "check_range",
    "check_shape",
]


def check_shape(name: str, tensor: Tensor, *shapes: Sequence[int | str]) -> None:
    """Require one of `shapes`; an int is an exact size, a string a free axis, a leading "..." any number of axes.

    Example: `check_shape("images", images, ("S", 3, "H", "W"), ("B", "S", 3, "H", "W"))`.
    """
    if any(_matches(tuple(tensor.shape), tuple(shape)) for shape in shapes):
        return
    wanted = " or ".join("(" + ", ".join(map(str, shape)) + ")" for shape in shapes)
    raise ValueError(f"{name} must have shape {wanted}, got {tuple(tensor.shape)}")


def _matches(got: tuple[int, ...], want: tuple[int | str, ...]) -> bool:
    if want[0] == "...":
        want = want[1:]
        got = got[-len(want) :] if len(got) >= len(want) else ()
    return len(got) == len(want) and all(isinstance(w, str) or g == w for g, w in zip(got, want, strict=True))


def check_floating(name: str, tensor: Tensor) -> None:
    """Require a floating point tensor: bytes in 0 … 255 are no numbers in 0 … 1."""
    if not tensor.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {tensor.dtype}")


def check_mask(name: str, mask: Tensor, *shapes: Sequence[int | str]) -> None:
    """Require a bool tensor of one of `shapes`: of bytes, `~` gives no opposite, and a probability decides nothing."""
    check_shape(name, mask, *shapes)
    if mask.dtype != torch.bool:
        raise ValueError(f"{name} must be bool, got {mask.dtype}")


def check_option(name: str, value: object, options: Iterable[object]) -> None:
    """Require `value` to be one of `options`."""
    options = tuple(options)
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")


def check_positive(name: str, value: float) -> None:
    """Require `value` > 0."""
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")


def check_finite_positive(name: str, value: float) -> None:
    """Require a finite `value` > 0."""
    check_positive(name, value)
    _check_finite(name, value)


def check_at_least(name: str, value: float, low: float) -> None:
    """Require a finite `value` ≥ `low`."""
    if not value >= low:
        raise ValueError(f"{name} must be at least {low:g}, got {value}")
    _check_finite(name, value)


def check_count(name: str, value: int, low: int = 1) -> None:
    """Require a whole number ≥ `low`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"{name} must be a whole number, at least {low}, got {value!r}")


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Require low ≤ value ≤ high."""
    if not low <= value <= high:
        raise ValueError(f"{name} must be in {low:g} … {high:g}, got {value}")


def _check_finite(name: str, value: float) -> None:
    if math.isinf(value):
        raise ValueError(f"{name} must be finite, got {value}")


def check_divisible(name: str, value: float, divisor: int) -> None:
    """Require `value` to be a multiple of `divisor`."""
    if divisor < 1 or value % divisor != 0:
        raise ValueError(f"{name} must be a multiple of {divisor}, got {value}")
