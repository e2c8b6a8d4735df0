"""Accuracy and completeness of point clouds.

Accuracy looks from the prediction to the truth, completeness from the truth to the prediction. Numbers depend on how
the clouds were cut and aligned, so say which function made them; those of `geomtx.metrics.dtu` are another protocol's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.checks import check_mask, check_positive, check_shape
from geomtx.geometry.similarity import Similarity, apply_similarity, fit_similarity
from geomtx.layers.float32 import float32_island
from geomtx.metrics.median import masked_median
from geomtx.metrics.nearest import nearest_points
from geomtx.types import Float

__all__ = ["PointCloudScores", "align_by_nearest", "point_map_normals", "point_map_scores", "pointcloud_scores"]


class PointCloudScores(NamedTuple):
    """Distances in the unit of the true points; scalars in float64.

    Attributes:
        accuracy: Mean distance from a predicted point to the nearest true one.
        completeness: Mean distance from a true point to the nearest predicted one.
        overall: Mean of both.
        accuracy_median: Median instead of mean.
        completeness_median: Median instead of mean.
        normal_consistency: Mean of |n · n'| between nearest points, both ways alike, in [0, 1]; NaN without normals.
    """

    accuracy: Tensor
    completeness: Tensor
    overall: Tensor
    accuracy_median: Tensor
    completeness_median: Tensor
    normal_consistency: Tensor


def pointcloud_scores(
    predicted: Float[Tensor, "n 3"],
    true: Float[Tensor, "m 3"],
    *,
    predicted_normals: Tensor | None = None,
    true_normals: Tensor | None = None,
    max_distance: float = float("inf"),
    max_queries: int | None = None,
) -> PointCloudScores:
    """Compare two clouds as they are; `fit_similarity` and `align_by_nearest` align them before.

    Args:
        predicted: (N, 3).
        true: (M, 3).
        predicted_normals: (N, 3) of any length; where it is 0, the point has none.
        true_normals: (M, 3).
        max_distance: Distances that reach it are left out of all means and medians.
        max_queries: Look from at most so many points of each cloud, evenly spread over their order; always *to* all.
            None = from all.

    Returns:
        `PointCloudScores`; all NaN if a cloud is empty, or holds a point that is not finite.

    Raises:
        ValueError: For other shapes, normals of one cloud only, or numbers that are not positive.
    """
    check_shape("predicted", predicted, ("N", 3))
    check_shape("true", true, ("M", 3))
    if (predicted_normals is None) != (true_normals is None):
        raise ValueError("normals must be given for both clouds, got them for one")
    if predicted_normals is not None and true_normals is not None:
        check_shape("predicted_normals", predicted_normals, tuple(predicted.shape))
        check_shape("true_normals", true_normals, tuple(true.shape))
    check_positive("max_distance", max_distance)
    nan = torch.full((), torch.nan, dtype=torch.float64, device=predicted.device)
    if not (len(predicted) and len(true) and predicted.isfinite().all() and true.isfinite().all()):
        return PointCloudScores(*[nan] * 6)
    there, there_cosines = _look(predicted, true, predicted_normals, true_normals, max_distance, max_queries)
    back, back_cosines = _look(true, predicted, true_normals, predicted_normals, max_distance, max_queries)
    accuracy, completeness = there.mean(), back.mean()
    return PointCloudScores(
        accuracy,
        completeness,
        (accuracy + completeness) / 2,
        masked_median(there),
        masked_median(back),
        (there_cosines.mean() + back_cosines.mean()) / 2,
    )


def point_map_scores(
    predicted: Float[Tensor, "*batch h w 3"],
    true: Float[Tensor, "*batch h w 3"],
    mask: Tensor | None = None,
    *,
    align: bool = True,
    with_normals: bool = False,
    max_queries: int | None = None,
) -> PointCloudScores:
    """Compare the point maps of one scene, all its views together (VGGT, section 4.3; ETH3D protocol).

    The similarity of least squares between the points of the same pixels aligns the prediction first; there is no
    search for nearest points in it.

    Args:
        predicted: (..., H, W, 3), any number of views.
        true: (..., H, W, 3).
        mask: (..., H, W) bool, True = the truth is known, and finite; None = wherever it is finite.
        align: False compares the points where they are.
        with_normals: Compare the surfaces' normals too, made from neighbouring pixels.
        max_queries: See `pointcloud_scores`.

    Returns:
        `PointCloudScores`; all NaN without a known pixel, or if a prediction on one is not finite.

    Raises:
        ValueError: For other shapes.
    """
    check_shape("predicted", predicted, ("...", "H", "W", 3))
    check_shape("true", true, tuple(predicted.shape))
    known = true.isfinite().all(-1)
    if mask is not None:
        check_mask("mask", mask, tuple(predicted.shape[:-1]))
        known = known & mask
    predicted, true = predicted.double(), true.double()
    if align:
        similarity = fit_similarity(predicted[known], true[known])
        predicted = apply_similarity(similarity, predicted.reshape(-1, 3)).reshape(predicted.shape)
    normals = (point_map_normals(maps, known)[known] if with_normals else None for maps in (predicted, true))
    predicted_normals, true_normals = normals
    return pointcloud_scores(
        predicted[known],
        true[known],
        predicted_normals=predicted_normals,
        true_normals=true_normals,
        max_queries=max_queries,
    )


@float32_island
def point_map_normals(
    points: Float[Tensor, "*batch h w 3"], mask: Tensor | None = None
) -> Float[Tensor, "*batch h w 3"]:
    """Unit normals of a surface seen in pixels: the cross product of the differences across each pixel's neighbours.

    Args:
        points: (..., H, W, 3).
        mask: (..., H, W) bool, True = the point is known.

    Returns:
        (..., H, W, 3), float32 or better; 0 where one of the four neighbours is missing, not known, or not finite.

    Raises:
        ValueError: For another shape.
    """
    check_shape("points", points, ("...", "H", "W", 3))
    known = points.isfinite().all(-1)
    if mask is not None:
        check_mask("mask", mask, tuple(points.shape[:-1]))
        known = known & mask
    points = torch.where(known[..., None], points, 0.0)
    across = points[..., 1:-1, 2:, :] - points[..., 1:-1, :-2, :]
    down = points[..., 2:, 1:-1, :] - points[..., :-2, 1:-1, :]
    complete = known[..., 1:-1, 2:] & known[..., 1:-1, :-2] & known[..., 2:, 1:-1] & known[..., :-2, 1:-1]
    normals = torch.zeros_like(points)
    inner = torch.nn.functional.normalize(torch.linalg.cross(across, down), dim=-1, eps=1e-30)
    normals[..., 1:-1, 1:-1, :] = torch.where(complete[..., None], inner, 0.0)
    return normals


def align_by_nearest(
    source: Float[Tensor, "n 3"],
    target: Float[Tensor, "m 3"],
    *,
    max_distance: float,
    num_iterations: int = 30,
) -> Similarity:
    """Refine an alignment by iterated closest points (Besl and McKay, 1992): a rotation and a translation, scale 1.

    Several published evaluations do this after `fit_similarity`, with 100 mm on DTU and 0.1 elsewhere.

    Args:
        source: (N, 3), roughly in place.
        target: (M, 3), at least one.
        max_distance: Pairs farther apart take no part.
        num_iterations: At most; ends early once nothing moves.

    Returns:
        `Similarity` of scale 1 to apply to `source`; the identity if no pair is near enough.

    Raises:
        ValueError: For what `nearest_points` refuses, or numbers that are not positive.
    """
    check_positive("max_distance", max_distance)
    check_positive("num_iterations", num_iterations)
    import roma

    source, target = source.double(), target.double()
    rotation, translation = torch.eye(3).to(source), torch.zeros(3).to(source)
    moved = source
    for _ in range(num_iterations):
        distances, indices = nearest_points(moved, target)
        near = distances <= max_distance
        if not near.any():
            break
        rotation, translation = roma.rigid_points_registration(source[near], target[indices[near]])
        before, moved = moved, source @ rotation.mT + translation
        if (moved - before).abs().max() < 1e-9 * max_distance:
            break
    return Similarity(torch.ones(()).to(source), rotation, translation)


def _look(
    source: Tensor,
    target: Tensor,
    source_normals: Tensor | None,
    target_normals: Tensor | None,
    max_distance: float,
    max_queries: int | None,
) -> tuple[Tensor, Tensor]:
    """Distances from `source` to `target`, and |cosines| of their normals."""
    chosen = _spread(len(source), max_queries, source.device)
    distances, indices = nearest_points(source[chosen], target)
    near = distances < max_distance
    cosines = distances.new_empty(0, dtype=torch.float64)
    if source_normals is not None and target_normals is not None:
        a, b = source_normals[chosen][near].double(), target_normals[indices][near].double()
        both = (a.norm(dim=-1) > 0) & (b.norm(dim=-1) > 0)
        cosines = torch.cosine_similarity(a[both], b[both], dim=-1).abs()
    return distances[near].double(), cosines


def _spread(count: int, limit: int | None, device: torch.device) -> Tensor:
    if limit is None or limit >= count:
        return torch.arange(count, device=device)
    check_positive("max_queries", limit)
    return torch.arange(limit, device=device) * count // limit
