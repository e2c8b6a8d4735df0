"""Losses of point tracks: over all refinements of unordered views (VGGT, section 3.4, after CoTracker2), and in
windows of a video (CoTracker2 and CoTracker3, Karaev et al. 2023, 2024).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from geomtx.checks import check_finite_positive, check_mask, check_option, check_positive, check_shape
from geomtx.layers.precision import at_least_float32
from geomtx.losses.reduce import average_stages, has_enough, masked_mean, over_batch, select
from geomtx.types import Bool, Int, TrackIterations, TrackLabels, TrackWindows, show_shapes

__all__ = [
    "TrackLoss",
    "WindowLoss",
    "confident_window_loss",
    "track_loss",
    "window_loss",
]


@show_shapes
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


@show_shapes
class WindowLoss(NamedTuple):
    """Output of `window_loss`: scalars, or (K, B, W, N) unreduced. `total` is the weighted sum of the others."""

    total: Tensor
    position: Tensor
    visibility: Tensor


class _Cells(NamedTuple):
    """Labels as the windows have them, (K, B, W, N); a cell counts from its track's query on."""

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
    """CoTracker2's: L1 of the positions after every iteration, and cross-entropy of the visibility after the last.

    A view of a valid track counts from its query's on. In each window, positions are averaged over what counts, seen
    or not, where iteration i of I has the weight decay^(I-1-i) / I; the cross-entropy is averaged over the visible and
    over the hidden cells apart, and the two added. The sums over all windows are divided by N, as published.

    Args:
        windows: Of a tracker, any floating dtype. Logits, not probabilities.
        labels: True tracks in all views, as many as predicted. What they hold where nothing counts has no influence.
        query_views: (B, N), the view of each track's query.
        known: (B, S, N) bool, True = the true position is known, hidden or not; None = wherever the point is
            seen or its coordinates are finite.
        decay: Weight of an iteration relative to the next one, positive.
        visibility_weight: In the total.
        reduction: "mean", as above; "none" = (K, B, W, N), 0 for what doesn't count, without balance and windows'
            means.

    Returns:
        `WindowLoss`, float32 or better, positions in pixels. Where nothing counts, zeros that have a graph.

    Raises:
        ValueError: For shapes that differ, or other options.
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
    decay: float = 0.8,
    delta: float = 6.0,
    visible_weight: float = 0.05,
    occluded_weight: float = 0.01,
    threshold_px: float = 12.0,
    visibility_weight: float = 1.0,
    confidence_weight: float = 1.0,
    reduction: Literal["mean", "none"] = "mean",
) -> TrackLoss:
    """CoTracker3's: positions by whether they are seen, visibility and confidence after every iteration.

    A view of a valid track counts from its query's on. The position is Huber's error where the point is seen, and L1
    where it isn't, each the mean of x and y, with the weight decay^(I-1-i) / I of iteration i of I. A prediction
    deserves confidence where it is within `threshold_px` of the truth; that cross-entropy is 0 where the point isn't
    seen. Both cross-entropies are averaged over the iterations.

    Args:
        windows: As in `window_loss`.
        labels: As in `window_loss`.
        query_views: As in `window_loss`.
        known: As in `window_loss`.
        decay: As in `window_loss`.
        delta: Where Huber's error turns from squared to linear, pixels.
        visible_weight: Of the seen positions' mean.
        occluded_weight: Of the others' mean.
        threshold_px: Largest error of a prediction that is right, pixels.
        visibility_weight: In the total.
        confidence_weight: In the total.
        reduction: "mean" = over what counts, in all windows together; confidence over all cells that count, seen or
            not. "none" = (K, B, W, N), 0 for what doesn't count.

    Returns:
        `TrackLoss`, its position with the weights of seen and others; float32 or better. Where nothing counts, zeros
        that have a graph.

    Raises:
        ValueError: For shapes that differ, or other options.
    """
    check_option("reduction", reduction, ("mean", "none"))
    for name, value in (("decay", decay), ("delta", delta), ("threshold_px", threshold_px)):
        check_finite_positive(name, value)
    cells = _match_cells(windows, labels, query_views, known)
    seen, hidden = cells.has_position & cells.visible, cells.has_position & ~cells.visible
    with torch.autocast(windows.coords_px.device.type, enabled=False):
        difference = _difference(windows, cells, cells.has_position)
        zeros = torch.zeros_like(difference)
        huber = F.huber_loss(difference, zeros, reduction="none", delta=delta).mean(-1).transpose(0, 1)
        near = select(average_stages(huber, decay), seen)
        far = select(average_stages(difference.abs().mean(-1).transpose(0, 1), decay), hidden)
        visibility = _mean_binary_error(windows.visibility_logits, cells.visible[:, None], cells.counts)
        is_right = torch.linalg.vector_norm(difference.detach(), dim=-1) <= threshold_px
        confidence = _mean_binary_error(windows.confidence_logits, is_right, seen)
        if reduction == "mean":
            near, far = masked_mean(near, seen), masked_mean(far, hidden)
            visibility, confidence = masked_mean(visibility, cells.counts), masked_mean(confidence, cells.counts)
        position = visible_weight * near + occluded_weight * far
        total = position + visibility_weight * visibility + confidence_weight * confidence
    return TrackLoss(total, position, visibility, confidence)


def _match_cells(windows: TrackWindows, labels: TrackLabels, query_views: Tensor, known: Tensor | None) -> _Cells:
    """The labels of every window's views; all inputs are checked here."""
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
        """(B, S, …) → (K, B, W, …)."""
        return values[:, index].unflatten(1, (k, w)).transpose(0, 1)

    views = windows.views[:, None, :, None]
    counts = labels.valid[:, None] & (views >= query_views[:, None])
    counts = counts & (views >= 0)
    if known is None:
        known = labels.visible | labels.coords_px.isfinite().all(-1)
    has_position = counts & spread(known)
    return _Cells(spread(labels.coords_px), spread(labels.visible) & counts, counts, has_position)


def _difference(windows: TrackWindows, cells: _Cells, mask: Tensor) -> Tensor:
    """Error of every iteration, (K, I, B, W, N, 2), pixels; 0 where the mask is False."""
    coords, target = at_least_float32(windows.coords_px), at_least_float32(cells.target)
    return select(coords, mask[:, None, ..., None]) - select(target, mask[..., None])[:, None]


def _binary_error(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of logits against booleans, of their shape; 0 where the mask is False."""
    logits = select(at_least_float32(logits), mask)
    target = target.expand_as(logits).to(logits.dtype)
    return select(F.binary_cross_entropy_with_logits(logits, target, reduction="none"), mask)


def _mean_binary_error(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """`_binary_error` of (K, I, …), averaged over the iterations."""
    return _binary_error(logits, target, mask[:, None]).mean(1)


def _sum_of_means(values: Tensor, mask: Tensor) -> Tensor:
    """Masked means of every window, (K, …), added up."""
    rows = mask.flatten(1)
    return (select(values.flatten(1), rows).sum(1) / over_batch(rows.sum(1)).clamp(min=1)).sum()
