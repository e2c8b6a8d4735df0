"""Bilinear sampling of feature maps at pixel coordinates."""

from __future__ import annotations

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from geomtx.layers.precision import float32_island
from geomtx.types import Float, Int

__all__ = ["sample_map", "sample_views"]


@float32_island
def sample_map(
    maps: Float[Tensor, "n c h w"],
    coords: Float[Tensor, "n p q 2"],
    *,
    padding_mode: Literal["zeros", "border"] = "border",
) -> Float[Tensor, "n c p q"]:
    """Sample feature maps bilinearly; pixel centres are at integer coordinates.

    A map that is a single pixel wide or high has that pixel's value at every coordinate of the axis.

    Args:
        maps: Feature maps, (N, C, H, W).
        coords: Coordinates (x, y) in pixels of the maps, (N, P, Q, 2).
        padding_mode: Values outside the maps: "zeros", or those of the nearest pixel ("border").

    Returns:
        Samples, (N, C, P, Q), in the wider precision of both arguments, at least float32.
    """
    height, width = maps.shape[-2:]
    x, y = coords.unbind(-1)
    grid = torch.stack([x * (2 / max(width - 1, 1)) - 1, y * (2 / max(height - 1, 1)) - 1], dim=-1)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode=padding_mode, align_corners=True)


@float32_island
def sample_views(
    maps: Float[Tensor, "b s c h w"], view: Int[Tensor, "b n"], coords: Float[Tensor, "b n 2"]
) -> Float[Tensor, "b n c"]:
    """Sample every point bilinearly in one view, with the value of the nearest pixel outside, as in `sample_map`.

    Args:
        maps: Feature maps, (B, S, C, H, W).
        view: Index of every point's view, (B, N), 0 … S - 1.
        coords: Coordinates (x, y) in pixels of the maps, (B, N, 2).

    Returns:
        Samples, (B, N, C), in the wider precision of both, at least float32.
    """
    height, width = maps.shape[-2:]
    x, y = coords[..., 0].clamp(0, width - 1), coords[..., 1].clamp(0, height - 1)
    # NaN stays in the weights of the interpolation; as an index it would abort the process on a GPU.
    left, top = x.floor().nan_to_num(), y.floor().nan_to_num()
    flat = rearrange(maps, "b s c h w -> b (s h w) c")
    sampled = flat.new_zeros(())
    for step_x, step_y in ((0, 0), (1, 0), (0, 1), (1, 1)):
        column, row = (left + step_x).clamp(max=width - 1).long(), (top + step_y).clamp(max=height - 1).long()
        index = ((view * height + row) * width + column)[..., None].expand(-1, -1, flat.shape[-1])
        share = (x - left if step_x else 1 - (x - left)) * (y - top if step_y else 1 - (y - top))
        sampled = sampled + share[..., None] * flat.gather(1, index)
    return sampled
