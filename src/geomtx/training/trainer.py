"""A training run from its configuration to weights: `Trainer(config, folder).train()`."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from geomtx.data.sampling import rare_view_counts
from geomtx.losses.multitask import LossReport
from geomtx.training.checkpoint import (
    RunFolder,
    capture_rng,
    check_finite,
    copy_to_meta,
    kept_rng,
    load_into,
    restore_rng,
    training_state,
)
from geomtx.training.config import TrainingConfig
from geomtx.training.data import (
    DrawScenes,
    FileScenes,
    RenderedScenes,
    SceneStream,
    build_source,
    check_datasets,
    describe_problem,
    load_batches,
    move_batch,
    validation_batches,
)
from geomtx.training.distributed import build_accelerator, gather_objects
from geomtx.training.log import ScalarMeans, TrainingLog
from geomtx.training.optim import (
    WeightAverage,
    build_clip_groups,
    build_parameter_groups,
    learning_rate,
    set_learning_rates,
)
from geomtx.training.prepare import (
    build_monitor,
    check_rehearsal,
    check_track_labels,
    check_view_counts,
    leave_out_tracks,
    prepare_model,
)
from geomtx.training.step import VGGT_TASK, StepReport, TrainingStep, compute_scores, predict
from geomtx.training.tasks.running import RunOptions, TrainedModel, check_options
from geomtx.training.tasks.task import Task, build_task
from geomtx.types import SceneBatch

__all__ = [
    "SkipReason",
    "SkippedSteps",
    "Trainer",
    "explain_skip",
    "validate",
]

logger = logging.getLogger("geomtx")


class SkipReason(NamedTuple):
    """Why a step was skipped.

    Attributes:
        what: Part of the warning that names the reason.
        rule: Rule that was broken, for the error.
        details: Names and numbers.
    """

    what: str
    rule: str
    details: str


def explain_skip(scalars: Mapping[str, Tensor], problem: str | None, limits: Mapping[str, float]) -> SkipReason:
    """Return the reason for a step that was not applied.

    Args:
        scalars: Scalars of its `StepReport`.
        problem: Description of the fault in its batch, or None.
        limits: Name of a scalar → its largest value.
    """
    if problem is not None:
        return SkipReason("its batch is no scene", "batches must be scenes", problem)
    large = [f"{name} {float(scalars[name]):.3g}" for name, limit in limits.items() if scalars[name] > limit]
    bad = [name for name, value in scalars.items() if not value.isfinite()]
    if large and not bad:
        rule = "norms of the gradient must be at most optimiser.skip_above times those of optimiser.clip"
        return SkipReason("these norms are too large", rule, ", ".join(large))
    rule = "loss and gradient must be finite"
    return SkipReason("these are not finite", rule, ", ".join(bad) or "another process's")


class SkippedSteps:
    """Counts skipped steps, and ends the run after too many in a row.

    Args:
        most: Number of skipped steps in a row that are allowed.

    Attributes:
        total: Number of skipped steps in the run.
        in_a_row: Number of skipped steps since the last one that was applied.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.total = self.in_a_row = 0

    def add(self, step: int, reason: SkipReason) -> None:
        """Count and warn of a skipped step, the first being 1.

        Raises:
            ValueError: If there are too many in a row.
        """
        self.total += 1
        self.in_a_row += 1
        logger.warning("Step %d was skipped, as %s: %s.", step, reason.what, reason.details)
        if self.in_a_row > self.most:
            got = f"got {self.in_a_row} steps in a row that are not, up to step {step} ({reason.details})"
            raise ValueError(f"{reason.rule}, {got}; the last checkpoint is kept")


@torch.no_grad()
def validate(
    model: nn.Module,
    loss: Callable[[Any, Any], LossReport],
    batches: Iterable[tuple[int, SceneBatch]],
    *,
    autocast: torch.dtype | None = None,
    task: Task = VGGT_TASK,
) -> dict[str, float]:
    """Return losses and scores by "NAME/VIEWSv", means over scenes; scores over those scenes that have them.

    Args:
        model: Model, or a `TrainedModel`; its modules are in evaluation mode meanwhile.
        loss: Loss whose terms are reported.
        batches: Pairs of a number of views and scenes in any unit.
        autocast: dtype of the autocast that the model is run under; defaults to none.
        task: Task that prepares batches, runs the model and scores it.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    values: dict[str, list[Tensor]] = {}
    for num_views, batch in batches:
        prepared = task.prepare(batch, training=False)
        predictions = predict(model, prepared, autocast, task=task)
        report = loss(predictions, prepared)
        terms = {"objective": report.total, **report.terms}
        scores = compute_scores(predictions, prepared, task=task)
        found = {name: value.expand(len(prepared.images)) for name, value in terms.items()}
        found |= {name: value[~value.isnan()] for name, value in scores.items()}
        for name, value in found.items():
            values.setdefault(f"{name}/{num_views}v", []).append(value.cpu().double())
    for module, mode in modes.items():
        module.training = mode
    return {name: float(torch.cat(parts).mean()) for name, parts in values.items()}


class Trainer:
    """A training run on one process, or on one of many that `accelerate launch` (or torchrun) started.

    Args:
        config: Configuration of the run.
        folder: Folder that gets `config.yaml`, `log.jsonl`, `tensorboard/`, `checkpoint.pt` and, as weights that
            `VGGT.from_pretrained` loads, `weights/`.
        resume: Whether to continue from the folder's checkpoint; otherwise the folder must not have one.
        overwrite: Whether a new run may begin in a folder with another run, and replace files of the same names that
            geomtx did not write. They are removed when the run begins, checkpoints of the other run too.
        cpu: Whether to train on the CPU even where there is an accelerator.
        progress: Whether a bar is shown on stderr; defaults to a bar where stderr is a terminal, and elsewhere to a
            line for each line of the log.
        draw: Function from seeds to scenes, for training and validation, in place of the configuration's. Batches to
            train on are checked (`geomtx.data.check_values`) and skipped if something is wrong with them.
        task: Task, in place of the one that `config.model.kind` and `config.task` say.
        model: Model to train, in place of the configuration's; changed in place. To resume, give one like it again. If
            it has no `save_pretrained`, its weights are `weights/model.safetensors`.
        loss: Function from outputs and batch to `LossReport`, in place of the task's. For the configuration's loss and
            those of added heads: `build_loss(config.loss, others={name: …})`.

    Attributes:
        step: Number of steps done, skipped ones included; also the index of the next batch.
        num_left_out: Number of scenes of files that could not be used, in all processes, up to the last line of the
            log.
        stop_requested: Set it, for instance in a signal handler, to stop after the current step.

    Raises:
        ValueError: For a configuration that doesn't fit the model, a checkpoint of another model, or a folder with
            another run in it.
        FileNotFoundError: If there is nothing to resume.
        ImportError: Without the packages of `pip install geomtx[train]`.
    """

    def __init__(
        self,
        config: TrainingConfig,
        folder: str | os.PathLike[str],
        *,
        resume: bool = False,
        overwrite: bool = False,
        cpu: bool = False,
        progress: bool | None = None,
        draw: DrawScenes | None = None,
        task: Task | None = None,
        model: nn.Module | None = None,
        loss: Callable[[Any, Any], LossReport] | None = None,
    ) -> None:
        self.task = build_task(config.model.kind, config.task) if task is None else task
        check_datasets(config.data, validation=config.validation.every > 0)
        check_view_counts(self.task, config)
        self.folder = RunFolder(Path(folder), config)
        state = self.folder.open(resume=resume, overwrite=overwrite)
        if draw is None and task is None and model is None:
            config = self.folder.config = leave_out_tracks(config, None if state is None else state["model_config"])
        self.config = config
        self.accelerator = build_accelerator(cpu=cpu)
        self._gather = functools.partial(gather_objects, self.accelerator)
        self.device: torch.device = self.accelerator.device
        self.progress = progress if self.accelerator.is_main_process else False
        self.step = self.num_left_out = self._left_out_before = 0
        self.skipped = SkippedSteps(config.max_skipped)
        self._save_is_due = False
        self.stop_requested = False
        self.means = ScalarMeans()
        if config.tf32:
            torch.set_float32_matmul_precision("high")
        torch.manual_seed(config.seed)
        if model is None and state is None:
            model = self.task.build_model(config.model)
        elif model is None:
            assert state is not None
            model = self.folder.build_model(state, self.task)
        if state is not None:
            self.folder.report_changes(state)
        self.folder.check_weights(model)
        frozen = prepare_model(model, config)
        options = RunOptions(config.detach, config.precision != "float32", config.gradient_checkpointing)
        check_options(options, model, self.task)
        if draw is None:
            check_track_labels(model, config.data.num_tracks)
        check_rehearsal(model, self.task, self.accelerator.num_processes)
        self.blueprint = copy_to_meta(model)
        self.loss = self.task.build_loss(config.loss) if loss is None else loss
        self._set_up(TrainedModel(model, self.task, options, frozen))
        self._open_scenes(draw)
        # From here on, every process draws its own numbers.
        torch.manual_seed(config.seed + 1 + self.accelerator.process_index)
        if state is not None:
            self._restore(state)
        self.folder.start(self.accelerator)

    def _open_scenes(self, draw: DrawScenes | None) -> None:
        config = self.config
        # A model without such a number takes images of any size.
        patch_size = getattr(getattr(self.bare_model, "config", None), "patch_size", 1)
        # Rendered scenes are right, and those of files were checked one by one.
        self.checks_batches = draw is not None and not isinstance(draw, RenderedScenes | FileScenes)
        source = draw or build_source(config.data, patch_size=patch_size)
        if config.validation.every:
            self.held_out = draw or build_source(config.data, patch_size=patch_size, held_out=True)
        self.stream = SceneStream(
            config.data,
            source,
            patch_size=patch_size,
            seed=config.seed,
            rank=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
            device=None if config.data.workers else self.device,
        )
        rare = rare_view_counts(config.data.views) if config.model.kind == "vggt" else []
        if rare and self.accelerator.is_main_process:
            logger.warning(
                "The model won't know scenes of %s views: data.views leaves them out.", ", ".join(map(str, rare))
            )

    @property
    def num_skipped(self) -> int:
        """Number of steps whose loss or gradient was not finite or too large, or whose batch was no scene."""
        return self.skipped.total

    def _set_up(self, model: TrainedModel) -> None:
        config = self.config
        section = config.optimiser
        groups = build_parameter_groups(model.model, section)
        optimiser = torch.optim.AdamW(groups, lr=section.lr, betas=section.betas, eps=section.eps, fused=True)
        if config.compile:
            model.compile()
        self.model, self.optimiser = self.accelerator.prepare(model, optimiser)
        self.trained_model: TrainedModel = self.accelerator.unwrap_model(self.model)
        self.bare_model: nn.Module = self.trained_model.model
        self.average = WeightAverage(self.bare_model, config.ema) if config.ema else None
        self.monitor = build_monitor(self.bare_model, config.monitor, self.accelerator)
        self.autocast = None if config.precision == "float32" else getattr(torch, config.precision)
        self.training_step = TrainingStep(
            self.model,
            self.loss,
            self.optimiser,
            self.accelerator,
            build_clip_groups(self.bare_model, section.clip),
            num_chunks=config.accumulation,
            autocast=self.autocast,
            monitor=self.monitor,
            task=self.task,
            skip_above=section.skip_above,
        )

    def train(self, until: int | None = None) -> Path:
        """Train to the end, and write a checkpoint and the weights.

        Args:
            until: Number of steps after which to stop; defaults to all of the run.

        Returns:
            Folder of the weights.

        Raises:
            ValueError: If more than `max_skipped` steps in a row are skipped, or the weights are not finite.
        """
        total = self.config.schedule.steps
        steps = range(self.step, total if until is None else min(until, total))
        batches = load_batches(self.stream, steps, workers=self.config.data.workers)
        log = self.folder.open_log(self.step, total, self.progress) if self.accelerator.is_main_process else None
        try:
            if self.step == 0 and self.config.validation.every:
                self._write_validation(log)
            for batch in batches:
                report = self._take_step(batch)
                self.means.add(report.scalars)
                self._write_what_is_due(log, report)
                if self._stops():
                    break
            self._save()
        finally:
            if log is not None:
                log.close()
        return self.folder.weights

    def _take_step(self, batch: SceneBatch) -> StepReport:
        section = self.config.schedule
        lr = learning_rate(self.step / section.steps, self.config.optimiser.lr, section)
        set_learning_rates(self.optimiser, lr)
        problem = describe_problem(batch) if self.checks_batches else None
        report = self.training_step(move_batch(batch, self.device), self.step, usable=problem is None)
        self.step += 1
        if not report.applied:
            self.skipped.add(self.step, explain_skip(report.scalars, problem, self.training_step.norm_limits))
            return report._replace(scalars={})
        self.skipped.in_a_row = 0
        if self.average is not None:
            self.average.update()
        return report

    def _write_what_is_due(self, log: TrainingLog | None, report: StepReport) -> None:
        config, step = self.config, self.step
        if log is not None:
            log.bar.update()
        if step % config.log.every == 0 or step == config.schedule.steps:
            if report.applied:
                scores = compute_scores(report.predictions, report.batch, task=self.task)
                self.means.add({name: value.nanmean() for name, value in scores.items()})
            scalars = ScalarMeans.merge(self._gather(self.means.sums()))
            counts = {"skipped": float(self.num_skipped), "scenes_left_out": float(self._count_left_out())}
            if log is not None:
                log.write(step, {**scalars, "lr": self.optimiser.param_groups[0]["lr"], **counts})
        if config.validation.every and (step % config.validation.every == 0 or step == config.schedule.steps):
            self._write_validation(log)
        self._save_is_due |= step % config.checkpoint.every == 0 and step < config.schedule.steps
        # Weights that lead to nothing finite may be broken: the last good ones stay until it goes on.
        if self._save_is_due and not self.skipped.in_a_row:
            self._save()

    def _write_validation(self, log: TrainingLog | None) -> None:
        measured = self.validate()
        if log is not None:
            log.write(self.step, measured, kind="validation")

    def _stops(self) -> bool:
        """Return whether to stop, alike in all processes; they ask where they wait for each other anyway."""
        if self.accelerator.num_processes == 1:
            return self.stop_requested
        return self.step % self.config.log.every == 0 and any(self._gather(self.stop_requested))

    def _count_left_out(self) -> int:
        self.num_left_out = self._left_out_before + sum(self._gather(self.stream.num_left_out))
        return self.num_left_out

    def validate(self) -> dict[str, float]:
        """Return losses and scores on other scenes, of averaged weights if there are any; alike in all processes."""
        scenes = validation_batches(self.config.validation, self.config.data, self.held_out, self.device)
        batches = ((num_views, move_batch(batch, self.device)) for num_views, batch in scenes)
        averaged = contextlib.nullcontext() if self.average is None else self.average.applied()
        with averaged, kept_rng(self.device, self.config.seed):
            return validate(self.trained_model, self.loss, batches, autocast=self.autocast, task=self.task)

    def _save(self) -> None:
        """Write checkpoint and weights; all processes take part, the first writes."""
        self._save_is_due = False
        check_finite(self.bare_model.state_dict(), self._gather)
        if self.average is not None:
            check_finite(self.average.averages, self._gather)
        state = training_state(self.bare_model, self.optimiser.optimizer)
        state |= {
            "step": self.step,
            "skipped": (self.skipped.total, self.skipped.in_a_row),
            "left_out": self._count_left_out(),
            "average": None if self.average is None else self.average.state_dict(),
            "monitor": None if self.monitor is None else self.monitor.state_dict(),
            "processes": self._gather({"rng": capture_rng(self.device), "means": self.means.peek()}),
        }
        if self.accelerator.is_main_process:
            self.folder.save(state, self.blueprint)
        self.accelerator.wait_for_everyone()

    def _restore(self, state: dict[str, Any]) -> None:
        load_into(self.bare_model, self.optimiser.optimizer, state)
        self.step = state["step"]
        self.skipped.total, self.skipped.in_a_row = state["skipped"]
        self.num_left_out = self._left_out_before = state.get("left_out", 0)
        if self.average is not None:
            if state["average"] is None:
                self.average = WeightAverage(self.bare_model, self.config.ema)
            else:
                self.average.load_state_dict(state["average"])
        if self.monitor is not None and state["monitor"] is not None:
            self.monitor.load_state_dict(state["monitor"])
        processes = state["processes"]
        if len(processes) == self.accelerator.num_processes:
            own = processes[self.accelerator.process_index]
            restore_rng(own["rng"], self.device)
            self.means.load(own["means"])
        else:
            logger.warning(
                "The checkpoint is of %d processes, this run has %d: it doesn't go on exactly as it would have.",
                len(processes), self.accelerator.num_processes,
            )  # fmt: skip
