"""Losses of point tracks, over all refinements in unordered views (VGGT, section 3.4, after CoTracker2) and in the
windows of a video (CoTracker2 and CoTracker3, Karaev et al. 2023, 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from geomtx.checks import check_finite_positive, check_mask, check_option, check_positive, check_shape
from geomtx.layers.precision import at_least_float32
from geomtx.losses.penalty import Penalty
from geomtx.losses.reduce import average_stages, has_enough, masked_mean, over_batch, select
from geomtx.types import Bool, Int, TrackIterations, TrackLabels, TrackWindows, show_shapes

__all__ = [
    "ConfidentWindowSettings",
    "TrackLoss",
    "TrackWeights",
    "WindowLoss",
    "confident_window_loss",
    "track_loss",
    "window_loss",
]

# Error at which Huber's loss turns from squared to linear, pixels.
DELTA_PX = 10.0


@show_shapes
class TrackLoss(NamedTuple):
    """Output of `track_loss`: scalars, or (B, S, N) without reduction.

    Attributes:
        total: Weighted sum of the three parts.
        position: Error of the positions, pixels.
        visibility: Binary cross-entropy of the visibility.
        confidence: Binary cross-entropy of the confidence.
    """

    total: Tensor
    position: Tensor
    visibility: Tensor
    confidence: Tensor


@dataclass(frozen=True)
class TrackWeights:
    """Weights within `track_loss`. Those of visibility and confidence are not published.

    Attributes:
        visibility: Weight of the visibility loss in the total. Defaults to 1.
        confidence: Weight of the confidence loss in the total. Defaults to 1.
        visible_boost: Extra weight b ≥ 0, such as 0.1, of visible points: positions count in all views of a track in
            which the true coordinates are known, with weight 1 + b where the point is visible and 1 elsewhere. Defaults
            to None: positions count only where the point is visible.

    Raises:
        ValueError: For a negative `visible_boost`.
    """

    visibility: float = 1.0
    confidence: float = 1.0
    visible_boost: float | None = None

    def __post_init__(self) -> None:
        if self.visible_boost is not None and not self.visible_boost >= 0:
            raise ValueError(f"visible_boost must be None or at least 0, got {self.visible_boost}")


WEIGHTS = TrackWeights()


def track_loss(
    iterations: TrackIterations,
    labels: TrackLabels,
    *,
    decay: float = 0.8,
    kind: Literal["l1", "huber"] | Penalty = "l1",
    threshold_px: float = 3.0,
    weights: TrackWeights = WEIGHTS,
    min_points: int = 3,
    reduction: Literal["mean", "none"] = "mean",
) -> TrackLoss:
    """Compare predicted tracks with the true ones.

    A track counts if its slot is valid and its point is visible in view 0, which has its query. Positions count where
    the point is visible; visibility and confidence count in all views of such a track. The target of the confidence is
    1 where the last refinement is within `threshold_px` of the truth, also where the point is hidden; labels in which
    the position of a hidden point is unknown must hold NaN there, and such views don't count in the confidence.
    Refinement i of I has the weight decay^(I-1-i) / I.

    Args:
        iterations: Output of a track head for all refinements, any floating dtype; logits, not probabilities.
        labels: True tracks, as many as predicted. Their values have no influence where a track doesn't count.
        decay: Weight of a refinement relative to the next one, positive. Defaults to 0.8.
        kind: "l1" or "huber", the mean over x and y; or a `Penalty` of these, whose delta defaults to 10 pixels and
            whose clamp applies to each coordinate. Defaults to "l1".
        threshold_px: Error below which a prediction is correct, pixels, positive. Defaults to 3.
        weights: Weights of visibility and confidence in the total and, optionally, of hidden positions.
        min_points: Number of positions in the batch below which the position loss is 0. Defaults to 3, as published.
        reduction: "mean" for means over all that counts, "none" for one value a track and view. Defaults to "mean".

    Returns:
        Scalars, or (B, S, N) with 0 for what doesn't count; float32 or float64. Without a track that counts, zeros with
        a graph.

    Raises:
        ValueError: For shapes that differ, other options, or a `decay`, `threshold_px` or `min_points` that is not
            positive.
    """
    _check_inputs(iterations, labels)
    penalty = Penalty.of(kind)
    check_option("kind", penalty.kind, ("l1", "huber"))
    check_option("reduction", reduction, ("mean", "none"))
    for name, value in (("decay", decay), ("threshold_px", threshold_px), ("min_points", min_points)):
        check_positive(name, value)
    counts = (labels.valid & labels.visible[:, 0])[:, None].expand_as(labels.visible)
    seen = labels.visible & counts
    # NaN is an error of the labels where a point is visible, and shows in the loss; it means unknown where it is
    # hidden.
    located = counts & (labels.visible | labels.coords_px.isfinite().all(-1))
    boost = weights.visible_boost
    with torch.autocast(iterations.coords_px.device.type, enabled=False):
        coords, target = at_least_float32(iterations.coords_px), at_least_float32(labels.coords_px)
        has_position = seen if boost is None else located
        weight = has_position.to(coords.dtype) + (boost or 0.0) * seen
        difference = select(coords, has_position[..., None]) - select(target, has_position[..., None])
        position = weight * average_stages(penalty.error(difference, DELTA_PX).mean(-1), decay)
        visibility = _binary_error(iterations.visibility_logits, seen, counts)
        is_right = torch.linalg.vector_norm(coords[-1].detach() - target, dim=-1) < threshold_px
        confidence = _binary_error(iterations.confidence_logits, is_right, located)
        if reduction == "mean":
            enough = has_enough(has_position.sum(), min_points)
            # Every position that counts has a weight of at least 1.
            position = select(position, enough).sum() / over_batch(weight.sum()).clamp(min=1)
            visibility, confidence = masked_mean(visibility, counts), masked_mean(confidence, located)
        total = position + weights.visibility * visibility + weights.confidence * confidence
    return TrackLoss(total, position, visibility, confidence)


def _check_inputs(iterations: TrackIterations, labels: TrackLabels) -> None:
    """Check that predictions and labels have the same numbers of scenes, views and tracks."""
    check_shape("iterations.coords_px", iterations.coords_px, ("I", "B", "S", "N", 2))
    b, s, n = iterations.coords_px.shape[1:4]
    check_shape("iterations.visibility_logits", iterations.visibility_logits, (b, s, n))
    check_shape("iterations.confidence_logits", iterations.confidence_logits, (b, s, n))
    check_shape("labels.coords_px", labels.coords_px, (b, s, n, 2))
    check_mask("labels.visible", labels.visible, (b, s, n))
    check_mask("labels.valid", labels.valid, (b, n))


@show_shapes
class WindowLoss(NamedTuple):
    """Output of `window_loss`: scalars, or (K, B, W, N) without reduction.

    Attributes:
        total: Weighted sum of the two parts.
        position: Error of the positions, pixels.
        visibility: Binary cross-entropy of the visibility.
    """

    total: Tensor
    position: Tensor
    visibility: Tensor


@dataclass(frozen=True)
class ConfidentWindowSettings:
    """Constants of `confident_window_loss`; the defaults are those of CoTracker3.

    Attributes:
        decay: Weight of an iteration relative to the next one, positive.
        delta: Error at which Huber's loss turns from squared to linear, pixels, positive.
        threshold_px: Largest error of a correct prediction, pixels, positive.
        visible_weight: Weight of the mean error of visible positions.
        occluded_weight: Weight of the mean error of occluded positions.
        visibility_weight: Weight of the visibility loss in the total.
        confidence_weight: Weight of the confidence loss in the total.

    Raises:
        ValueError: For a `decay`, `delta` or `threshold_px` that is not positive.
    """

    decay: float = 0.8
    delta: float = 6.0
    threshold_px: float = 12.0
    visible_weight: float = 0.05
    occluded_weight: float = 0.01
    visibility_weight: float = 1.0
    confidence_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("decay", "delta", "threshold_px"):
            check_finite_positive(name, getattr(self, name))


COTRACKER3 = ConfidentWindowSettings()


class _Cells(NamedTuple):
    """Labels of the views of all windows, (K, B, W, N); a cell counts from the view of its track's query on."""

    target: Tensor
    visible: Tensor
    counts: Tensor
    has_position: Tensor


def window_loss(
    windows: TrackWindows,
    labels: TrackLabels,
    query_views: Int[Tensor, "b n"],
    *,
    known: Bool[Tensor, "b s n"] | None = None,
    decay: float = 0.8,
    visibility_weight: float = 10.0,
    reduction: Literal["mean", "none"] = "mean",
) -> WindowLoss:
    """Compute CoTracker2's loss: L1 of the positions after every iteration, cross-entropy of the last visibility.

    A view of a valid track counts from the view of its query on. In each window, positions are averaged over all that
    count, visible or not, with weight decay^(I-1-i) / I for iteration i of I; the cross-entropy is averaged separately
    over visible and over occluded cells, and the two means are added. The sums over all windows are divided by N, as
    published.

    Args:
        windows: Output of a video tracker in K windows of W views, any floating dtype; logits, not probabilities.
        labels: True tracks in all views, as many as predicted. Their values have no influence where nothing counts.
        query_views: Index of the view of each track's query, (B, N).
        known: Whether the true position is known, visible or occluded, (B, S, N) bool. Defaults to wherever the point
            is visible or its coordinates are finite.
        decay: Weight of an iteration relative to the next one, positive. Defaults to 0.8.
        visibility_weight: Weight of the visibility loss in the total. Defaults to 10.
        reduction: "mean" as described, "none" for (K, B, W, N) values without means. Defaults to "mean".

    Returns:
        `WindowLoss`, float32 or float64, with positions in pixels. Where nothing counts, zeros with a graph.

    Raises:
        ValueError: For shapes that differ, other options, or a `decay` that is not positive.
    """
    check_option("reduction", reduction, ("mean", "none"))
    check_finite_positive("decay", decay)
    cells = _match_cells(windows, labels, query_views, known)
    with torch.autocast(windows.coords_px.device.type, enabled=False):
        difference = _difference(windows, cells, cells.has_position)
        position = average_stages(difference.abs().mean(-1).transpose(0, 1), decay)
        visibility = _binary_error(windows.visibility_logits[:, -1], cells.visible, cells.counts)
        if reduction == "mean":
            num_tracks = max(labels.valid.shape[1], 1)
            hidden = cells.counts & ~cells.visible
            position = _sum_of_means(position, cells.has_position) / num_tracks
            balanced = _sum_of_means(visibility, cells.visible) + _sum_of_means(visibility, hidden)
            visibility = balanced / num_tracks
        total = position + visibility_weight * visibility
    return WindowLoss(total, position, visibility)


def confident_window_loss(
    windows: TrackWindows,
    labels: TrackLabels,
    query_views: Int[Tensor, "b n"],
    *,
    known: Bool[Tensor, "b s n"] | None = None,
    settings: ConfidentWindowSettings = COTRACKER3,
    reduction: Literal["mean", "none"] = "mean",
) -> TrackLoss:
    """Compute CoTracker3's loss: positions weighted by visibility, visibility and confidence after every iteration.

    A view of a valid track counts from the view of its query on. The position error is Huber's where the point is
    visible and L1 where it is occluded, each the mean over x and y, with weight decay^(I-1-i) / I for iteration i of I.
    The target of the confidence is 1 where a prediction is within `threshold_px` of the truth; its cross-entropy is 0
    where the point is occluded. Both cross-entropies are averaged over the iterations.

    Args:
        windows: Output of a video tracker, see `window_loss`.
        labels: True tracks in all views, see `window_loss`.
        query_views: Index of the view of each track's query, (B, N).
        known: Whether the true position is known, (B, S, N) bool, see `window_loss`.
        settings: Constants of the loss; default to those of CoTracker3.
        reduction: "mean" for means over all that counts in all windows together (of the confidence over visible and
            occluded cells), "none" for (K, B, W, N) values with 0 for what doesn't count. Defaults to "mean".

    Returns:
        `TrackLoss`, whose position is weighted by visibility; float32 or float64. Where nothing counts, zeros with a
        graph.

    Raises:
        ValueError: For shapes that differ, or other options.
    """
    check_option("reduction", reduction, ("mean", "none"))
    cells = _match_cells(windows, labels, query_views, known)
    seen, hidden = cells.has_position & cells.visible, cells.has_position & ~cells.visible
    with torch.autocast(windows.coords_px.device.type, enabled=False):
        difference = _difference(windows, cells, cells.has_position)
        zeros = torch.zeros_like(difference)
        huber = F.huber_loss(difference, zeros, reduction="none", delta=settings.delta).mean(-1).transpose(0, 1)
        near = select(average_stages(huber, settings.decay), seen)
        far = select(average_stages(difference.abs().mean(-1).transpose(0, 1), settings.decay), hidden)
        visibility = _mean_binary_error(windows.visibility_logits, cells.visible[:, None], cells.counts)
        is_right = torch.linalg.vector_norm(difference.detach(), dim=-1) <= settings.threshold_px
        confidence = _mean_binary_error(windows.confidence_logits, is_right, seen)
        if reduction == "mean":
            near, far = masked_mean(near, seen), masked_mean(far, hidden)
            visibility, confidence = masked_mean(visibility, cells.counts), masked_mean(confidence, cells.counts)
        position = settings.visible_weight * near + settings.occluded_weight * far
        total = position + settings.visibility_weight * visibility + settings.confidence_weight * confidence
    return TrackLoss(total, position, visibility, confidence)


def _match_cells(windows: TrackWindows, labels: TrackLabels, query_views: Tensor, known: Tensor | None) -> _Cells:
    """Check all inputs and return the labels of the views of every window."""
    check_shape("windows.coords_px", windows.coords_px, ("K", "I", "B", "W", "N", 2))
    k, i, b, w, n = windows.coords_px.shape[:5]
    check_shape("windows.visibility_logits", windows.visibility_logits, (k, i, b, w, n))
    check_shape("windows.confidence_logits", windows.confidence_logits, (k, i, b, w, n))
    check_shape("windows.views", windows.views, (k, w))
    check_shape("labels.coords_px", labels.coords_px, (b, "S", n, 2))
    num_views = labels.coords_px.shape[1]
    check_mask("labels.visible", labels.visible, (b, num_views, n))
    check_mask("labels.valid", labels.valid, (b, n))
    check_shape("query_views", query_views, (b, n))
    if known is not None:
        check_mask("known", known, (b, num_views, n))
    index = windows.views.clamp(min=0).flatten()

    def spread(values: Tensor) -> Tensor:
        """Return the values of the views of every window: (B, S, …) → (K, B, W, …)."""
        return values[:, index].unflatten(1, (k, w)).transpose(0, 1)

    views = windows.views[:, None, :, None]
    counts = labels.valid[:, None] & (views >= query_views[:, None])
    counts = counts & (views >= 0)
    if known is None:
        known = labels.visible | labels.coords_px.isfinite().all(-1)
    has_position = counts & spread(known)
    return _Cells(spread(labels.coords_px), spread(labels.visible) & counts, counts, has_position)


def _difference(windows: TrackWindows, cells: _Cells, mask: Tensor) -> Tensor:
    """Return the error of every iteration, (K, I, B, W, N, 2), pixels; 0 where the mask is False."""
    coords, target = at_least_float32(windows.coords_px), at_least_float32(cells.target)
    return select(coords, mask[:, None, ..., None]) - select(target, mask[..., None])[:, None]


def _binary_error(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the binary cross-entropy of logits against bool targets, (…); 0 where the mask is False.

    Args:
        logits: Logits, (…), any floating dtype.
        target: Targets, bool, broadcastable to `logits`.
        mask: Whether an entry counts, bool, broadcastable to `logits`. Masked logits may be NaN.
    """
    logits = select(at_least_float32(logits), mask)
    target = target.expand_as(logits).to(logits.dtype)
    return select(F.binary_cross_entropy_with_logits(logits, target, reduction="none"), mask)


def _mean_binary_error(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return `_binary_error` of logits (K, I, …), averaged over the iterations."""
    return _binary_error(logits, target, mask[:, None]).mean(1)


def _sum_of_means(values: Tensor, mask: Tensor) -> Tensor:
    """Return the sum of the masked means of all windows, (K, …)."""
    rows = mask.flatten(1)
    return (select(values.flatten(1), rows).sum(1) / over_batch(rows.sum(1)).clamp(min=1)).sum()
