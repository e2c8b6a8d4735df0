"""How good a model is on scenes that it never saw."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from geomtx.geometry.normalization import normalize_scene
from geomtx.losses.multitask import MultitaskLoss
from geomtx.metrics.depth import depth_scores
from geomtx.metrics.pose import pairwise_pose_errors, pose_auc
from geomtx.training.step import predict
from geomtx.types import Predictions, SceneBatch

__all__ = ["score_cameras", "score_depth", "validate"]

THRESHOLDS = (5, 15, 30)


def score_cameras(predictions: Predictions, batch: SceneBatch) -> dict[str, Tensor]:
    """Area under the curve of pose errors, in 0 … 1, over all pairs of views; nothing where there are no cameras."""
    if predictions.cameras is None or batch.cameras is None or batch.images.shape[1] < 2:
        return {}
    errors = pairwise_pose_errors(
        predictions.cameras.cam_from_world, batch.cameras.cam_from_world, mask=batch.camera_mask
    )
    auc = pose_auc(errors.larger_deg().flatten(), THRESHOLDS, mask=errors.mask.flatten())
    return {f"auc@{threshold}": value for threshold, value in zip(THRESHOLDS, auc, strict=True)}


def score_depth(predictions: Predictions, batch: SceneBatch) -> dict[str, Tensor]:
    """`depth_scores` with one scale a scene, means over the scenes; nothing where there is no depth."""
    if predictions.depth is None or batch.depth is None:
        return {}
    scores = depth_scores(predictions.depth.value, batch.depth, batch.mask)
    return {"abs_rel": scores.abs_rel.nanmean(), "delta_1.25": scores.delta_1.nanmean()}


@torch.no_grad()
def validate(
    model: nn.Module,
    loss: MultitaskLoss,
    batches: Iterable[tuple[int, SceneBatch]],
    *,
    autocast: torch.dtype | None = None,
) -> dict[str, float]:
    """Losses and scores, named "NAME/VIEWSv", means over scenes.

    Args:
        model: In any mode, which it has again afterwards.
        loss: Its terms are reported.
        batches: (number of views, scenes in any unit).
        autocast: See `TrainingStep`.
    """
    was_training = model.training
    model.eval()
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for num_views, batch in batches:
        normalised, _ = normalize_scene(batch)
        predictions = predict(model, normalised, autocast)
        report = loss(predictions, normalised)
        scores = {"objective": report.total, **report.terms}
        scores |= score_cameras(predictions, normalised) | score_depth(predictions, normalised)
        for name, value in scores.items():
            name = f"{name}/{num_views}v"
            sums[name] = sums.get(name, 0) + len(batch.images) * value.double()
            counts[name] = counts.get(name, 0) + len(batch.images)
    model.train(was_training)
    return {name: float(total) / counts[name] for name, total in sums.items()}
