"""Numbers and names as short text."""

from __future__ import annotations

import math

__all__ = ["count", "describe_lengths", "format_value", "round_length", "shorten"]


def count(number: int, noun: str) -> str:
    """Return a number with its noun: "1 view", "10 000 points"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}".replace(",", " ")


def describe_lengths(units: str) -> str:
    """Return what lengths are in, by the units of a scene: "lengths in metres", "lengths up to scale"."""
    return f"lengths {units}" if units == "up to scale" else f"lengths in {units}"


def format_value(value: float) -> str:
    """Return three significant digits, without an exponent where that stays short."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if value else "0"
    return f"{value:.2e}"


def round_length(length: float) -> float:
    """Return the largest 1, 2 or 5 times a power of ten that is at most `length`."""
    power = 10.0 ** math.floor(math.log10(length))
    return max(step for step in (1, 2, 5) if step * power <= length * (1 + 1e-9)) * power


def shorten(text: str, length: int) -> str:
    """Return a text of at most `length` characters (at least 3); a longer one loses its middle."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 2
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"
