"""Evaluation of all predictions of a model in one call."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.checks import check_shape
from geomtx.geometry.projection import unproject
from geomtx.geometry.scene_frame import known_pixels, normalize_scene
from geomtx.metrics.depth import depth_scores
from geomtx.metrics.pointcloud import PointCloudScores, point_map_scores
from geomtx.metrics.pose import pairwise_pose_errors, pose_auc, pose_recall, trajectory_errors
from geomtx.metrics.tracking import scale_to_raster, track_scores
from geomtx.types import Bool, Float, Predictions, SceneBatch, show_shapes

__all__ = ["Evaluation", "evaluate_predictions", "measure_depth", "measure_poses", "summarize"]

_NAN = float("nan")


@show_shapes
class Evaluation(NamedTuple):
    """Scores of every scene, (B,), float64; NaN where one is undefined. Lengths are in units of the scene.

    Attributes:
        auc_5: Area under the curve of the pairwise pose errors up to 5 degrees, in [0, 1]; see `pose_auc`.
        auc_15: Area under the curve up to 15 degrees.
        auc_30: Area under the curve up to 30 degrees.
        rra_5: Share of pairs of views with a rotation error below 5 degrees, in [0, 1].
        rra_15: Share of pairs with a rotation error below 15 degrees.
        rra_30: Share of pairs with a rotation error below 30 degrees.
        rta_5: Share of pairs of views with a translation direction error below 5 degrees, in [0, 1].
        rta_15: Share of pairs with a translation direction error below 15 degrees.
        rta_30: Share of pairs with a translation direction error below 30 degrees.
        ate: Root mean square distance of the camera centres after a similarity; needs three views.
        depth_abs_rel: Mean of |d - g| / g of predicted depth d and true depth g after median alignment.
        depth_delta: Share of pixels with max(d / g, g / d) < 1.25, in [0, 1].
        head_accuracy: Accuracy of the points of the point head after a similarity; see `PointCloudScores`.
        head_completeness: Completeness of the points of the point head.
        head_overall: Mean of accuracy and completeness of the point head.
        unprojected_accuracy: Accuracy of the predicted depth unprojected with the predicted cameras.
        unprojected_completeness: Completeness of the unprojected depth.
        unprojected_overall: Mean of accuracy and completeness of the unprojected depth.
        track_jaccard: Average Jaccard of TAP-Vid with images scaled to 256×256, queries in view 0, all other views.
        track_delta: Average share of visible points within 1, 2, 4, 8 and 16 pixels (δ_avg of TAP-Vid).
        track_visibility: Occlusion accuracy of TAP-Vid.
        failed: Whether a prediction isn't finite (of a track, or of a camera or pixel whose truth is known) or no depth
            of a known pixel is positive, (B,) bool. Pose and track scores count it as an error; depth and point scores
            of the scene are NaN, except for `depth_delta`, which is 0 where no depth is positive.
    """

    auc_5: Float[Tensor, " b"]
    auc_15: Float[Tensor, " b"]
    auc_30: Float[Tensor, " b"]
    rra_5: Float[Tensor, " b"]
    rra_15: Float[Tensor, " b"]
    rra_30: Float[Tensor, " b"]
    rta_5: Float[Tensor, " b"]
    rta_15: Float[Tensor, " b"]
    rta_30: Float[Tensor, " b"]
    ate: Float[Tensor, " b"]
    depth_abs_rel: Float[Tensor, " b"]
    depth_delta: Float[Tensor, " b"]
    head_accuracy: Float[Tensor, " b"]
    head_completeness: Float[Tensor, " b"]
    head_overall: Float[Tensor, " b"]
    unprojected_accuracy: Float[Tensor, " b"]
    unprojected_completeness: Float[Tensor, " b"]
    unprojected_overall: Float[Tensor, " b"]
    track_jaccard: Float[Tensor, " b"]
    track_delta: Float[Tensor, " b"]
    track_visibility: Float[Tensor, " b"]
    failed: Bool[Tensor, " b"]


@torch.no_grad()
def evaluate_predictions(
    predictions: Predictions,
    batch: SceneBatch,
    *,
    visibility_threshold: float = 0.5,
    max_queries: int | None = 20_000,
) -> Evaluation:
    """Evaluate the predictions for a batch of scenes.

    Scores of what the predictions or the batch don't contain are NaN, as are pose scores of scenes with one view.

    Args:
        predictions: Predictions of a model for `batch.images`; tracks of the queries `batch.tracks.coords_px[:, 0]`.
        batch: Ground truth in any world frame and unit; `normalize_scene` is applied to it.
        visibility_threshold: Predicted visibility above which a point counts as visible, in [0, 1]. Defaults to 0.5.
        max_queries: Number of points of each cloud from which nearest points are searched, see `pointcloud_scores`;
            None searches from all. Defaults to 20000.

    Returns:
        `Evaluation`.

    Raises:
        ValueError: For predictions of other shapes than those of the batch.
    """
    batch, _ = normalize_scene(batch)
    num_scenes, _, _, height, width = batch.images.shape
    failed = torch.zeros(num_scenes, dtype=torch.bool, device=batch.images.device)
    measured: dict[str, Tensor] = {}
    for part in (
        measure_poses(predictions, batch),
        measure_depth(predictions, batch),
        _measure_points(predictions, batch, max_queries),
        _measure_tracks(predictions, batch, (height, width), visibility_threshold),
    ):
        failed = failed | part.pop("failed", failed)
        measured |= part
    nothing = torch.full((num_scenes,), torch.nan, dtype=torch.float64, device=batch.images.device)
    return Evaluation(**{name: measured.get(name, nothing) for name in Evaluation._fields[:-1]}, failed=failed)


def summarize(evaluations: Iterable[Evaluation]) -> dict[str, float]:
    """Average the scores of all scenes of several batches.

    Args:
        evaluations: Evaluations of batches of any size.

    Returns:
        Mean of every score over the scenes in which it is defined (NaN if there are none), `scenes`, the number of
        scenes, and `failed`, the number of scenes with predictions that couldn't be evaluated. With failed scenes, the
        depth and point scores are too optimistic.
    """
    parts = list(evaluations)
    summary = {}
    for name in Evaluation._fields[:-1]:
        values = [value for part in parts for value in getattr(part, name).tolist() if not math.isnan(value)]
        summary[name] = math.fsum(values) / len(values) if values else _NAN
    summary["scenes"] = float(sum(len(part.failed) for part in parts))
    summary["failed"] = float(sum(int(part.failed.sum()) for part in parts))
    return summary


def measure_poses(predictions: Predictions, batch: SceneBatch) -> dict[str, Tensor]:
    """Return the pose scores of `Evaluation`, (B,) each, or an empty mapping without cameras."""
    if predictions.cameras is None or batch.cameras is None:
        return {}
    predicted, true, mask = predictions.cameras.cam_from_world, batch.cameras.cam_from_world, batch.camera_mask
    check_shape("predictions.cameras.cam_from_world", predicted, tuple(true.shape))
    broken = ~predicted.isfinite().all(-1).all(-1)
    measured = {"failed": (broken if mask is None else broken & mask).any(-1)}
    if true.shape[1] < 2:
        return measured
    errors = pairwise_pose_errors(predicted, true, mask)
    for name, values in (
        ("auc", pose_auc(errors.larger_deg(), (5, 15, 30), errors.mask)),
        ("rra", pose_recall(errors.rotation_deg, (5, 15, 30), errors.mask)),
        ("rta", pose_recall(errors.translation_deg, (5, 15, 30), errors.mask)),
    ):
        measured |= {f"{name}_{t}": value for t, value in zip((5, 15, 30), values.unbind(-1), strict=True)}
    if true.shape[1] >= 3:
        measured["ate"] = trajectory_errors(predicted, true, mask).rmse
    return measured


def measure_depth(predictions: Predictions, batch: SceneBatch) -> dict[str, Tensor]:
    """Return the depth scores of `Evaluation`, (B,) each, or an empty mapping without depth."""
    if predictions.depth is None or batch.depth is None:
        return {}
    predicted = predictions.depth.value
    check_shape("predictions.depth.value", predicted, tuple(batch.depth.shape))
    known = _measured_pixels(batch)
    scores = depth_scores(predicted, batch.depth, known)
    broken = (~predicted.isfinite() & known).flatten(1).any(1)
    share = torch.where(broken, _NAN, scores.delta_1)
    nothing_ahead = known.flatten(1).any(1) & ~(known & (predicted > 0)).flatten(1).any(1)
    return {"depth_abs_rel": scores.abs_rel, "depth_delta": share, "failed": broken | nothing_ahead}


def _measure_points(predictions: Predictions, batch: SceneBatch, max_queries: int | None) -> dict[str, Tensor]:
    """Return the point cloud scores of `Evaluation`, (B,) each, or an empty mapping without points."""
    if batch.points is None:
        return {}
    measured: dict[str, Tensor] = {}
    known = _measured_pixels(batch)
    for name, points in (("head", _head_points(predictions)), ("unprojected", _unprojected_points(predictions))):
        if points is None:
            continue
        check_shape("predictions.points.value", points, tuple(batch.points.shape))
        scores = [
            point_map_scores(mine, true, mask, max_queries=max_queries)
            for mine, true, mask in zip(points, batch.points, known, strict=True)
        ]
        columns = PointCloudScores(*map(torch.stack, zip(*scores, strict=True)))
        measured[f"{name}_accuracy"] = columns.accuracy
        measured[f"{name}_completeness"] = columns.completeness
        measured[f"{name}_overall"] = columns.overall
        broken = (~points.isfinite().all(-1) & known).flatten(1).any(1)
        measured["failed"] = measured.get("failed", broken) | broken
    return measured


def _measure_tracks(
    predictions: Predictions, batch: SceneBatch, image_hw: tuple[int, int], visibility_threshold: float
) -> dict[str, Tensor]:
    """Return the track scores of `Evaluation`, (B,) each, or an empty mapping without tracks."""
    if predictions.tracks is None or batch.tracks is None:
        return {}
    predicted, true = predictions.tracks, batch.tracks
    check_shape("predictions.tracks.coords_px", predicted.coords_px, tuple(true.coords_px.shape))
    scores = track_scores(
        scale_to_raster(predicted.coords_px.double(), image_hw),
        predicted.visibility > visibility_threshold,
        scale_to_raster(true.coords_px.double(), image_hw),
        true.visible,
        torch.zeros_like(true.valid, dtype=torch.long),
        valid=true.valid,
    )
    finite = predicted.coords_px.isfinite().all(-1) & predicted.visibility.isfinite()
    return {
        "track_jaccard": scores.average_jaccard,
        "track_delta": scores.average_delta,
        "track_visibility": scores.occlusion_accuracy,
        "failed": (~finite & true.valid[:, None]).flatten(1).any(1),
    }


def _measured_pixels(batch: SceneBatch) -> Tensor:
    """Return the known pixels with finite points and positive depth, (B, S, H, W): errors are relative to the depth."""
    known = known_pixels(batch)
    if batch.depth is not None:
        known = known & known_pixels(batch._replace(mask=None))
    return known if batch.points is None else known & batch.points.isfinite().all(-1)


def _head_points(predictions: Predictions) -> Tensor | None:
    """Return the points of the point head, (B, S, H, W, 3), if there are any."""
    return None if predictions.points is None else predictions.points.value


def _unprojected_points(predictions: Predictions) -> Tensor | None:
    """Return predicted depth unprojected with predicted cameras, (B, S, H, W, 3), if there are both."""
    if predictions.depth is None or predictions.cameras is None:
        return None
    cameras = predictions.cameras
    return unproject(predictions.depth.value.double(), cameras.intrinsics.double(), cameras.cam_from_world.double())
