"""Argument checks: each raises a ValueError of one line, "NAME must …, got …"."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

__all__ = ["check_divisible", "check_option", "check_positive", "check_shape"]


def check_shape(name: str, tensor: Tensor, *shapes: Sequence[int | str]) -> None:
    """Require one of `shapes`; an int is an exact size, a string names a free axis.

    Example: `check_shape("images", images, ("S", 3, "H", "W"), ("B", "S", 3, "H", "W"))`.
    """
    for shape in shapes:
        if tensor.ndim == len(shape) and all(
            isinstance(want, str) or got == want for got, want in zip(tensor.shape, shape, strict=True)
        ):
            return
    wanted = " or ".join("(" + ", ".join(map(str, shape)) + ")" for shape in shapes)
    raise ValueError(f"{name} must have shape {wanted}, got {tuple(tensor.shape)}")


def check_option(name: str, value: object, options: Iterable[object]) -> None:
    """Require `value` to be one of `options`."""
    options = tuple(options)
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")


def check_positive(name: str, value: float) -> None:
    """Require `value` > 0."""
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")


def check_divisible(name: str, value: int, divisor: int) -> None:
    """Require `value` to be a multiple of `divisor`."""
    if value % divisor != 0:
        raise ValueError(f"{name} must be a multiple of {divisor}, got {value}")
