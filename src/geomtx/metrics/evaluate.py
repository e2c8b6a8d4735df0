"""Everything that geomtx measures about a model's predictions, in one call."""

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
    """One number a scene, (B,), float64; NaN where it can't be had. Lengths are in units of the scene.

    Attributes:
        auc_5: AUC of the pairwise pose errors at 5 degrees, in [0, 1]; see `pose_auc`.
        auc_15: At 15.
        auc_30: At 30.
        rra_5: Share of pairs with a rotation error below 5 degrees.
        rra_15: Below 15.
        rra_30: Below 30.
        rta_5: Share of pairs with a translation error below 5 degrees.
        rta_15: Below 15.
        rta_30: Below 30.
        ate: Root mean square distance of the camera centres after a similarity; from three views on.
        depth_abs_rel: Mean of |d - g| / g after alignment by the medians.
        depth_delta: Share with max(d / g, g / d) < 1.25.
        head_accuracy: Of the point head's points after a similarity; see `PointCloudScores`.
        head_completeness: Of the same.
        head_overall: Mean of both.
        unprojected_accuracy: Of the predicted depth, unprojected with the predicted cameras.
        unprojected_completeness: Of the same.
        unprojected_overall: Mean of both.
        track_jaccard: TAP-Vid's AJ with images scaled to 256×256, from the queries of view 0 to all others.
        track_delta: TAP-Vid's δ_avg.
        track_visibility: TAP-Vid's OA.
        failed: (B,) bool, True = a prediction is not finite, of a camera or a pixel whose truth is known or of a track,
            or no depth of known pixels is positive. Pose and track measures count it as an error; depth and point
            measures of the scene are NaN, but for the share of right depths, which is 0 where none is positive.
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
    """Measure a batch of scenes.

    What the predictions or the batch don't hold is NaN; so are poses of a scene with one view.

    Args:
        predictions: Of a model for `batch.images`; tracks of the queries `batch.tracks.coords_px[:, 0]`.
        batch: The truth, in any world and unit: `normalize_scene` is applied to it.
        visibility_threshold: A predicted visibility above it means that the point is seen.
        max_queries: Points of each cloud from which nearest points are searched; None = all. See `pointcloud_scores`.

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
    """Means over all scenes of several batches.

    Args:
        evaluations: Of batches of any size.

    Returns:
        Every measure's mean over the scenes that have it (NaN if none has), `scenes`, how many there were, and
        `failed`, how many of them had predictions that can't be measured: with any, depth and point measures flatter.
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
    """The measures of `Evaluation` that concern cameras, (B,) each; nothing where there are no cameras."""
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
    """The measures of `Evaluation` that concern depth, (B,) each; nothing where there is no depth."""
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
    """Of the known pixels those that can be measured, (B, S, H, W): no error is relative to a depth of 0."""
    known = known_pixels(batch)
    if batch.depth is not None:
        known = known & known_pixels(batch._replace(mask=None))
    return known if batch.points is None else known & batch.points.isfinite().all(-1)


def _head_points(predictions: Predictions) -> Tensor | None:
    return None if predictions.points is None else predictions.points.value


def _unprojected_points(predictions: Predictions) -> Tensor | None:
    if predictions.depth is None or predictions.cameras is None:
        return None
    cameras = predictions.cameras
    return unproject(predictions.depth.value.double(), cameras.intrinsics.double(), cameras.cam_from_world.double())
