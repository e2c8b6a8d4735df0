"""Scores of point tracks, as in TAP-Vid (Doersch et al. 2022)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from geomtx.checks import check_mask, check_option, check_positive, check_shape
from geomtx.layers.precision import float32_island
from geomtx.types import Float, show_shapes

__all__ = ["RASTER", "THRESHOLDS_PX", "QueryMode", "TrackScores", "scale_to_raster", "select_queries", "track_scores"]

QueryMode = Literal["first", "strided"]

RASTER = 256
"""Side of the square raster on which TAP-Vid measures distances, pixels."""

THRESHOLDS_PX = (1.0, 2.0, 4.0, 8.0, 16.0)


@show_shapes
class TrackScores(NamedTuple):
    """Scores of every video in [0, 1]; the score of a data set is the mean over its videos.

    A cell is a track in a frame.

    Attributes:
        average_jaccard: Mean of `jaccard`, (…); AJ of TAP-Vid.
        average_delta: Mean of `delta`, (…); δ_avg of TAP-Vid.
        occlusion_accuracy: Share of cells whose visibility is predicted correctly, (…); OA of TAP-Vid.
        jaccard: True positives over visible cells plus false positives, (…, 5), for thresholds of 1, 2, 4, 8 and 16
            pixels.
        delta: Share of visible cells with an error below the threshold, whether predicted visible or not, (…, 5).
    """

    average_jaccard: Float[Tensor, "*batch"]
    average_delta: Float[Tensor, "*batch"]
    occlusion_accuracy: Float[Tensor, "*batch"]
    jaccard: Float[Tensor, "*batch t"]
    delta: Float[Tensor, "*batch t"]


def track_scores(
    predicted_px: Float[Tensor, "*batch s n 2"],
    predicted_visible: Tensor,
    true_px: Float[Tensor, "*batch s n 2"],
    true_visible: Tensor,
    query_frames: Tensor,
    *,
    mode: QueryMode = "first",
    valid: Tensor | None = None,
) -> TrackScores:
    """Compare predicted tracks with the true ones.

    A cell is a track in a frame. With "first", the cells after the query frame of a track count; with "strided", all
    cells except those of the query frame. A predicted position that isn't finite is a miss.

    Args:
        predicted_px: Predicted positions on the raster of 256×256 pixels (`scale_to_raster`), (…, S, N, 2).
        predicted_visible: Whether a point is predicted visible, (…, S, N) bool.
        true_px: True positions on the same raster, (…, S, N, 2); positions of occluded points have no influence.
        true_visible: Whether a point is visible, (…, S, N) bool.
        query_frames: Index of the frame with the query of each track, (…, N).
        mode: Query mode, "first" or "strided", which selects the cells that count. Defaults to "first".
        valid: Whether a slot holds a track, (…, N) bool. Defaults to all slots.

    Returns:
        `TrackScores` in float64; NaN for a video without a cell that counts (`occlusion_accuracy`), or without a
        visible cell (`delta`, and `jaccard` unless there are false positives).

    Raises:
        ValueError: For other shapes, visibility that isn't bool, or another mode.
    """
    check_shape("predicted_px", predicted_px, ("...", "S", "N", 2))
    shape = tuple(predicted_px.shape)
    check_shape("true_px", true_px, shape)
    check_mask("predicted_visible", predicted_visible, shape[:-1])
    check_mask("true_visible", true_visible, shape[:-1])
    check_shape("query_frames", query_frames, (*shape[:-3], shape[-2]))
    check_option("mode", mode, ("first", "strided"))
    cells = _evaluated_cells(query_frames, shape[-3], mode)
    if valid is not None:
        check_mask("valid", valid, (*shape[:-3], shape[-2]))
        cells = cells & valid[..., None, :]

    truly_seen = true_visible & cells
    distance_sq = (predicted_px.double() - true_px.double()).square().sum(-1)
    limits = torch.tensor(THRESHOLDS_PX, dtype=torch.float64, device=predicted_px.device)
    within = (distance_sq[..., None] < limits.square()) & truly_seen[..., None]

    num_seen = truly_seen.sum((-2, -1)).double()[..., None]
    hits = (within & predicted_visible[..., None]).sum((-3, -2)).double()
    alarms = (predicted_visible & cells).sum((-2, -1)).double()[..., None] - hits
    jaccard = hits / (num_seen + alarms)
    delta = within.sum((-3, -2)) / num_seen
    right = ((predicted_visible == true_visible) & cells).sum((-2, -1)).double() / cells.sum((-2, -1))
    return TrackScores(jaccard.mean(-1), delta.mean(-1), right, jaccard, delta)


@float32_island
def scale_to_raster(coords_px: Float[Tensor, "*batch 2"], image_hw: tuple[int, int]) -> Float[Tensor, "*batch 2"]:
    """Scale image coordinates to the raster of 256×256 pixels, so that centres of corner pixels map to each other.

    Args:
        coords_px: Positions x and y, (…, 2), pixels, pixel centres at integers.
        image_hw: Height and width of the image, pixels, at least 2.

    Returns:
        Positions on the raster, (…, 2), pixels, float32 or float64.

    Raises:
        ValueError: For another shape, or an image of fewer than 2 rows or columns.
    """
    check_shape("coords_px", coords_px, ("...", 2))
    height, width = image_hw
    if min(image_hw) < 2:
        raise ValueError(f"image_hw must be at least (2, 2), got {tuple(image_hw)}")
    return coords_px * coords_px.new_tensor([(RASTER - 1) / (width - 1), (RASTER - 1) / (height - 1)])


def select_queries(visible: Tensor, *, mode: QueryMode = "first", stride: int = 5) -> tuple[Tensor, Tensor]:
    """Select the queries of a video.

    Args:
        visible: Whether a track is visible in a frame, (S, N) bool.
        mode: "first" for the first visible frame of each track, "strided" for every `stride`-th frame in which it is
            visible. Defaults to "first".
        stride: Number of frames between queries of "strided", positive. Defaults to 5.

    Returns:
        Indices of the track and of the frame of every query, (Q,) each. A track that is never visible has no query;
        with "strided" a track may have several.

    Raises:
        ValueError: For another shape, mode, or a stride that is not positive.
    """
    check_mask("visible", visible, ("S", "N"))
    check_option("mode", mode, ("first", "strided"))
    check_positive("stride", stride)
    if mode == "first":
        tracks = visible.any(0).nonzero().squeeze(-1)
        return tracks, visible.int().argmax(0)[tracks]
    rows, tracks = visible[::stride].nonzero(as_tuple=True)
    return tracks, rows * stride


def _evaluated_cells(query_frames: Tensor, num_frames: int, mode: QueryMode) -> Tensor:
    """Return whether a cell counts, (…, S, N) bool."""
    frames = torch.arange(num_frames, device=query_frames.device)[:, None]
    queries = query_frames[..., None, :]
    return frames > queries if mode == "first" else frames != queries
