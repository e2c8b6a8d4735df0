"""What a VGGT could do before it was trained for something else: its own measures, before and after."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from common import mean_and_error
from geomtx import VGGT, SceneBatch
from geomtx.metrics import evaluate_predictions
from geomtx.training.step import predict
from geomtx.training.tasks.vggt import VggtTask

__all__ = ["compare_tasks", "measure_tasks"]

TASKS = ("auc_30", "depth_delta", "depth_abs_rel", "head_overall", "track_jaccard", "track_delta", "track_visibility")
MAX_QUERIES = 2000


@torch.inference_mode()
def measure_tasks(model: VGGT, scenes: Iterable[SceneBatch]) -> dict[str, list[float]]:
    """Measure → a number a scene."""
    model = model.float().eval()
    batches = [VggtTask().prepare(scene) for scene in scenes]
    found = [evaluate_predictions(predict(model, batch), batch, max_queries=MAX_QUERIES) for batch in batches]
    return {name: torch.cat([getattr(part, name) for part in found]).tolist() for name in TASKS}


def compare_tasks(after: dict[str, list[float]], before: dict[str, list[float]]) -> dict[str, Any]:
    """Means with standard errors, and what changed, scene by scene: rooms differ more than models do."""
    changes = {
        name: [b - a for a, b in zip(before[name], values, strict=True) if a == a and b == b]
        for name, values in after.items()
    }
    return {
        "mean": {name: mean_and_error(values) for name, values in after.items()},
        "minus_before": {name: mean_and_error(values) for name, values in changes.items()},
    }
