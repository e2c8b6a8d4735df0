"""Track loss: positions after every refinement, visibility and confidence (VGGT, section 3.4, after CoTracker2)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from geomtx.checks import check_mask, check_option, check_positive, check_shape
from geomtx.layers.float32 import at_least_float32
from geomtx.losses.reduce import average_stages, has_enough, masked_mean, over_batch, select
from geomtx.types import TrackIterations, TrackLabels

__all__ = ["TrackLoss", "track_loss"]


class TrackLoss(NamedTuple):
    """Output of `track_loss`: scalars, or (B, S, N) unreduced. `total` is the weighted sum of the others."""

    total: Tensor
    position: Tensor
    visibility: Tensor
    confidence: Tensor


def track_loss(
    iterations: TrackIterations,
    labels: TrackLabels,
    *,
    decay: float = 0.8,
    kind: Literal["l1", "huber"] = "l1",
    delta: float = 10.0,
    threshold_px: float = 3.0,
    visibility_weight: float = 1.0,
    confidence_weight: float = 1.0,
    visible_boost: float | None = None,
    min_points: int = 3,
    reduction: Literal["mean", "none"] = "mean",
) -> TrackLoss:
    """Compare tracks with the true ones.

    A track counts if its slot is valid and its point is seen in view 0, where its query is. Positions count where the
    point is seen; visibility and confidence count in all views of such a track. A prediction deserves confidence
    where the last refinement is within `threshold_px` of the truth, also where the point is hidden; labels that don't
    know where a hidden point is must hold NaN there, and such views have no say in the confidence. Refinement i of I
    counts decay^(I-1-i) / I. The weights of visibility and confidence are unpublished.

    Args:
        iterations: Of a track head, any floating dtype. Logits, not probabilities.
        labels: True tracks, as many as predicted. What they hold where a track doesn't count has no influence.
        decay: Weight of a refinement relative to the next one, positive.
        kind: "l1" or "huber", both the mean over x and y.
        delta: Where "huber" turns from squared to linear, pixels.
        threshold_px: Largest error of a prediction that is right, pixels, exclusive.
        visibility_weight: In the total.
        confidence_weight: In the total.
        visible_boost: None = positions count only where the point is seen. A number, such as 0.1 = they count in all
            views of a track where the true coordinates are known, 1 + that much where the point is seen and 1
            elsewhere.
        min_points: With fewer positions than this in the batch, the position loss is zero, as published.
        reduction: "mean", or "none".

    Returns:
        Scalars, or (B, S, N) with 0 for what doesn't count; float32 or better. Position in pixels. Without a track
        that counts, zeros that have a graph.

    Raises:
        ValueError: For shapes that differ, other options, a negative `visible_boost`, and for `decay`, `delta`,
            `threshold_px` or `min_points` that are not positive.
    """
    _check_inputs(iterations, labels)
    check_option("kind", kind, ("l1", "huber"))
    check_option("reduction", reduction, ("mean", "none"))
    numbers = (("decay", decay), ("delta", delta), ("threshold_px", threshold_px), ("min_points", min_points))
    for name, value in numbers:
        check_positive(name, value)
    if visible_boost is not None and not visible_boost >= 0:
        raise ValueError(f"visible_boost must be None or at least 0, got {visible_boost}")
    counts = (labels.valid & labels.visible[:, 0])[:, None].expand_as(labels.visible)
    seen = labels.visible & counts
    # NaN where a point is seen is a mistake, and shows in the loss; where it is hidden, it says that nobody knows.
    located = counts & (labels.visible | labels.coords_px.isfinite().all(-1))
    with torch.autocast(iterations.coords_px.device.type, enabled=False):
        coords, target, visibility_logits, confidence_logits = map(
            at_least_float32,
            (iterations.coords_px, labels.coords_px, iterations.visibility_logits, iterations.confidence_logits),
        )
        has_position = seen if visible_boost is None else located
        weight = has_position.to(coords.dtype) + (visible_boost or 0.0) * seen
        position = weight * _position_error(coords, target, has_position, kind, delta, decay)
        visibility = _binary_error(visibility_logits, seen, counts)
        is_right = torch.linalg.vector_norm(coords[-1].detach() - target, dim=-1) < threshold_px
        confidence = _binary_error(confidence_logits, is_right, located)
        if reduction == "mean":
            enough = has_enough(has_position.sum(), min_points)
            # A weight is at least one where there is one.
            position = select(position, enough).sum() / over_batch(weight.sum()).clamp(min=1)
            visibility, confidence = masked_mean(visibility, counts), masked_mean(confidence, located)
        total = position + visibility_weight * visibility + confidence_weight * confidence
    return TrackLoss(total, position, visibility, confidence)


def _check_inputs(iterations: TrackIterations, labels: TrackLabels) -> None:
    check_shape("iterations.coords_px", iterations.coords_px, ("I", "B", "S", "N", 2))
    b, s, n = iterations.coords_px.shape[1:4]
    check_shape("iterations.visibility_logits", iterations.visibility_logits, (b, s, n))
    check_shape("iterations.confidence_logits", iterations.confidence_logits, (b, s, n))
    check_shape("labels.coords_px", labels.coords_px, (b, s, n, 2))
    check_mask("labels.visible", labels.visible, (b, s, n))
    check_mask("labels.valid", labels.valid, (b, n))


def _position_error(coords: Tensor, target: Tensor, mask: Tensor, kind: str, delta: float, decay: float) -> Tensor:
    """Error of all refinements together, (B, S, N), pixels; 0 where the mask is False."""
    difference = select(coords, mask[..., None]) - select(target, mask[..., None])
    if kind == "huber":
        error = F.huber_loss(difference, torch.zeros_like(difference), reduction="none", delta=delta)
    else:
        error = difference.abs()
    return average_stages(error.mean(-1), decay)


def _binary_error(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of logits against booleans, (B, S, N); 0 where the mask is False."""
    error = F.binary_cross_entropy_with_logits(select(logits, mask), target.to(logits.dtype), reduction="none")
    return select(error, mask)
