"""A step of the optimiser: chunks of a batch, losses, clipping, and what is skipped."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves, tree_map

from geomtx.losses.multitask import LossReport, compare_part, count_labels
from geomtx.losses.reduce import BatchCounts, counting, select
from geomtx.training.checkpoint import capture_rng, restore_rng
from geomtx.training.data import split_batch
from geomtx.training.distributed import gather_objects
from geomtx.training.optim import ClipGroup, clip_gradients
from geomtx.training.tasks.running import TrainedModel
from geomtx.training.tasks.task import Task
from geomtx.training.tasks.vggt import VggtTask
from geomtx.types import SceneBatch, show_shapes

if TYPE_CHECKING:
    from accelerate import Accelerator

    from geomtx.training.monitor import GradientMonitor

__all__ = ["StepReport", "TrainingStep", "compute_scores", "predict"]

VGGT_TASK = VggtTask()


@show_shapes
class StepReport(NamedTuple):
    """Result of a step.

    Attributes:
        applied: Whether the weights were changed; they are not if loss or gradient are not finite, or too large.
        scalars: Name → detached scalar: `objective`, the loss's terms, `norm/PATTERN`; of all chunks and processes.
        batch: The last chunk, as the task prepared it.
        predictions: Predictions of the task for this micro-batch, detached.
    """

    applied: bool
    scalars: dict[str, Tensor]
    batch: Any
    predictions: Any


class TrainingStep:
    """A step of the optimiser, a function from a batch to a `StepReport`.

    Args:
        model: A `TrainedModel`, or the model itself, as accelerate prepared it.
        loss: Function from what the task predicts and the batch that it prepared to a `LossReport`.
        optimiser: Optimiser as accelerate prepared it; the caller sets its learning rates.
        accelerator: Accelerator of the run.
        clip_groups: Groups of parameters whose gradients are clipped, see `build_clip_groups`.
        num_chunks: Number of chunks that the batch is split into, run one after the other; the step is that of the
            whole batch.
        autocast: dtype of the autocast that the model is run under; defaults to none.
        monitor: Monitor of the tasks' gradients; defaults to none.
        task: Task that prepares batches and runs the model.
        skip_above: A step whose gradient has a norm above this many times the limit of its group changes no weight;
            defaults to no limit.
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
        """Take a step.

        Args:
            batch: Scenes of this process, in any unit.
            step: Number of steps before this one, for the monitor.
            usable: Whether the batch may change weights; if it may not in one of the processes, none changes them.
        """
        batch = self.task.prepare(batch)
        chunks = split_batch(batch, self.num_chunks)
        parts = _LossParts(self.loss, self.accelerator, batch.images.device, is_whole=len(chunks) == 1)
        parts.count_before(chunks, self._predict_without_gradient)
        totals: dict[str, Tensor] = {}
        predictions = None
        self.optimiser.zero_grad()
        if self.monitor is not None:
            self.monitor.begin(step)
        # DDP averages the gradients of the processes, which are to be added up.
        num_processes = self.accelerator.num_processes
        for index, chunk in enumerate(chunks):
            last = index == len(chunks) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                predictions = predict(self.model, chunk, self.autocast, task=self.task)
                report = parts.compare(predictions, chunk)
                if self.monitor is not None:
                    self.monitor.add({name: num_processes * task for name, task in report.tasks.items()})
                self.accelerator.backward(num_processes * self._connect(report.total, predictions))
            _add(totals, report)
        totals = parts.add_processes(totals)
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

    def _predict_without_gradient(self, chunk: Any) -> Any:
        with torch.no_grad(), self.accelerator.no_sync(self.model):
            return predict(self.model, chunk, self.autocast, task=self.task)

    def _connect(self, total: Tensor, predictions: Any) -> Tensor:
        """Return the loss with all outputs in its graph: the processes wait for the gradients of every head."""
        if self.accelerator.num_processes == 1:
            return total
        nothing = torch.zeros((), dtype=torch.bool, device=total.device)
        outputs = [leaf for leaf in tree_leaves(predictions) if isinstance(leaf, Tensor) and leaf.requires_grad]
        return total + sum(select(output, nothing).sum() for output in outputs)

    def _is_good(self, values: list[Tensor], small: list[Tensor], usable: bool) -> bool:
        """Return whether values are finite and conditions are met in all processes."""
        finite = [value.detach().float().isfinite() for value in values]
        good = torch.stack([*finite, *small]).all() & usable
        if self.accelerator.num_processes > 1:
            good = self.accelerator.reduce(good.float(), "sum") == self.accelerator.num_processes
        return bool(good)


def predict(model: nn.Module, batch: Any, autocast: torch.dtype | None = None, *, task: Task = VGGT_TASK) -> Any:
    """Run a model on a batch that its task prepared, under autocast to a dtype if one is given.

    Args:
        model: A `TrainedModel`, wrapped for several processes or not, which has its task; or the model itself.
        batch: Batch that the task prepared.
        autocast: dtype of the autocast; defaults to none.
        task: Task of a model that is no `TrainedModel`.
    """
    device = batch.images.device.type
    with torch.autocast(device, dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        if isinstance(getattr(model, "module", model), TrainedModel):
            return model(batch)
        return task.predict(model, batch)


def compute_scores(predictions: Any, batch: Any, *, task: Task) -> dict[str, Tensor]:
    """Return the scores of a task, on the CPU where the device has no float64, in which metrics are computed.

    Args:
        predictions: Predictions of the task for the batch.
        batch: Batch that the task prepared.
        task: Task that scores.
    """
    if not _has_float64(batch.images.device):
        predictions, batch = tree_map(_move_to_cpu, (predictions, batch))
    return task.score(predictions, batch)


@functools.cache
def _has_float64(device: torch.device) -> bool:
    try:
        torch.zeros((), dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return False
    return True


def _move_to_cpu(leaf: Any) -> Any:
    return leaf.cpu() if isinstance(leaf, Tensor) else leaf


class _LossParts:
    """Losses of the chunks of a step which add up, over chunks and processes, to the loss of the whole batch.

    Every mean in a loss is divided by the number of values over the whole batch (`geomtx.losses.reduce`), so that a
    step doesn't depend on how unevenly known pixels, cameras and tracks are spread over chunks and processes. The
    counts are collected first: from the labels where they are enough; from predictions without a gradient where a loss
    decides by them what it counts, as those between views do, which takes one more forward pass of every chunk.

    Args:
        loss: Loss of the run, as in `TrainingStep`.
        accelerator: Accelerator of the run.
        device: Device of the batch.
        is_whole: Whether the batch is one chunk.
    """

    def __init__(
        self, loss: Callable[[Any, Any], LossReport], accelerator: Accelerator, device: torch.device, *, is_whole: bool
    ) -> None:
        self.loss = loss
        self.accelerator = accelerator
        self.device = device
        self.is_alone = is_whole and accelerator.num_processes == 1
        self.waits = is_whole and getattr(loss, "counts_from", "labels") == "predictions"
        self.whole: dict[str, list[float]] | None = None
        self.rng: dict[str, Any] | None = None

    def count_before(self, chunks: list[Any], predict: Callable[[Any], Any]) -> None:
        """Collect the counts of all chunks, unless there is but one whose predictions will be there anyway."""
        if self.is_alone or self.waits:
            return
        if getattr(self.loss, "counts_from", "labels") == "labels":
            self._share([self._count_labels(chunk) for chunk in chunks])
            return
        state = capture_rng(self.device)
        self._share([self._count(predict(chunk), chunk) for chunk in chunks])
        restore_rng(state, self.device)
        self.rng = None

    def compare(self, predictions: Any, chunk: Any) -> LossReport:
        """Return a chunk's part of the loss, with a graph."""
        if self.is_alone:
            return self.loss(predictions, chunk)
        if self.whole is None:
            self._share([self._count(predictions, chunk)])
        return self._run(BatchCounts(self.whole), predictions, chunk)

    def add_processes(self, totals: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the scalars of a process summed over all processes; a process may lack some of them."""
        if self.accelerator.num_processes == 1:
            return totals
        values = dict(zip(totals, torch.stack(list(totals.values())).tolist(), strict=True))
        processes = gather_objects(self.accelerator, values)
        names = dict.fromkeys(name for values in processes for name in values)
        like = totals["objective"]
        return {name: like.new_tensor(sum(values.get(name, 0.0) for values in processes)) for name in names}

    def _count_labels(self, chunk: Any) -> BatchCounts:
        counts = BatchCounts()
        with torch.no_grad(), counting(counts):
            count_labels(self.loss, chunk)
        return counts

    def _count(self, predictions: Any, chunk: Any) -> BatchCounts:
        counts = BatchCounts()
        with torch.no_grad():
            self._run(counts, predictions, chunk)
        return counts

    def _run(self, counts: BatchCounts, predictions: Any, chunk: Any) -> LossReport:
        """Run the loss; what it draws, such as pairs of views, is drawn alike for all chunks."""
        now = capture_rng(self.device)
        is_first = self.rng is None
        if self.rng is None:
            self.rng = now
        else:
            restore_rng(self.rng, self.device)
        with counting(counts):
            report = compare_part(self.loss, predictions, chunk)
        if not is_first:
            restore_rng(now, self.device)
        return report

    def _share(self, chunks: list[BatchCounts]) -> None:
        """Add up the counts of all chunks of all processes."""
        own = _sum_counts([counts.values() for counts in chunks])
        self.whole = _sum_counts(gather_objects(self.accelerator, own))


def _sum_counts(counts: list[dict[str, list[float]]]) -> dict[str, list[float]]:
    """Return sums by name; where one list is longer, the others have zeros there."""
    names = dict.fromkeys(name for values in counts for name in values)
    return {
        name: [sum(column) for column in itertools.zip_longest(*(v.get(name, ()) for v in counts), fillvalue=0)]
        for name in names
    }


def _add(totals: dict[str, Tensor], report: LossReport) -> None:
    for name, value in {"objective": report.total, **report.terms}.items():
        value = value.detach()
        totals[name] = totals[name] + value if name in totals else value


def _detach(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf
