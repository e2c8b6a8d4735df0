"""Point tracks, scored as in TAP-Vid (Doersch et al., 2022)."""

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
"""The side of the square raster on which TAP-Vid measures distances, pixels."""

THRESHOLDS_PX = (1.0, 2.0, 4.0, 8.0, 16.0)


@show_shapes
class TrackScores(NamedTuple):
    """Of every video, in [0, 1]; a data set's score is the plain mean over its videos.

    Attributes:
        average_jaccard: (...), AJ, the mean of `jaccard`.
        average_delta: (...), δ_avg, the mean of `delta`.
        occlusion_accuracy: (...), OA, share of cells whose visibility is right.
        jaccard: (..., 5), true positives / (visible cells + false positives), for the thresholds 1, 2, 4, 8, 16 px.
        delta: (..., 5), share of the visible cells whose distance is below the threshold, seen or not.
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
    """Compare tracks.

    A cell is a track in a frame. With "first", the cells after a track's query frame count; with "strided", all but
    the query frame's. A predicted position that is not finite is a miss.

    Args:
        predicted_px: (..., S, N, 2), on the raster of 256×256 (`scale_to_raster`).
        predicted_visible: (..., S, N) bool, a probability compared with a threshold.
        true_px: (..., S, N, 2), on the same raster; what it holds where the point is not visible counts for nothing.
        true_visible: (..., S, N) bool.
        query_frames: (..., N) integer, the frame in which each track's query is.
        mode: Which cells count.
        valid: (..., N) bool, False = the slot is empty; None = all tracks count.

    Returns:
        `TrackScores` in float64; NaN for a video without a cell that counts (`occlusion_accuracy`), or without a
        visible one (`delta`; `jaccard` too unless there are false positives).

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
    """Coordinates in an image of `image_hw` → on the 256×256 raster: corner pixels' centres become corner pixels'.

    Args:
        coords_px: (..., 2), x and y, pixel centres at integers.
        image_hw: Height and width, pixels.

    Returns:
        (..., 2), float32 or better.

    Raises:
        ValueError: For another shape, or an image of fewer than 2 rows or columns.
    """
    check_shape("coords_px", coords_px, ("...", 2))
    height, width = image_hw
    if min(image_hw) < 2:
        raise ValueError(f"image_hw must be at least (2, 2), got {tuple(image_hw)}")
    return coords_px * coords_px.new_tensor([(RASTER - 1) / (width - 1), (RASTER - 1) / (height - 1)])


def select_queries(visible: Tensor, *, mode: QueryMode = "first", stride: int = 5) -> tuple[Tensor, Tensor]:
    """The queries of a video: "first", each track's first visible frame; "strided", every fifth where it is visible.

    Args:
        visible: (S, N) bool.
        mode: Which.
        stride: Frames between queries of "strided".

    Returns:
        Index of the track and index of the frame, (Q,) each. A track that is never visible has no query, and with
        "strided" one track may have several.

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
    frames = torch.arange(num_frames, device=query_frames.device)[:, None]
    queries = query_frames[..., None, :]
    return frames > queries if mode == "first" else frames != queries
