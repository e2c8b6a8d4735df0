"""One step of the optimiser: chunks of a batch, losses, clipping, and what happens if something is not finite."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves, tree_map

from geomtx.losses.multitask import LossReport
from geomtx.losses.reduce import select
from geomtx.training.batches import split_batch
from geomtx.training.groups import ClipGroup, clip_gradients
from geomtx.training.task import Task
from geomtx.training.vggt_task import VggtTask
from geomtx.types import SceneBatch

if TYPE_CHECKING:
    from accelerate import Accelerator

    from geomtx.training.monitor import GradientMonitor

__all__ = ["StepReport", "TrainingStep", "predict"]

VGGT_TASK = VggtTask()


class StepReport(NamedTuple):
    """What a step did.

    Attributes:
        applied: False = loss or gradient were not finite, or too large: the weights are what they were.
        scalars: Name → detached scalar: `objective`, the loss's terms, `norm/PATTERN`.
        batch: The last chunk, as the task prepared it.
        predictions: Of it, detached: what the task's `predict` gave.
    """

    applied: bool
    scalars: dict[str, Tensor]
    batch: SceneBatch
    predictions: Any


class TrainingStep:
    """Callable: a batch → `StepReport`.

    Args:
        model: As accelerate prepared it.
        loss: Compares what the task predicts with the scenes that it prepared.
        optimiser: As accelerate prepared it; learning rates are the caller's.
        accelerator: Of the run.
        clip_groups: See `build_clip_groups`.
        num_chunks: Parts of the batch, one after the other; each counts by its share of the scenes.
        autocast: dtype to run the model in; None = that of its parameters.
        monitor: Looks at the gradients of the tasks.
        task: Prepares batches and runs the model.
        skip_above: A gradient whose norm is more than so many times that to clip at changes no weight; None = none is.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], LossReport],
        optimiser: Optimizer,
        accelerator: Accelerator,
        clip_groups: list[ClipGroup],
        *,
        num_chunks: int = 1,
        autocast: torch.dtype | None = None,
        monitor: GradientMonitor | None = None,
        task: Task = VGGT_TASK,
        skip_above: float | None = None,
    ) -> None:
        self.model = model
        self.loss = loss
        self.optimiser = optimiser
        self.accelerator = accelerator
        self.clip_groups = clip_groups
        self.num_chunks = num_chunks
        self.autocast = autocast
        self.monitor = monitor
        self.task = task
        self.norm_limits: dict[str, float] = {}
        if skip_above is not None:
            self.norm_limits = {f"norm/{group.pattern}": skip_above * group.max_norm for group in clip_groups}

    def __call__(self, batch: SceneBatch, step: int = 0, *, usable: bool = True) -> StepReport:
        """Go one step; `step` tells the monitor whether to look.

        With `usable` false in one of the processes, none of them changes its weights.
        """
        batch = self.task.prepare(batch)
        chunks = split_batch(batch, self.num_chunks)
        totals: dict[str, Tensor] = {}
        predictions = None
        self.optimiser.zero_grad()
        if self.monitor is not None:
            self.monitor.begin(step)
        for index, chunk in enumerate(chunks):
            share = chunk.images.shape[0] / batch.images.shape[0]
            last = index == len(chunks) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                predictions = predict(self.model, chunk, self.autocast, task=self.task)
                report = self.loss(predictions, chunk)
                if self.monitor is not None:
                    self.monitor.add({name: share * task for name, task in report.tasks.items()})
                self.accelerator.backward(share * self._connect(report.total, predictions))
            _add(totals, report, share)
        if self.monitor is not None:
            totals.update(self.monitor.finish())
        norms = clip_gradients(self.clip_groups)
        totals.update({f"norm/{pattern}": norm for pattern, norm in norms.items()})
        small = [totals[name].detach() <= limit for name, limit in self.norm_limits.items()]
        applied = self._is_good([totals["objective"], *norms.values()], small, usable)
        if applied:
            self.optimiser.step()
        self.optimiser.zero_grad()
        return StepReport(applied, totals, chunks[-1], tree_map(_detach, predictions))

    def _connect(self, total: Tensor, predictions: Any) -> Tensor:
        """Every head is part of the graph, with no gradient where nothing was compared: DDP waits for all."""
        if self.accelerator.num_processes == 1:
            return total
        nothing = torch.zeros((), dtype=torch.bool, device=total.device)
        outputs = [leaf for leaf in tree_leaves(predictions) if isinstance(leaf, Tensor) and leaf.requires_grad]
        return total + sum(select(output, nothing).sum() for output in outputs)

    def _is_good(self, values: list[Tensor], small: list[Tensor], usable: bool) -> bool:
        """Finite values, and all conditions met: on all processes, or on none."""
        finite = [value.detach().float().isfinite() for value in values]
        good = torch.stack([*finite, *small]).all() & usable
        if self.accelerator.num_processes > 1:
            good = self.accelerator.reduce(good.float(), "sum") == self.accelerator.num_processes
        return bool(good)


def predict(model: nn.Module, batch: SceneBatch, autocast: torch.dtype | None = None, *, task: Task = VGGT_TASK) -> Any:
    """Run a task's model on a batch that the task prepared, under autocast to a dtype if one is given."""
    device = batch.images.device.type
    with torch.autocast(device, dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        return task.predict(model, batch)


def _add(totals: dict[str, Tensor], report: LossReport, share: float) -> None:
    for name, value in {"objective": report.total, **report.terms}.items():
        value = share * value.detach()
        totals[name] = totals[name] + value if name in totals else value


def _detach(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf
