"""Checks of numbers."""

from __future__ import annotations

__all__ = ["check_range"]


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Require low ≤ value ≤ high."""
    if not low <= value <= high:
        raise ValueError(f"{name} must be in {low:g} … {high:g}, got {value}")
