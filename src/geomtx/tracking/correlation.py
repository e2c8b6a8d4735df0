"""Bilinear sampling of feature maps, and correlation of track features with windows of a feature pyramid (RAFT,
Teed & Deng 2020; CoTracker).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from geomtx.layers.precision import at_least_float32, float32_island
from geomtx.types import Float, Int

__all__ = [
    "build_pyramid",
    "correlate",
    "sample_map",
    "sample_views",
]


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


def build_pyramid(features: Float[Tensor, "n c h w"], num_levels: int) -> list[Tensor]:
    """Return the levels of a feature pyramid: the maps, then each level averaged over 2x2 pixels.

    Args:
        features: Feature maps, (N, C, H, W); an odd last row or column of a level is dropped in the next.
        num_levels: Number of levels, the maps themselves included.

    Raises:
        ValueError: If the maps are too small for the number of levels.
    """
    smallest = 2 ** (num_levels - 1)
    if min(features.shape[-2:]) < smallest:
        raise ValueError(
            f"features must have at least {smallest} pixels a side for {num_levels} levels, "
            f"got {tuple(features.shape[-2:])}; use larger images"
        )
    levels = [features]
    for _ in range(num_levels - 1):
        levels.append(F.avg_pool2d(levels[-1], kernel_size=2, stride=2))
    return levels


def correlate(
    pyramid: Sequence[Tensor],
    targets: Float[Tensor, "n t c"],
    coords: Float[Tensor, "n t 2"],
    *,
    radius: int,
) -> Float[Tensor, "n t k"]:
    """Correlate each target with a window of every level around its coordinates: dot products divided by sqrt(C).

    Sampling is linear, so the features of the window are sampled and then multiplied; no correlation volume over all
    locations is stored. It is computed in the precision of the coordinates, float32 or better, also under autocast.

    Args:
        pyramid: Levels of feature maps, (N, C, H/2^l, W/2^l).
        targets: Features of T tracks, (N, T, C).
        coords: Coordinates (x, y) in pixels of level 0, (N, T, 2).
        radius: Radius of the window in pixels of each level.

    Returns:
        Correlations, (N, T, levels · (2·radius + 1)²), level by level; entry a·(2·radius + 1) + b of a window is at
        (x + a - radius, y + b - radius). They are zero outside the maps.
    """
    coords = at_least_float32(coords)  # half precision can't represent all pixel coordinates of a row
    with torch.autocast(coords.device.type, enabled=False):
        return _correlate(pyramid, targets.to(coords.dtype), coords, radius)


def _correlate(pyramid: Sequence[Tensor], targets: Tensor, coords: Tensor, radius: int) -> Tensor:
    steps = torch.arange(-radius, radius + 1, device=coords.device, dtype=coords.dtype)
    window = torch.cartesian_prod(steps, steps)
    scaled = targets * targets.shape[-1] ** -0.5
    correlations = []
    for level, maps in enumerate(pyramid):
        around = (coords / 2**level)[:, :, None] + window
        sampled = sample_map(maps, around, padding_mode="zeros").to(scaled.dtype)
        correlations.append(torch.einsum("ntc,nctk->ntk", scaled, sampled))
    return torch.cat(correlations, dim=-1)
