"""Points of a scene with the pixels in which its photos see them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from geomtx.types import Float, Int, UInt8, show_shapes

__all__ = ["ObservedPoints"]


@show_shapes
class ObservedPoints(NamedTuple):
    """Points with the pixels in which photos see them, as a sparse model of COLMAP holds them.

    Attributes:
        xyz: Points in the world of the scene, (M, 3) float64.
        rgb: Colours, (M, 3) uint8.
        view: View of each observation, (K,) int64.
        point: Point of each observation, (K,) int64; observations are sorted by point, then by view.
        coords_px: Where the view sees the point, (K, 2) float64, in original pixels, pixel centres at integers.
        confidence: Confidence of each observation, (K,) float32, which ranks them and is not a probability.
    """

    xyz: Float[Tensor, "m 3"]
    rgb: UInt8[Tensor, "m 3"]
    view: Int[Tensor, " k"]
    point: Int[Tensor, " k"]
    coords_px: Float[Tensor, "k 2"]
    confidence: Float[Tensor, " k"]
