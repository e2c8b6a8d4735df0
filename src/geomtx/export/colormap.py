"""Numbers as colours."""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np

__all__ = ["ColormapName", "color_table", "colorize"]

ColormapName = Literal["turbo", "viridis", "hot"]
_INVALID = 236  # light grey, which no map contains


@functools.cache
def color_table(name: ColormapName) -> np.ndarray:
    """(256, 3) uint8, from the low to the high end."""
    from kornia.color import ColorMap  # slow to import

    colors = ColorMap(name, num_colors=256).colors
    return (colors.clamp(0, 1) * 255).round().byte().T.contiguous().numpy()


def colorize(values: np.ndarray, value_range: tuple[float, float], name: ColormapName) -> np.ndarray:
    """(H, W) → (H, W, 3) uint8; clipped to the range, light grey where not finite."""
    low, high = value_range
    finite = np.isfinite(values)
    unit = (np.where(finite, values, low) - low) / max(high - low, 1e-12)
    colors = color_table(name)[(unit.clip(0, 1) * 255).round().astype(np.uint8)]
    return np.where(finite[..., None], colors, np.uint8(_INVALID))
