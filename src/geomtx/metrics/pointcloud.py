"""Accuracy and completeness of point clouds, and nearest neighbours between them.

Accuracy is the distance from the prediction to the truth, completeness from the truth to the prediction. Both
depend on how the clouds are cropped and aligned, so a reported number must name the function that computed it;
`geomtx.metrics.dtu` has another protocol.
"""

from __future__ import annotations

import importlib.util
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geomtx.checks import check_floating, check_mask, check_positive, check_shape
from geomtx.geometry.similarity import Similarity, apply_similarity, fit_similarity
from geomtx.layers.precision import float32_island
from geomtx.losses.reduce import masked_median
from geomtx.types import Float, Int, show_shapes

__all__ = [
    "PointCloudScores",
    "align_by_nearest",
    "check_points",
    "nearest_points",
    "pairs_within",
    "point_map_normals",
    "point_map_scores",
    "pointcloud_scores",
]

# Without scipy every pair of points is compared: largest number of pairs in total, and at once.
_MOST_PAIRS = 2**33
_PAIRS_AT_ONCE = 2**22


def nearest_points(
    source: Float[Tensor, "n 3"], target: Float[Tensor, "m 3"]
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """Find the nearest point of `target` for every point of `source`, exactly, on the CPU.

    A k-d tree of scipy (extra `metrics`) finds them. Without scipy every pair of points is compared, which gives the
    same distances and takes minutes beyond 10^5 points.

    Args:
        source: Query points, (N, 3).
        target: Points among which the nearest is searched, (M, 3), at least one.

    Returns:
        Distances (N,), float32 or float64, and indices into `target` (N,), on the device of `source`. Among points at
        equal distances any index may be returned.

    Raises:
        ValueError: For other shapes, integer points, points that are not finite, or an empty target.
        ImportError: Without scipy, for more than 2^33 pairs of points.
    """
    for name, points in (("source", source), ("target", target)):
        check_points(name, points)
    if len(target) == 0:
        raise ValueError(f"target must hold at least 1 point, got {tuple(target.shape)}")
    dtype = torch.promote_types(torch.promote_types(source.dtype, target.dtype), torch.float32)
    a, b = (points.detach().cpu().double() for points in (source, target))
    if len(source) * len(target) <= _MOST_PAIRS and importlib.util.find_spec("scipy") is None:
        indices = _search_all(a, b)
    else:
        indices = torch.from_numpy(_build_tree(b).query(a.numpy())[1]).long()
    distances = (a - b[indices]).norm(dim=-1)
    return distances.to(source.device, dtype), indices.to(source.device)


def pairs_within(points: Float[Tensor, "n 3"], radius: float) -> Int[Tensor, "2 pairs"]:
    """Find all pairs i < j of points whose distance is at most `radius`.

    Args:
        points: Points, (N, 3).
        radius: Largest distance, in the unit of the points.

    Returns:
        Indices of the points of every pair, (2, pairs), in ascending order.

    Raises:
        ValueError: For another shape, integer points, or points that are not finite.
        ImportError: Without scipy (extra `metrics`).
    """
    check_points("points", points)
    pairs = _build_tree(points.detach().cpu().double()).query_pairs(radius, output_type="ndarray")
    return torch.from_numpy(pairs).long().unique(dim=0).mT.to(points.device)


def check_points(name: str, points: Tensor) -> None:
    """Check that points are (N, 3), floating point and finite. The host waits for the device."""
    check_shape(name, points, ("N", 3))
    check_floating(name, points)
    if not points.isfinite().all():
        raise ValueError(f"{name} must be finite, got NaN or inf")


def _build_tree(points: Tensor) -> Any:
    """Return scipy's k-d tree of points (N, 3) on the CPU."""
    try:
        from scipy.spatial import cKDTree
    except ModuleNotFoundError as error:
        message = "nearest points of large clouds need scipy, which is not installed: pip install geomtx[metrics]"
        raise ImportError(message) from error
    return cKDTree(points.numpy())


def _search_all(source: Tensor, target: Tensor) -> Tensor:
    """Return the index of the nearest point of every query, (N,), by comparing all pairs.

    The nearest point has the least |t|² - 2 s · t; coordinates are relative to the centre of the cloud for precision.
    """
    center = target.mean(0)
    source, target = source - center, target - center
    squares, products = target.square().sum(1), -2 * target.mT
    rows = max(1, _PAIRS_AT_ONCE // len(target))
    return torch.cat([torch.addmm(squares, part, products).argmin(1) for part in source.split(rows)])


@show_shapes
class PointCloudScores(NamedTuple):
    """Scores of a point cloud: scalars in float64, distances in the unit of the true points.

    Attributes:
        accuracy: Mean distance from a predicted point to the nearest true one.
        completeness: Mean distance from a true point to the nearest predicted one.
        overall: Mean of accuracy and completeness.
        accuracy_median: Median distance from a predicted point to the nearest true one.
        completeness_median: Median distance from a true point to the nearest predicted one.
        normal_consistency: Mean of |n · n'| between nearest points, averaged over both directions, in [0, 1]; NaN
            without normals.
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
    """Compare two point clouds without alignment; see `fit_similarity` and `align_by_nearest` for aligning them.

    Args:
        predicted: Predicted points, (N, 3).
        true: True points, (M, 3), in the same frame and unit.
        predicted_normals: Normals of the predicted points, (N, 3), of any length; a normal of length 0 is unknown.
            Defaults to no comparison of normals.
        true_normals: Normals of the true points, (M, 3).
        max_distance: Distance from which on pairs are left out of all means and medians, positive. Defaults to no
            limit.
        max_queries: Largest number of query points of each cloud, evenly spaced in their order; nearest points are
            searched among all points of the other cloud. Defaults to all points.

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
    there, there_cosines = _compare(predicted, true, predicted_normals, true_normals, max_distance, max_queries)
    back, back_cosines = _compare(true, predicted, true_normals, predicted_normals, max_distance, max_queries)
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
    """Compare the point maps of all views of one scene with the truth (VGGT, section 4.3; ETH3D protocol).

    The prediction is first aligned by the least-squares similarity between the points of the same pixels, without a
    search for nearest points.

    Args:
        predicted: Predicted points, (…, H, W, 3), any number of views.
        true: True points, (…, H, W, 3).
        mask: Whether the truth is known, (…, H, W) bool. Defaults to wherever it is finite; elsewhere it never is.
        align: Whether to align the prediction. Defaults to True.
        with_normals: Whether to compare the normals of the surfaces, see `point_map_normals`. Defaults to False.
        max_queries: Largest number of query points of each cloud, see `pointcloud_scores`. Defaults to all points.

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
    """Compute the unit normals of point maps: cross products of the central differences along rows and columns.

    Args:
        points: Points, (…, H, W, 3).
        mask: Whether a point is known, (…, H, W) bool. Defaults to wherever it is finite; elsewhere it never is.

    Returns:
        Normals, (…, H, W, 3), float32 or float64; 0 where one of the four neighbours is outside the image or unknown.

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
    """Refine a rigid alignment by iterative closest points (Besl and McKay 1992).

    Several published evaluations do this after `fit_similarity`, with a largest distance of 100 mm on DTU and of 0.1
    elsewhere.

    Args:
        source: Roughly aligned points, (N, 3).
        target: Points to align with, (M, 3), at least one.
        max_distance: Distance above which nearest points are not paired, positive.
        num_iterations: Largest number of iterations, positive; stops early once the points don't move. Defaults to 30.

    Returns:
        `Similarity` of scale 1 to apply to `source`; the identity if there are no pairs.

    Raises:
        ValueError: For points that `nearest_points` rejects, or numbers that are not positive.
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


def _compare(
    source: Tensor,
    target: Tensor,
    source_normals: Tensor | None,
    target_normals: Tensor | None,
    max_distance: float,
    max_queries: int | None,
) -> tuple[Tensor, Tensor]:
    """Return distances from `source` to the nearest points of `target`, and absolute cosines between their normals."""
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
    """Return at most `limit` evenly spaced indices below `count`."""
    if limit is None or limit >= count:
        return torch.arange(count, device=device)
    check_positive("max_queries", limit)
    return torch.arange(limit, device=device) * count // limit
