"""How good a model is on scenes that it never saw."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from geomtx.losses.multitask import LossReport
from geomtx.training.step import VGGT_TASK, predict
from geomtx.training.task import Task
from geomtx.types import SceneBatch

__all__ = ["validate"]


@torch.no_grad()
def validate(
    model: nn.Module,
    loss: Callable[[Any, Any], LossReport],
    batches: Iterable[tuple[int, SceneBatch]],
    *,
    autocast: torch.dtype | None = None,
    task: Task = VGGT_TASK,
) -> dict[str, float]:
    """Losses and scores, named "NAME/VIEWSv", means over scenes; scores over those scenes that have them.

    Args:
        model: In any mode, which it has again afterwards.
        loss: Its terms are reported.
        batches: (number of views, scenes in any unit).
        autocast: See `TrainingStep`.
        task: Prepares batches, runs the model and scores it.
    """
    was_training = model.training
    model.eval()
    values: dict[str, list[Tensor]] = {}
    for num_views, batch in batches:
        prepared = task.prepare(batch, training=False)
        predictions = predict(model, prepared, autocast, task=task)
        report = loss(predictions, prepared)
        terms = {"objective": report.total, **report.terms}
        scores = task.score(predictions, prepared)
        found = {name: value.expand(len(prepared.images)) for name, value in terms.items()}
        found |= {name: value[~value.isnan()] for name, value in scores.items()}
        for name, value in found.items():
            values.setdefault(f"{name}/{num_views}v", []).append(value.double())
    model.train(was_training)
    return {name: float(torch.cat(parts).mean()) for name, parts in values.items()}
