"""Bilinear sampling of feature maps at pixel coordinates."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from geomtx.types import Float

__all__ = ["sample_map"]


def sample_map(
    maps: Float[Tensor, "n c h w"],
    coords: Float[Tensor, "n p q 2"],
    *,
    padding_mode: Literal["zeros", "border"] = "border",
) -> Float[Tensor, "n c p q"]:
    """Sample maps at (x, y) in their own pixels, pixel centres at integers.

    An axis of a single pixel has that one value at every coordinate.

    Args:
        maps: (N, C, H, W).
        coords: (N, P, Q, 2).
        padding_mode: What lies outside: zeros, or the nearest pixel.
    """
    height, width = maps.shape[-2:]
    x, y = coords.unbind(-1)
    grid = torch.stack([x * (2 / max(width - 1, 1)) - 1, y * (2 / max(height - 1, 1)) - 1], dim=-1)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode=padding_mode, align_corners=True)
