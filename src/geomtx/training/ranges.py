"""Checks of numbers."""

from __future__ import annotations

__all__ = ["check_at_least", "check_range"]


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Require low ≤ value ≤ high."""
    if not low <= value <= high:
        raise ValueError(f"{name} must be in {low:g} … {high:g}, got {value}")


def check_at_least(name: str, value: float, low: float) -> None:
    """Require value ≥ low."""
    if not value >= low:
        raise ValueError(f"{name} must be at least {low:g}, got {value}")
