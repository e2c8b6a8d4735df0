"""One step of the optimiser: chunks of a batch, losses, clipping, and what happens if something is not finite."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from geomtx.geometry.normalization import normalize_scene
from geomtx.losses.multitask import LossReport, MultitaskLoss
from geomtx.losses.reduce import select
from geomtx.training.batches import split_batch
from geomtx.training.groups import ClipGroup, clip_gradients
from geomtx.types import Predictions, SceneBatch

if TYPE_CHECKING:
    from accelerate import Accelerator

    from geomtx.training.monitor import GradientMonitor

__all__ = ["StepReport", "TrainingStep", "predict"]


class StepReport(NamedTuple):
    """What a step did.

    Attributes:
        applied: False = loss or gradient were not finite, and the weights are what they were.
        scalars: Name → detached scalar: `objective`, the loss's terms, `norm/PATTERN`.
        batch: The last chunk, normalised.
        predictions: Of it, detached.
    """

    applied: bool
    scalars: dict[str, Tensor]
    batch: SceneBatch
    predictions: Predictions


class TrainingStep:
    """Callable: a batch → `StepReport`.

    Args:
        model: As accelerate prepared it.
        loss: Compares predictions with normalised scenes.
        optimiser: As accelerate prepared it; learning rates are the caller's.
        accelerator: Of the run.
        clip_groups: See `build_clip_groups`.
        num_chunks: Parts of the batch, one after the other; each counts by its share of the scenes.
        autocast: dtype to run the model in; None = that of its parameters.
        monitor: Looks at the gradients of the tasks.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: MultitaskLoss,
        optimiser: Optimizer,
        accelerator: Accelerator,
        clip_groups: list[ClipGroup],
        *,
        num_chunks: int = 1,
        autocast: torch.dtype | None = None,
        monitor: GradientMonitor | None = None,
    ) -> None:
        self.model = model
        self.loss = loss
        self.optimiser = optimiser
        self.accelerator = accelerator
        self.clip_groups = clip_groups
        self.num_chunks = num_chunks
        self.autocast = autocast
        self.monitor = monitor
        # DDP waits for every trained head, also for that of tracks where there is nothing to track.
        head = getattr(accelerator.unwrap_model(model), "track_head", None)
        trained = head is not None and any(parameter.requires_grad for parameter in head.parameters())
        self._always_tracks = trained and accelerator.num_processes > 1

    def __call__(self, batch: SceneBatch, step: int = 0, *, usable: bool = True) -> StepReport:
        """Go one step; `step` tells the monitor whether to look.

        With `usable` false in one of the processes, none of them changes its weights.
        """
        chunks = split_batch(normalize_scene(batch)[0], self.num_chunks)
        totals: dict[str, Tensor] = {}
        predictions = Predictions()
        self.optimiser.zero_grad()
        if self.monitor is not None:
            self.monitor.begin(step)
        for index, chunk in enumerate(chunks):
            share = chunk.images.shape[0] / batch.images.shape[0]
            last = index == len(chunks) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                predictions = predict(self.model, chunk, self.autocast, always_tracks=self._always_tracks)
                report = self.loss(predictions, chunk)
                if self.monitor is not None:
                    self.monitor.add({name: share * task for name, task in report.tasks.items()})
                self.accelerator.backward(share * self._connect(report.total, predictions))
            _add(totals, report, share)
        if self.monitor is not None:
            totals.update(self.monitor.finish())
        norms = clip_gradients(self.clip_groups)
        totals.update({f"norm/{pattern}": norm for pattern, norm in norms.items()})
        applied = self._is_finite([totals["objective"], *norms.values()], usable)
        if applied:
            self.optimiser.step()
        self.optimiser.zero_grad()
        return StepReport(applied, totals, chunks[-1], _detach(predictions))

    def _connect(self, total: Tensor, predictions: Predictions) -> Tensor:
        """Every head is part of the graph, with no gradient where nothing was compared: DDP waits for all."""
        if self.accelerator.num_processes == 1:
            return total
        nothing = torch.zeros((), dtype=torch.bool, device=total.device)
        return total + sum(select(output, nothing).sum() for output in _tensors(predictions) if output.requires_grad)

    def _is_finite(self, values: list[Tensor], usable: bool) -> bool:
        """On all processes, or on none."""
        finite = torch.stack([value.detach().float().isfinite() for value in values]).all() & usable
        if self.accelerator.num_processes > 1:
            finite = self.accelerator.reduce(finite.float(), "sum") == self.accelerator.num_processes
        return bool(finite)


def predict(
    model: nn.Module, batch: SceneBatch, autocast: torch.dtype | None = None, *, always_tracks: bool = False
) -> Predictions:
    """Run all heads on a batch; queries are where the tracks are in view 0.

    Without tracks, the head of tracks doesn't run, unless it has to: then it follows a pixel that no label is of.
    """
    queries = batch.images.new_zeros(batch.images.shape[0], 1, 2) if always_tracks else None
    if batch.tracks is not None:
        # An empty slot may hold anything.
        queries = select(batch.tracks.coords_px[:, 0], batch.tracks.valid[..., None])
    device = batch.images.device.type
    with torch.autocast(device, dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        return model(batch.images, queries)


def _add(totals: dict[str, Tensor], report: LossReport, share: float) -> None:
    for name, value in {"objective": report.total, **report.terms}.items():
        value = share * value.detach()
        totals[name] = totals[name] + value if name in totals else value


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for item in value or () for tensor in _tensors(item)]


def _detach(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    return value if value is None else type(value)(*map(_detach, value))
