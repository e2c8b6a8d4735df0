"""Resampling a map along its rows and columns, one axis at a time, at positions that stay inside the map."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["RESAMPLING", "Axis", "resample"]

RESAMPLING = ("bilinear", "nearest")


class Axis(NamedTuple):
    """Where the output pixels of one axis read.

    Attributes:
        position: (L,) float64 on the CPU, source pixels (centres at integers), inside the source.
        valid: (L,) bool; False = the output pixel is filled.
    """

    position: Tensor
    valid: Tensor


def resample(values: Tensor, rows: Axis, columns: Axis, mode: str, fill: float) -> Tensor:
    """(..., h, w) → (..., len(rows), len(columns)): bilinear or nearest, `fill` where either axis is not valid."""
    out = _resample_axis(_resample_axis(values, rows.position, -2, mode), columns.position, -1, mode)
    hidden = ~(rows.valid[:, None] & columns.valid)
    if hidden.any():
        out = out.masked_fill(hidden.to(values.device), fill)
    return out


def _resample_axis(values: Tensor, position: Tensor, dim: int, mode: str) -> Tensor:
    if mode == "nearest":
        return _pick(values, dim, (position + 0.5).floor().clamp(max=values.shape[dim] - 1))
    below = position.floor()
    weight = (position - below).to(values.dtype).to(values.device)
    low, high = _pick(values, dim, below), _pick(values, dim, position.ceil())
    return torch.lerp(low, high, weight if dim == -1 else weight[:, None])


def _pick(values: Tensor, dim: int, index: Tensor) -> Tensor:
    return values.index_select(dim, index.long().to(values.device))
