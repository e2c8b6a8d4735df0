"""Accuracy and completeness on DTU (Aanæs et al., 2016; Jensen et al., 2014); lengths are millimetres."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.checks import check_positive
from geomtx.layers.precision import float32_island
from geomtx.losses.reduce import masked_median
from geomtx.metrics.pointcloud import check_points, nearest_points, pairs_within
from geomtx.types import Bool, Float, Int, show_shapes

__all__ = ["DTUScan", "DTUScores", "dtu_scores", "thin_points"]

# How far points may lie outside the observed box, below and above, and the distance that no longer counts.
_MARGIN_MM = (60.0, 120.0)
_MAX_DISTANCE_MM = 20.0


@show_shapes
class DTUScan(NamedTuple):
    """The truth of a scan, from the data set's files.

    Attributes:
        points: (M, 3), the structured-light cloud.
        box: (2, 3), least and greatest corner of the observed volume (`BB`).
        observed: (X, Y, Z) bool, voxels of the observed volume (`ObsMask`).
        voxel_size: Of `observed` (`Res`).
        ground: (4,), points above the table have ground · (x, y, z, 1) > 0 (`P`).
    """

    points: Float[Tensor, "m 3"]
    box: Float[Tensor, "2 3"]
    observed: Bool[Tensor, "x y z"]
    voxel_size: float
    ground: Float[Tensor, " 4"]


@show_shapes
class DTUScores(NamedTuple):
    """Scalars in float64, millimetres: accuracy, completeness and their mean, and medians of the former two."""

    accuracy: Tensor
    completeness: Tensor
    overall: Tensor
    accuracy_median: Tensor
    completeness_median: Tensor


@float32_island
def dtu_scores(
    predicted: Float[Tensor, "n 3"],
    scan: DTUScan,
    *,
    spacing: float = 0.2,
    generator: torch.Generator | None = None,
) -> DTUScores:
    """The data set's evaluation of a cloud that is in the scan's frame already.

    The prediction is thinned and cut to the observed box with a margin. Accuracy is over its points in observed voxels;
    completeness over true points above the table. Distances of 20 mm and more are left out of both.

    Args:
        predicted: (N, 3).
        scan: The truth.
        spacing: No two points closer than this are kept; 0 keeps all.
        generator: For the order in which points are thinned.

    Returns:
        `DTUScores`; NaN where nothing is left to average.

    Raises:
        ValueError: For another shape, points that are not finite, or a negative spacing.
    """
    check_points("predicted", predicted)
    if spacing != 0:
        check_positive("spacing", spacing)
        predicted = predicted[thin_points(predicted, spacing, generator=generator)]
    low, high = scan.box[0] - _MARGIN_MM[0], scan.box[1] + _MARGIN_MM[1]
    predicted = predicted[((predicted >= low) & (predicted < high)).all(-1)]
    above = (scan.points * scan.ground[:3]).sum(-1) + scan.ground[3] > 0
    accuracy = _distances(predicted[_in_observed_voxel(predicted, scan)], scan.points)
    completeness = _distances(scan.points[above], predicted)
    means = accuracy.mean(), completeness.mean()
    return DTUScores(*means, (means[0] + means[1]) / 2, masked_median(accuracy), masked_median(completeness))


def thin_points(
    points: Float[Tensor, "n 3"], spacing: float, *, generator: torch.Generator | None = None
) -> Int[Tensor, " k"]:
    """Go through the points in random order and drop all that lie within `spacing` of one that was kept.

    Args:
        points: (N, 3).
        spacing: In the points' unit.
        generator: For the order, on the CPU.

    Returns:
        Indices of the points kept, ascending.

    Raises:
        ValueError: For another shape, points that are not finite, or a spacing that is not positive.
    """
    check_positive("spacing", spacing)
    rank = torch.randperm(len(points), generator=generator).to(points.device)
    pairs = pairs_within(points, spacing)
    earlier_first = rank[pairs[0]] < rank[pairs[1]]
    earlier = torch.where(earlier_first, pairs[0], pairs[1])
    later = torch.where(earlier_first, pairs[1], pairs[0])
    # All points without an earlier neighbour in doubt are decided at once: the same result as one after the other.
    kept = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    in_doubt = ~kept
    while in_doubt.any():
        waits = torch.zeros_like(kept)
        waits[later] = True
        now = in_doubt & ~waits
        kept |= now
        in_doubt = in_doubt & ~now
        in_doubt[later[now[earlier]]] = False
        open_pairs = in_doubt[earlier] & in_doubt[later]
        earlier, later = earlier[open_pairs], later[open_pairs]
    return kept.nonzero().squeeze(-1)


def _in_observed_voxel(points: Tensor, scan: DTUScan) -> Tensor:
    voxels = ((points - scan.box[0]) / scan.voxel_size).round().long()
    size = torch.tensor(scan.observed.shape, device=points.device)
    inside = ((voxels >= 0) & (voxels < size)).all(-1)
    x, y, z = torch.where(inside[:, None], voxels, 0).unbind(-1)
    return inside & scan.observed[x, y, z]


def _distances(source: Tensor, target: Tensor) -> Tensor:
    if len(source) == 0 or len(target) == 0:
        return source.new_empty(0, dtype=torch.float64)
    distances = nearest_points(source, target)[0].double()
    return distances[distances < _MAX_DISTANCE_MM]
