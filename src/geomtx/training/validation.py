"""How good a model is on scenes that it never saw."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from geomtx.geometry.normalization import normalize_scene
from geomtx.losses.multitask import MultitaskLoss
from geomtx.metrics.evaluate import measure_depth, measure_poses
from geomtx.training.step import predict
from geomtx.types import Predictions, SceneBatch

__all__ = ["score_cameras", "score_depth", "validate"]

# In the log, by their names in `Evaluation`.
_POSES = {"auc_5": "auc@5", "auc_15": "auc@15", "auc_30": "auc@30"}
_DEPTH = {"depth_abs_rel": "abs_rel", "depth_delta": "delta_1.25"}


def score_cameras(predictions: Predictions, batch: SceneBatch) -> dict[str, Tensor]:
    """Areas under the curve of pose errors, in 0 … 1, a scene each (B,), as in `geomtx.metrics.Evaluation`.

    Nothing where there are no cameras or no two views; NaN for a scene without two known cameras.
    """
    measured = measure_poses(predictions, batch)
    return {short: measured[name] for name, short in _POSES.items() if name in measured}


def score_depth(predictions: Predictions, batch: SceneBatch) -> dict[str, Tensor]:
    """Errors of depth with one scale a scene, (B,), as in `geomtx.metrics.Evaluation`; nothing without depth."""
    measured = measure_depth(predictions, batch)
    return {short: measured[name] for name, short in _DEPTH.items() if name in measured}


@torch.no_grad()
def validate(
    model: nn.Module,
    loss: MultitaskLoss,
    batches: Iterable[tuple[int, SceneBatch]],
    *,
    autocast: torch.dtype | None = None,
) -> dict[str, float]:
    """Losses and scores, named "NAME/VIEWSv", means over scenes; scores over those scenes that have them.

    Args:
        model: In any mode, which it has again afterwards.
        loss: Its terms are reported.
        batches: (number of views, scenes in any unit).
        autocast: See `TrainingStep`.
    """
    was_training = model.training
    model.eval()
    values: dict[str, list[Tensor]] = {}
    for num_views, batch in batches:
        normalised, _ = normalize_scene(batch)
        predictions = predict(model, normalised, autocast)
        report = loss(predictions, normalised)
        terms = {"objective": report.total, **report.terms}
        scores = score_cameras(predictions, normalised) | score_depth(predictions, normalised)
        found = {name: value.expand(len(batch.images)) for name, value in terms.items()}
        found |= {name: value[~value.isnan()] for name, value in scores.items()}
        for name, value in found.items():
            values.setdefault(f"{name}/{num_views}v", []).append(value.double())
    model.train(was_training)
    return {name: float(torch.cat(parts).mean()) for name, parts in values.items()}
