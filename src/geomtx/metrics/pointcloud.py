"""Accuracy and completeness of point clouds, and nearest neighbours between them.

Accuracy is the distance from the prediction to the truth, completeness from the truth to the prediction. Both
depend on how the clouds were cropped and aligned, so a published number names its function; `geomtx.metrics.dtu` is
another protocol.
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

# Without scipy every pair of points is compared: at most so many pairs, and so many at once.
_MOST_PAIRS = 2**33
_PAIRS_AT_ONCE = 2**22


def nearest_points(
    source: Float[Tensor, "n 3"], target: Float[Tensor, "m 3"]
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """Find the nearest point of `target` for every point of `source`, exactly, on the CPU.

    A k-d tree of scipy (extra `metrics`) finds them. Without scipy every pair of points is compared, which gives the
    same distances and takes minutes beyond 10^5 points.

    Args:
        source: Points to search from, (N, 3).
        target: Points to search in, (M, 3), at least one.

    Returns:
        Distances (N,), in float32 or better, and indices into `target` (N,), on the device of `source`. Among points at
        equal distance any index may be returned.

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
    """Find all pairs i < j of points no farther apart than `radius`, (2, pairs) in ascending order.

    Raises:
        ValueError: For another shape, integer points, or points that are not finite.
        ImportError: Without scipy (extra `metrics`).
    """
    check_points("points", points)
    pairs = _build_tree(points.detach().cpu().double()).query_pairs(radius, output_type="ndarray")
    return torch.from_numpy(pairs).long().unique(dim=0).mT.to(points.device)


def check_points(name: str, points: Tensor) -> None:
    """Require (N, 3) floating point numbers, all finite. This waits for the points' device."""
    check_shape(name, points, ("N", 3))
    check_floating(name, points)
    if not points.isfinite().all():
        raise ValueError(f"{name} must be finite, got NaN or inf")


def _build_tree(points: Tensor) -> Any:
    try:
        from scipy.spatial import cKDTree
    except ModuleNotFoundError as error:
        message = "nearest points of large clouds need scipy, which is not installed: pip install geomtx[metrics]"
        raise ImportError(message) from error
    return cKDTree(points.numpy())


def _search_all(source: Tensor, target: Tensor) -> Tensor:
    """Index of the nearest point by comparing all pairs: the least |t|² - 2 s · t, about the centre of the cloud."""
    center = target.mean(0)
    source, target = source - center, target - center
    squares, products = target.square().sum(1), -2 * target.mT
    rows = max(1, _PAIRS_AT_ONCE // len(target))
    return torch.cat([torch.addmm(squares, part, products).argmin(1) for part in source.split(rows)])


@show_shapes
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
