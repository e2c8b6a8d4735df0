"""Rotary position embedding over a 2-D grid (RoFormer, Su et al. 2021; 2-D form as in VGGT).

Half of a head's channels are rotated by the row, the other half by the column. The table of cosines and sines is
computed once for a grid, in float32 or better, and passed to every block. Special tokens have the position (0, 0),
which is no rotation, and patches are counted from 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from geomtx.checks import check_divisible
from geomtx.types import Float, Int, show_shapes

__all__ = ["RotaryTable", "apply_rotary", "grid_positions", "rotary_table"]


@show_shapes
class RotaryTable(NamedTuple):
    """Cosines and sines of every token's rotation angles, for heads with D channels.

    A pair of channels (a, b) becomes (a cos - b sin, b cos + a sin). The sign of the first term is in the table: the
    `sin` of the first channel of a pair is negated.

    Attributes:
        cos: Cosines, (..., P, D).
        sin: Sines, (..., P, D), negated for the first channel of each pair.
    """

    cos: Tensor
    sin: Tensor

    def over_heads(self) -> RotaryTable:
        """Return the table with an axis for the heads, (..., P, D) → (..., P, 1, D)."""
        return RotaryTable(self.cos.unsqueeze(-2), self.sin.unsqueeze(-2))

    def rows(self, rows: slice | Tensor) -> RotaryTable:
        """Return the table of some tokens, given by a slice or indices, (P, D) → (M, D)."""
        return RotaryTable(self.cos[rows], self.sin[rows])

    def repeat(self, num_grids: int) -> RotaryTable:
        """Return the table of a sequence of `num_grids` equal grids, (P, D) → (num_grids · P, D)."""
        return RotaryTable(*(table.expand(num_grids, -1, -1).flatten(0, 1) for table in self))


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
    return RotaryTable(*(torch.cat(half, dim=-1).flatten(-2) for half in halves))


def apply_rotary(x: Float[Tensor, "*batch d"], table: RotaryTable) -> Float[Tensor, "*batch d"]:
    """Rotate queries or keys, computed in the table's precision and returned in that of `x`.

    Args:
        x: Queries or keys, (..., D).
        table: Rotary table, broadcastable to `x`: (P, D) for (..., P, D); see `RotaryTable.over_heads` for
            (..., P, heads, D).
    """
    pairs = x.unflatten(-1, (2, 2, -1))  # (..., axis of the image, channel of a pair, frequency)
    swapped = pairs.flip(-2).flatten(-3)
    return torch.addcmul(x * table.cos, swapped, table.sin).to(x.dtype)
