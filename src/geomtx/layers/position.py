"""Fixed sine-cosine signals of positions. Tables are float32 or better, computed where they are used."""

from __future__ import annotations

import torch
from torch import Tensor

from geomtx.checks import check_divisible
from geomtx.layers.precision import float32_island
from geomtx.types import Float

__all__ = ["aspect_grid", "fourier_features", "grid_signal", "sample_grid_signal", "sincos"]


@float32_island
def sincos(positions: Float[Tensor, "*batch"], dim: int, *, base: float) -> Float[Tensor, "*batch dim"]:
    """[sin, cos] of position · base^(-i / (dim/2)), i = 0 … dim/2 - 1.

    Raises:
        ValueError: If `dim` is odd.
    """
    check_divisible("dim", dim, 2)
    exponents = torch.arange(dim // 2, device=positions.device, dtype=positions.dtype) / (dim // 2)
    angles = positions[..., None] * base**-exponents
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def grid_signal(
    x: Float[Tensor, " w"],
    y: Float[Tensor, " h"],
    dim: int,
    *,
    base: float,
    scale: float = 1.0,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "dim h w"]:
    """Signal of a grid with columns at `x` and rows at `y`: the first half of the channels tells x, the second y.

    Args:
        x: Positions of the columns.
        y: Positions of the rows.
        dim: Channels.
        base: As in `sincos`.
        scale: Times the signal.
        dtype: Of the result; None = that of the positions.

    Returns:
        (dim, H, W), the channels beside each other in memory.

    Raises:
        ValueError: If `dim` is not a multiple of 4.
    """
    check_divisible("dim", dim, 4)
    size = (y.shape[0], x.shape[0], -1)
    # Both axes at once: on a GPU, launching operations takes longer than so small ones do.
    signal = (scale * sincos(torch.cat([x, y]), dim // 2, base=base)).to(dtype or x.dtype)
    of_x, of_y = signal.split([x.shape[0], y.shape[0]])
    return torch.cat([of_x.expand(size), of_y[:, None].expand(size)], dim=-1).permute(2, 0, 1)


@float32_island
def sample_grid_signal(coords: Float[Tensor, "*batch 2"], grid_hw: tuple[int, int], dim: int, *, base: float) -> Tensor:
    """What bilinear sampling of `grid_signal` at (x, y) gives, positions clamped to the grid, without its table.

    The signal is separable, so two one-dimensional interpolations do; a table for a map of 259 x 259 would take 100 MB.

    Args:
        coords: (..., 2) in pixels of a grid of `grid_hw` whose first pixel is at (0, 0).
        grid_hw: Rows and columns.
        dim: Channels, a multiple of 4.
        base: As in `sincos`.

    Returns:
        (..., dim).
    """
    check_divisible("dim", dim, 4)
    signals = []
    for value, size in zip(coords.unbind(-1), (grid_hw[1], grid_hw[0]), strict=True):
        clamped = value.clamp(0, size - 1)
        lower = clamped.floor()
        weight = (clamped - lower)[..., None]
        signals.append(torch.lerp(sincos(lower, dim // 2, base=base), sincos(lower + 1, dim // 2, base=base), weight))
    return torch.cat(signals, dim=-1)


def aspect_grid(map_hw: tuple[int, int], image_hw: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Centred coordinates of a feature map's columns (W,) and rows (H,), scaled so that the image's half diagonal is 1.

    The same point of the image has about the same coordinates at every resolution: the outermost centres lie half a
    step inside the border, s·(size - 1)/size from the middle.
    """
    height, width = image_hw
    aspect = width / height
    diagonal = (aspect * aspect + 1) ** 0.5
    dtype = torch.promote_types(like.dtype, torch.float32)
    axes = []
    for size, extent in ((map_hw[1], aspect / diagonal), (map_hw[0], 1 / diagonal)):
        steps = torch.arange(1 - size, size, 2, device=like.device, dtype=dtype)
        axes.append(steps * (extent / size))
    return axes[0], axes[1]


@float32_island
def fourier_features(coords: Float[Tensor, "*batch 2"], dim: int) -> Float[Tensor, "*batch c"]:
    """Sine and cosine, interleaved, of each coordinate times k · 1000/dim, k = 0, 2, …, dim - 2; of x, then of y.

    Used by trackers on displacements in feature-map pixels (CoTracker, Karaev et al. 2023).

    Returns:
        (..., 2·dim).

    Raises:
        ValueError: If `dim` is odd.
    """
    check_divisible("dim", dim, 2)
    frequencies = torch.arange(0, dim, 2, device=coords.device, dtype=coords.dtype) * (1000.0 / dim)
    angles = coords[..., None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-3)
