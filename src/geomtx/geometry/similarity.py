"""The similarity between two sets of points that belong together (Umeyama, TPAMI 1991)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.checks import check_floating, check_shape
from geomtx.layers.precision import float32_island
from geomtx.types import Float, show_shapes

__all__ = ["Similarity", "apply_similarity", "fit_similarity"]


@show_shapes
class Similarity(NamedTuple):
    """target = scale · rotation · source + translation.

    Attributes:
        scale: (...), ≥ 0.
        rotation: (..., 3, 3), proper: a mirror image is turned, never mirrored back.
        translation: (..., 3), in the target's unit.
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
    """Scale, rotation and translation that bring `source` to `target` with the least sum of weighted squares.

    Closed form, batched and differentiable. Input that does not determine the answer still gets a finite one:

    - points on one line: one of the rotations that fit best;
    - source points in one place, or a single one: no rotation, scale 1, and the translation between the centres;
    - no weight at all: the identity.

    Args:
        source: (..., N, 3).
        target: (..., N, 3), point by point what `source` shall become.
        weights: (..., N), bool (True = the pair takes part) or ≥ 0. What pairs of weight 0 hold, NaN included, counts
            for nothing. None = all alike.

    Returns:
        `Similarity` with the shape (...), float32 or better.

    Raises:
        ValueError: For other shapes, or integer points.
    """
    check_shape("source", source, ("...", "N", 3))
    check_shape("target", target, tuple(source.shape))
    check_floating("source", source)
    if weights is None:
        weights = torch.ones(source.shape[:-1], dtype=torch.bool, device=source.device)
    check_shape("weights", weights, tuple(source.shape[:-1]))
    return _fit(source, target, weights)


@float32_island
def apply_similarity(similarity: Similarity, points: Float[Tensor, "*batch n 3"]) -> Float[Tensor, "*batch n 3"]:
    """Scale · R x + t for N points a similarity, (..., N, 3), float32 or better."""
    turned = points @ similarity.rotation.transpose(-1, -2)
    return similarity.scale[..., None, None] * turned + similarity.translation[..., None, :]


def _fit(source: Tensor, target: Tensor, weights: Tensor) -> Similarity:
    import roma

    takes_part = (weights > 0)[..., None]
    source, target = torch.where(takes_part, source, 0.0), torch.where(takes_part, target, 0.0)
    weights = weights.to(source.dtype)
    total = weights.sum(-1, keepdim=True)
    weights = (weights / torch.where(total > 0, total, 1.0))[..., None]

    source_center, target_center = (weights * source).sum(-2), (weights * target).sum(-2)
    source_unit, source_spread = _center_and_scale(source, source_center, weights)
    target_unit, target_spread = _center_and_scale(target, target_center, weights)
    rotation, scale = roma.rigid_vectors_registration(
        source_unit, target_unit, weights.squeeze(-1) + (total == 0), compute_scaling=True
    )
    # Without an extent there is nothing to turn or to scale: roma's quotient is 0 / 0 there.
    has_extent = source_spread > 0
    identity = torch.eye(3, dtype=source.dtype, device=source.device)
    determined = (has_extent & (target_spread > 0))[..., None, None]
    rotation = torch.where(determined, rotation, identity)
    scale = torch.where(has_extent, scale * target_spread / torch.where(has_extent, source_spread, 1.0), 1.0)
    moved = scale[..., None] * (rotation @ source_center[..., None]).squeeze(-1)
    return Similarity(scale, rotation, target_center - moved)


def _center_and_scale(points: Tensor, center: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Points about their centre with a spread of 1, and the spread: roma's thresholds then mean the same in any unit.

    Points in one place become ones, which keeps every division and its gradient finite, with a spread of 0.
    """
    centered = points - center[..., None, :]
    square = (weights * centered.square()).sum((-2, -1))
    # What rounding leaves of points in one place is no extent.
    size = torch.finfo(points.dtype).eps * (center.square().sum(-1) + square).sqrt()
    has_extent = square.sqrt() > 4 * size
    spread = torch.where(has_extent, square, 1.0).sqrt()
    unit = torch.where(has_extent[..., None, None], centered / spread[..., None, None], 1.0)
    return unit, torch.where(has_extent, spread, 0.0)
