"""Rotary position embedding over a 2-D grid (RoFormer, Su et al. 2021; 2-D forms as in VGGT and in DINOv3).

Half of a head's channels are rotated by the row, the other half by the column. The table of cosines and sines is
computed once for a grid, in float32 or better, and passed to every block. Special tokens are not rotated.
`rotary_table` counts patches from 1; `GridRotary` has coordinates from -1 to 1, whatever the number of patches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from geomtx.checks import check_divisible
from geomtx.types import Float, Int, show_shapes

__all__ = ["GridRotary", "RotaryTable", "apply_rotary", "grid_positions", "rotary_table"]


@show_shapes
class RotaryTable(NamedTuple):
    """Cosines and sines of every token's rotation angles, for heads with D channels.

    A pair of channels (a, b) becomes (a cos - b sin, b cos + a sin). The sign of the first term is in the table: the
    `sin` of the first channel of a pair is negated.

    Attributes:
        cos: Cosines, (..., P, D).
        sin: Sines, (..., P, D), negated for the first channel of each pair.
        by_axis: Whether the channels are in two halves, one for each axis of the image, with pairs (i, i + D/4) inside
            each; otherwise the pairs are (i, i + D/2).
    """

    cos: Tensor
    sin: Tensor
    by_axis: bool = True

    def over_heads(self) -> RotaryTable:
        """Return the table with an axis for the heads, (..., P, D) → (..., P, 1, D)."""
        return self._map(lambda each: each.unsqueeze(-2))

    def rows(self, rows: slice | Tensor) -> RotaryTable:
        """Return the table of some tokens, given by a slice or indices, (P, D) → (M, D)."""
        return self._map(lambda each: each[rows])

    def repeat(self, num_grids: int) -> RotaryTable:
        """Return the table of a sequence of `num_grids` equal grids, (P, D) → (num_grids · P, D)."""
        return self._map(lambda each: each.expand(num_grids, -1, -1).flatten(0, 1))

    def _map(self, function: Callable[[Tensor], Tensor]) -> RotaryTable:
        return RotaryTable(function(self.cos), function(self.sin), self.by_axis)


def grid_positions(grid_hw: tuple[int, int], num_special: int, device: torch.device) -> Int[Tensor, "p 2"]:
    """Return the positions (row, column) of a grid's tokens, (num_special + rows · columns, 2).

    Args:
        grid_hw: Numbers of rows and columns of patches; both are counted from 1.
        num_special: Number of special tokens before the patches; their position is (0, 0).
        device: Device of the result.
    """
    rows = torch.arange(1, grid_hw[0] + 1, device=device)
    columns = torch.arange(1, grid_hw[1] + 1, device=device)
    patches = rearrange(torch.stack(torch.meshgrid(rows, columns, indexing="ij")), "xy r q -> (r q) xy")
    return torch.cat([patches.new_zeros(num_special, 2), patches])


def rotary_table(
    positions: Int[Tensor, "*batch p 2"], head_dim: int, *, base: float = 100.0, dtype: torch.dtype = torch.float32
) -> RotaryTable:
    """Return the rotary table of positions.

    Args:
        positions: Positions (row, column) of the tokens, (..., P, 2).
        head_dim: Number of channels D of a head, a multiple of 4.
        base: Base of the frequencies: pair i of an axis is rotated by position · base^(-2i / (D/2)) radians.
        dtype: Type of the table, float32 or better: angles in half precision would be wrong by hundredths of a radian.

    Returns:
        Cosines and sines, (..., P, D) each.

    Raises:
        ValueError: If `head_dim` is not a multiple of 4.
    """
    check_divisible("head_dim", head_dim, 4)
    half = head_dim // 2
    exponents = torch.arange(0, -half, -2, device=positions.device, dtype=dtype) / half
    angles = positions[..., None] * base**exponents  # (..., P, 2, D/4)
    sin = angles.sin()
    halves = ([angles.cos()] * 2, [-sin, sin])  # of the two channels of every pair
    cosines, sines = (torch.cat(half, dim=-1).flatten(-2) for half in halves)
    return RotaryTable(cosines, sines)


def apply_rotary(x: Float[Tensor, "*batch d"], table: RotaryTable) -> Float[Tensor, "*batch d"]:
    """Rotate queries or keys, computed in the table's precision and returned in that of `x`.

    Args:
        x: Queries or keys, (..., D).
        table: Rotary table, broadcastable to `x`: (P, D) for (..., P, D); see `RotaryTable.over_heads` for
            (..., P, heads, D).
    """
    # (..., axis of the image or both, channel of a pair, frequency)
    pairs = x.unflatten(-1, (2 if table.by_axis else 1, 2, -1))
    swapped = pairs.flip(-2).flatten(-3)
    return torch.addcmul(x * table.cos, swapped, table.sin).to(x.dtype)


class GridRotary(nn.Module):
    """Rotary positions of a grid whose longer side reaches from -1 to 1, with stored periods (DINOv3).

    Patch (i, j) of a grid with longer side M is at y = 2 (i + 0.5) / M - 1 and x = 2 (j + 0.5) / M - 1, so that the
    shorter side begins at -1 too. A pair of channels is rotated by 2π y / period or 2π x / period.

    Args:
        head_dim: Number of channels D of a head, a multiple of 4.
        base: Period k of the D/4 of an axis is base^(2k / (D/2)); weights bring periods of their own.

    Raises:
        ValueError: If `head_dim` is not a multiple of 4.
    """

    periods: Tensor

    def __init__(self, head_dim: int, *, base: float = 100.0) -> None:
        super().__init__()
        check_divisible("head_dim", head_dim, 4)
        # On the CPU first: arithmetic on the meta device imports torch._dynamo, which takes as long as importing torch.
        exponents = torch.arange(head_dim // 4, dtype=torch.float32, device="cpu") * (4 / head_dim)
        self.register_buffer("periods", (base**exponents).to(torch.empty(0).device))

    def forward(self, grid_hw: tuple[int, int], num_special: int, dtype: torch.dtype = torch.float32) -> RotaryTable:
        """Return the rotary table of a grid's tokens, (num_special + rows · columns, D).

        Args:
            grid_hw: Numbers of rows and columns of patches.
            num_special: Number of special tokens before the patches, which are not rotated.
            dtype: Type of the table, float32 or better; defaults to float32.
        """
        periods = self.periods.to(dtype)
        longer = torch.sym_max(*grid_hw)
        rows, columns = (
            (torch.arange(size, device=periods.device, dtype=dtype) + 0.5) * (2 / longer) - 1 for size in grid_hw
        )
        size = (grid_hw[0], grid_hw[1], -1)
        both = torch.cat([rows, columns])[:, None] * (2 * math.pi / periods)  # (rows + columns, D/4)
        angles = torch.cat([both[: grid_hw[0], None].expand(size), both[None, grid_hw[0] :].expand(size)], dim=-1)
        angles = nn.functional.pad(angles.flatten(0, 1), (0, 0, num_special, 0))
        sin = angles.sin()
        return RotaryTable(angles.cos().repeat(1, 2), torch.cat([-sin, sin], dim=-1), by_axis=False)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> GridRotary:
        # A model in half precision still rotates by exact angles: its periods are only moved.
        exact = self.periods
        super()._apply(fn, recurse)
        if self.periods.dtype.itemsize < 4:
            self.periods = exact.to(self.periods.device)
        return self
