"""Similarity transforms between two sets of corresponding points (Umeyama, TPAMI 1991) or cameras."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.checks import check_floating, check_shape
from geomtx.layers.precision import float32_island
from geomtx.types import Float, show_shapes

__all__ = ["Similarity", "apply_similarity", "fit_camera_similarity", "fit_similarity"]


@show_shapes
class Similarity(NamedTuple):
    """Similarity transform: target = scale · rotation · source + translation.

    Attributes:
        scale: Scale, (...), not negative.
        rotation: Rotation matrices, (..., 3, 3), of determinant 1, also for points that are mirrored.
        translation: Translation in the unit of the target, (..., 3).
    """

    scale: Float[Tensor, "*batch"]
    rotation: Float[Tensor, "*batch 3 3"]
    translation: Float[Tensor, "*batch 3"]


@float32_island
def fit_similarity(
    source: Float[Tensor, "*batch n 3"],
    target: Float[Tensor, "*batch n 3"],
    weights: Tensor | None = None,
) -> Similarity:
    """Return the similarity that maps `source` to `target` with the smallest weighted sum of squared distances.

    The solution is in closed form, batched and differentiable. Input that does not determine it gives a finite result:

    - for points on one line, one of the best rotations;
    - for source points in one place, or a single one, no rotation, scale 1, and the translation between the centres;
    - where all weights are 0, the identity.

    Args:
        source: Points, (..., N, 3).
        target: Points, (..., N, 3), in the order of the source points that they correspond to.
        weights: Weights of the pairs, (..., N), not negative, or bool for weights of 1 and 0. Pairs of weight 0 are
            ignored, NaN included. Defaults to equal weights.

    Returns:
        Similarities, (...), in float32 or better.

    Raises:
        ValueError: If a shape is another one, or the points are integers.
    """
    check_shape("source", source, ("...", "N", 3))
    check_shape("target", target, tuple(source.shape))
    check_floating("source", source)
    if weights is None:
        weights = torch.ones(source.shape[:-1], dtype=torch.bool, device=source.device)
    check_shape("weights", weights, tuple(source.shape[:-1]))
    return _fit(source, target, weights)


@float32_island
def fit_camera_similarity(
    source: Float[Tensor, "*batch s 3 4"], target: Float[Tensor, "*batch s 3 4"], weights: Tensor | None = None
) -> Similarity:
    """Return the similarity between the worlds of the same cameras.

    The rotation is the one of least squares between the axes of the cameras and between their centres, each set scaled
    to a spread of one, so that two cameras, or cameras on a line, determine it; the scale is the ratio of the spreads
    of the centres. Centres in one place, or a single camera, leave the scale at 1.

    Args:
        source: `world_from_cam` of S cameras, (..., S, 3, 4).
        target: `world_from_cam` of the same cameras in another world, (..., S, 3, 4).
        weights: Weights of the cameras, (..., S), not negative; defaults to equal weights.

    Raises:
        ValueError: If a shape is another one.
    """
    import roma

    check_shape("source", source, ("...", "S", 3, 4))
    check_shape("target", target, tuple(source.shape))
    if weights is None:
        weights = torch.ones(source.shape[:-2], dtype=source.dtype, device=source.device)
    shares = (weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(source.dtype).tiny))[..., None]
    (source_center, source_unit, source_spread), (target_center, target_unit, target_spread) = (
        _spread_of(each[..., 3], shares) for each in (source, target)
    )
    axes = (shares[..., None] * (target[..., :3] @ source[..., :3].mT)).sum(-3) / 3
    rotation = roma.special_procrustes(axes + (shares * target_unit).mT @ source_unit)
    extended = (source_spread > 0) & (target_spread > 0)
    scale = torch.where(extended, target_spread / torch.where(extended, source_spread, 1.0), 1.0)
    moved = scale[..., None] * (rotation @ source_center[..., None]).squeeze(-1)
    return Similarity(scale, rotation, target_center - moved)


@float32_island
def apply_similarity(similarity: Similarity, points: Float[Tensor, "*batch n 3"]) -> Float[Tensor, "*batch n 3"]:
    """Return scale · R x + t for N points of each similarity, (..., N, 3), in float32 or better.

    Args:
        similarity: Similarities, (...).
        points: Points x, (..., N, 3).
    """
    turned = points @ similarity.rotation.transpose(-1, -2)
    return similarity.scale[..., None, None] * turned + similarity.translation[..., None, :]


def _fit(source: Tensor, target: Tensor, weights: Tensor) -> Similarity:
    import roma

    is_used = (weights > 0)[..., None]
    source, target = torch.where(is_used, source, 0.0), torch.where(is_used, target, 0.0)
    weights = weights.to(source.dtype)
    total = weights.sum(-1, keepdim=True)
    weights = (weights / torch.where(total > 0, total, 1.0))[..., None]

    source_center, target_center = (weights * source).sum(-2), (weights * target).sum(-2)
    source_unit, source_spread = _center_and_scale(source, source_center, weights)
    target_unit, target_spread = _center_and_scale(target, target_center, weights)
    rotation, scale = roma.rigid_vectors_registration(
        source_unit, target_unit, weights.squeeze(-1) + (total == 0), compute_scaling=True
    )
    # For points without an extent, rotation and scale are undetermined, and roma's quotient is 0 / 0.
    has_extent = source_spread > 0
    identity = torch.eye(3, dtype=source.dtype, device=source.device)
    determined = (has_extent & (target_spread > 0))[..., None, None]
    rotation = torch.where(determined, rotation, identity)
    scale = torch.where(has_extent, scale * target_spread / torch.where(has_extent, source_spread, 1.0), 1.0)
    moved = scale[..., None] * (rotation @ source_center[..., None]).squeeze(-1)
    return Similarity(scale, rotation, target_center - moved)


def _center_and_scale(points: Tensor, center: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the points, centred and scaled to a spread of 1, and the spread, in whatever unit the points are.

    Points in one place become ones, which keeps every division and its gradient finite, and have a spread of 0.
    """
    centered = points - center[..., None, :]
    square = (weights * centered.square()).sum((-2, -1))
    # Rounding errors of points in one place must not count as an extent.
    size = torch.finfo(points.dtype).eps * (center.square().sum(-1) + square).sqrt()
    has_extent = square.sqrt() > 4 * size
    spread = torch.where(has_extent, square, 1.0).sqrt()
    unit = torch.where(has_extent[..., None, None], centered / spread[..., None, None], 1.0)
    return unit, torch.where(has_extent, spread, 0.0)


def _spread_of(centers: Tensor, shares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean of centres (..., S, 3), the centres around it with a spread of 1, and their spread.

    Rounding errors of centres in one place don't count as a spread, which is 0 then.
    """
    middle = (shares * centers).sum(-2)
    centered = centers - middle[..., None, :]
    spread = (shares * centered.square()).sum((-2, -1)).sqrt()
    largest = torch.linalg.vector_norm(centers, dim=-1).amax(-1)
    spread = torch.where(spread > 8 * torch.finfo(centers.dtype).eps * largest, spread, 0.0)
    unit = centered / torch.where(spread > 0, spread, 1.0)[..., None, None]
    return middle, torch.where((spread > 0)[..., None, None], unit, 0.0), spread
