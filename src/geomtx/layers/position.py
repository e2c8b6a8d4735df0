"""Fixed sine-cosine encodings of positions, computed in float32 or better where they are used."""

from __future__ import annotations

import torch
from torch import Tensor

from geomtx.checks import check_divisible
from geomtx.layers.precision import float32_island
from geomtx.types import Float

__all__ = ["aspect_grid", "fourier_features", "grid_signal", "sample_grid_signal", "sincos"]


@float32_island
def sincos(positions: Float[Tensor, "*batch"], dim: int, *, base: float) -> Float[Tensor, "*batch dim"]:
    """Return [sin, cos] of position · base^(-i / (dim/2)) for i = 0 … dim/2 - 1 (Vaswani et al. 2017, section 3.5).

    Args:
        positions: Positions of any shape, (...).
        dim: Number of channels, even.
        base: Ratio of the largest period to the smallest, which is 2π.

    Returns:
        (..., dim): the sines, then the cosines.

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
    """Return the encoding of a grid: the first half of the channels encodes a cell's x, the second half its y.

    Args:
        x: Positions of the columns, (W,).
        y: Positions of the rows, (H,).
        dim: Number of channels, a multiple of 4.
        base: Base of the frequencies, see `sincos`.
        scale: Factor by which the encoding is multiplied.
        dtype: Type of the result; defaults to that of the positions.

    Returns:
        (dim, H, W), in the memory format channels last.

    Raises:
        ValueError: If `dim` is not a multiple of 4.
    """
    check_divisible("dim", dim, 4)
    size = (y.shape[0], x.shape[0], -1)
    # Both axes are encoded at once: on a GPU, launching operations takes longer than running ones as small as these.
    signal = (scale * sincos(torch.cat([x, y]), dim // 2, base=base)).to(dtype or x.dtype)
    columns, rows = signal.split([x.shape[0], y.shape[0]])
    return torch.cat([columns.expand(size), rows[:, None].expand(size)], dim=-1).permute(2, 0, 1)


@float32_island
def sample_grid_signal(coords: Float[Tensor, "*batch 2"], grid_hw: tuple[int, int], dim: int, *, base: float) -> Tensor:
    """Return what bilinear sampling of `grid_signal` at (x, y) gives, without computing the encoding of the grid.

    The encoding is separable, so two one-dimensional interpolations suffice; that of a 259 x 259 grid would take
    100 MB. Coordinates are clamped to the grid.

    Args:
        coords: Coordinates (x, y), (..., 2), in cells of the grid, whose first cell is at (0, 0).
        grid_hw: Numbers of rows and columns of the grid.
        dim: Number of channels, a multiple of 4.
        base: Base of the frequencies, see `sincos`.

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
    """Return coordinates of a map's columns and rows, centred and scaled so that the image's half diagonal is 1.

    A point of the image has about the same coordinates in maps of every resolution: the outermost centres lie half a
    step inside the border, at s·(size - 1)/size where the border is at s.

    Args:
        map_hw: Height H and width W of the map.
        image_hw: Height and width of what the map covers; only their ratio matters.
        like: Tensor whose device, and whose type if it is float32 or better, the coordinates have.

    Returns:
        Coordinates of the columns, (W,), and of the rows, (H,).
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
    """Return sine and cosine, interleaved, of each coordinate times k · 1000/dim for k = 0, 2, …, dim - 2.

    Trackers encode displacements so (CoTracker, Karaev et al. 2023).

    Args:
        coords: Coordinates (x, y), (..., 2); in trackers, displacements in pixels of the feature maps.
        dim: Number of channels for each coordinate, even.

    Returns:
        (..., 2·dim): the channels of x, then those of y.

    Raises:
        ValueError: If `dim` is odd.
    """
    check_divisible("dim", dim, 2)
    frequencies = torch.arange(0, dim, 2, device=coords.device, dtype=coords.dtype) * (1000.0 / dim)
    angles = coords[..., None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-3)  # (..., axis, frequency, sine or cosine)
