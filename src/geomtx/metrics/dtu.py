"""Accuracy and completeness on DTU (Aanæs et al. 2016; Jensen et al. 2014); all lengths are in millimetres."""

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

# Margins below and above the observed box, and the distance from which on points don't count.
_MARGIN_MM = (60.0, 120.0)
_MAX_DISTANCE_MM = 20.0


@show_shapes
class DTUScan(NamedTuple):
    """Ground truth of a scan, from the files of the data set.

    Attributes:
        points: Structured-light point cloud, (M, 3).
        box: Least and greatest corner of the observed volume, (2, 3); `BB` in the files.
        observed: Whether a voxel of the volume is observed, (X, Y, Z) bool; `ObsMask` in the files.
        voxel_size: Side of a voxel of `observed`; `Res` in the files.
        ground: Plane of the table, (4,): points above it have ground · (x, y, z, 1) > 0; `P` in the files.
    """

    points: Float[Tensor, "m 3"]
    box: Float[Tensor, "2 3"]
    observed: Bool[Tensor, "x y z"]
    voxel_size: float
    ground: Float[Tensor, " 4"]


@show_shapes
class DTUScores(NamedTuple):
    """Output of `dtu_scores`: scalars in float64, millimetres.

    Attributes:
        accuracy: Mean distance of predicted points from the nearest true ones.
        completeness: Mean distance of true points from the nearest predicted ones.
        overall: Mean of accuracy and completeness.
        accuracy_median: Median distance of predicted points.
        completeness_median: Median distance of true points.
    """

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
    """Evaluate a point cloud in the frame of the scan by the protocol of the data set.

    The prediction is thinned and cropped to the observed box with a margin. Accuracy is measured at its points in
    observed voxels, completeness at true points above the table. Distances of 20 mm or more are left out of both.

    Args:
        predicted: Predicted points, (N, 3), millimetres.
        scan: Ground truth.
        spacing: Least distance of two points after thinning, millimetres; 0 keeps all points. Defaults to 0.2.
        generator: Random generator of the order in which points are thinned. Defaults to torch's global one.

    Returns:
        `DTUScores`; NaN where no point is left.

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
    """Thin a point cloud: in random order, drop every point within `spacing` of a point that was kept before.

    Args:
        points: Points, (N, 3).
        spacing: Largest distance at which a point is dropped, in the unit of the points, positive.
        generator: Random generator of the order, on the CPU. Defaults to torch's global one.

    Returns:
        Indices of the points that are kept, (K,), ascending.

    Raises:
        ValueError: For another shape, points that are not finite, or a spacing that is not positive.
    """
    check_positive("spacing", spacing)
    rank = torch.randperm(len(points), generator=generator).to(points.device)
    pairs = pairs_within(points, spacing)
    earlier_first = rank[pairs[0]] < rank[pairs[1]]
    earlier = torch.where(earlier_first, pairs[0], pairs[1])
    later = torch.where(earlier_first, pairs[1], pairs[0])
    # Points whose earlier neighbours are all decided are decided together; the result is that of one after the other.
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
    """Return whether points are in observed voxels, (N,) bool."""
    voxels = ((points - scan.box[0]) / scan.voxel_size).round().long()
    size = torch.tensor(scan.observed.shape, device=points.device)
    inside = ((voxels >= 0) & (voxels < size)).all(-1)
    x, y, z = torch.where(inside[:, None], voxels, 0).unbind(-1)
    return inside & scan.observed[x, y, z]


def _distances(source: Tensor, target: Tensor) -> Tensor:
    """Return the distances from `source` to the nearest points of `target` that are small enough to count."""
    if len(source) == 0 or len(target) == 0:
        return source.new_empty(0, dtype=torch.float64)
    distances = nearest_points(source, target)[0].double()
    return distances[distances < _MAX_DISTANCE_MM]
