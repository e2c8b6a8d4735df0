"""Rotary positions over a 2-D grid (RoFormer, Su et al. 2021; 2-D form as in VGGT).

Half of the head dimension turns with the row, the other half with the column. The table is data: it is computed once
a grid, in float32 or better, and passed to every block. The position (0, 0) is the identity; special tokens have it,
and patches count from 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.checks import check_divisible
from geomtx.types import Float, Int, show_shapes

__all__ = ["RotaryTable", "apply_rotary", "grid_positions", "rotary_table"]


@show_shapes
class RotaryTable(NamedTuple):
    """cos and sin of every token's angles, each (..., P, D) for heads of dimension D.

    A pair of channels (a, b) becomes (a cos - b sin, b cos + a sin); the sign of the first is in the table: its `sin`
    is negative.
    """

    cos: Tensor
    sin: Tensor

    def over_heads(self) -> RotaryTable:
        """(..., P, 1, D), for tokens of which each has several heads."""
        return RotaryTable(self.cos.unsqueeze(-2), self.sin.unsqueeze(-2))

    def rows(self, rows: slice | Tensor) -> RotaryTable:
        """The table of some tokens, (P, D) → (M, D)."""
        return RotaryTable(self.cos[rows], self.sin[rows])

    def repeat(self, num_views: int) -> RotaryTable:
        """The table of `num_views` views in one sequence, from the table of one, (P, D) → (S·P, D)."""
        return RotaryTable(*(t.expand(num_views, -1, -1).flatten(0, 1) for t in self))


def grid_positions(grid_hw: tuple[int, int], num_special: int, device: torch.device) -> Int[Tensor, "p 2"]:
    """(row, column) of `num_special` special tokens, all (0, 0), then of the patches, counted from 1."""
    rows = torch.arange(1, grid_hw[0] + 1, device=device)
    columns = torch.arange(1, grid_hw[1] + 1, device=device)
    patches = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)
    return torch.cat([patches.new_zeros(num_special, 2), patches])


def rotary_table(
    positions: Int[Tensor, "*batch p 2"], head_dim: int, *, base: float = 100.0, dtype: torch.dtype = torch.float32
) -> RotaryTable:
    """Table of (row, column) positions.

    Args:
        positions: (..., P, 2).
        head_dim: D, a multiple of 4.
        base: Pair i of an axis turns by base^(-2i / (D/2)) radians a step.
        dtype: Of the table, float32 or better: half-precision tables are off by hundredths.

    Raises:
        ValueError: If `head_dim` is not a multiple of 4.
    """
    check_divisible("head_dim", head_dim, 4)
    half = head_dim // 2
    exponents = torch.arange(0, -half, -2, device=positions.device, dtype=dtype) / half
    angles = positions[..., None] * base**exponents  # (..., P, 2, D/4)
    sin = angles.sin()
    return RotaryTable(*(torch.cat(t, dim=-1).flatten(-2) for t in ([angles.cos()] * 2, [-sin, sin])))


def apply_rotary(x: Float[Tensor, "*batch d"], table: RotaryTable) -> Float[Tensor, "*batch d"]:
    """Rotate queries or keys; computed in the table's precision, returned in that of `x`.

    Args:
        x: (..., D).
        table: Broadcastable to `x`: (P, D) for (..., P, D), see `RotaryTable.over_heads` for (..., P, H, D).
    """
    swapped = x.unflatten(-1, (2, 2, -1)).flip(-2).flatten(-3)
    return torch.addcmul(x * table.cos, swapped, table.sin).to(x.dtype)
