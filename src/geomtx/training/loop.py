"""A run from its configuration to weights: `Trainer(config, folder).train()`."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

import torch

from geomtx.data.sampler import rare_view_counts
from geomtx.training.batches import SceneStream, describe_problem, load_batches, move_batch, validation_batches
from geomtx.training.build import build_loss, build_model, check_track_labels, prepare_model
from geomtx.training.config import TrainingConfig
from geomtx.training.ema import WeightAverage
from geomtx.training.groups import build_clip_groups, build_parameter_groups
from geomtx.training.log import ScalarMeans, TrainingLog
from geomtx.training.monitor import GradientMonitor, shared_parameters
from geomtx.training.requirements import import_extra
from geomtx.training.run_folder import RunFolder
from geomtx.training.schedule import learning_rate, set_learning_rates
from geomtx.training.sources import DrawScenes, FileScenes, RenderedScenes, build_source, check_datasets
from geomtx.training.state import capture_rng, check_finite, kept_rng, load_into, restore_rng, training_state
from geomtx.training.step import StepReport, TrainingStep
from geomtx.training.validation import score_cameras, validate
from geomtx.types import SceneBatch

__all__ = ["Trainer"]

logger = logging.getLogger("geomtx")


class Trainer:
    """Trains on one process, or as one of many that `accelerate launch` (or torchrun) started.

    Args:
        config: Of the run.
        folder: Gets `config.yaml`, `log.jsonl`, `tensorboard/`, `checkpoint.pt` and, as weights that
            `VGGT.from_pretrained` loads, `weights/`.
        resume: Go on from the folder's checkpoint; False = the folder must not have one.
        cpu: Train on the CPU, whatever else there is.
        progress: Show a bar on stderr; None = if that is a terminal.
        draw: Scenes by seed, for training and validation, in place of those that the configuration asks for. Batches
            to train on are checked (`geomtx.data.check_values`), and skipped if there is something wrong with one.

    Attributes:
        step: Steps done, those that were skipped too; also which batch comes next.
        num_skipped: Steps whose loss or gradient was not finite, or whose batch was no scene.
        num_left_out: Scenes of files that could not be used, in all processes, up to the last line of the log.
        stop_requested: Set it, for instance in a signal handler, to stop after the current step.

    Raises:
        ValueError: For a configuration that doesn't fit the model, a checkpoint of another model, a folder with
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
        cpu: bool = False,
        progress: bool | None = None,
        draw: DrawScenes | None = None,
    ) -> None:
        accelerate = import_extra("accelerate")
        check_datasets(config.data, validation=config.validation.every > 0)
        self.config = config
        self.folder = RunFolder(Path(folder), config)
        state = self.folder.open(resume=resume)
        ddp = accelerate.DistributedDataParallelKwargs(find_unused_parameters=False, gradient_as_bucket_view=True)
        # Precision and accumulation are the configuration's, whatever the launcher's own says.
        once = accelerate.utils.GradientAccumulationPlugin(num_steps=1)
        # Without being told that it is on CPUs, accelerate takes each process of a launcher for a run of its own.
        cpu = cpu or not torch.accelerator.is_available()
        self.accelerator = accelerate.Accelerator(
            cpu=cpu, mixed_precision="no", gradient_accumulation_plugin=once, kwargs_handlers=[ddp]
        )
        self.device: torch.device = self.accelerator.device
        self.progress = progress if self.accelerator.is_main_process else False
        self.step = self.num_skipped = self.skipped_in_a_row = self.num_left_out = self._left_out_before = 0
        self._save_is_due = False
        # Rendered scenes are right, and those of files were checked one by one.
        self.checks_batches = draw is not None and not isinstance(draw, RenderedScenes | FileScenes)
        self.stop_requested = False
        self.means = ScalarMeans()
        if config.tf32:
            torch.set_float32_matmul_precision("high")
        torch.manual_seed(config.seed)
        self._build_model(state, check_labels=draw is None)
        patch_size = self.model_config.patch_size
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
        # From here on, every process draws its own numbers.
        torch.manual_seed(config.seed + 1 + self.accelerator.process_index)
        if state is not None:
            self._restore(state)
        self.folder.start(self.accelerator)
        rare = rare_view_counts(config.data.views)
        if rare and self.accelerator.is_main_process:
            logger.warning(
                "The model won't know scenes of %s views: data.views leaves them out.", ", ".join(map(str, rare))
            )

    def _build_model(self, state: dict[str, Any] | None, *, check_labels: bool) -> None:
        config = self.config
        model = build_model(config.model) if state is None else self.folder.build_model(state)
        prepare_model(model, config)
        if check_labels:
            check_track_labels(model, config.data.num_tracks)
        self.model_config = model.config
        self.loss = build_loss(config.loss)
        section = config.optimiser
        optimiser = torch.optim.AdamW(
            build_parameter_groups(model, section), lr=section.lr, betas=section.betas, eps=section.eps, fused=True
        )
        self.model, self.optimiser = self.accelerator.prepare(model, optimiser)
        self.bare_model = self.accelerator.unwrap_model(self.model)
        self.average = WeightAverage(self.bare_model, config.ema) if config.ema else None
        self.monitor = self._build_monitor()
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
        )

    def _build_monitor(self) -> GradientMonitor | None:
        section = self.config.monitor
        if not section.every and not section.pcgrad:
            return None
        reduce = self._mean_over_processes if self.accelerator.num_processes > 1 else None
        return GradientMonitor(
            shared_parameters(self.bare_model, self.bare_model.encoder, section.parameters),
            every=section.every,
            pcgrad=section.pcgrad,
            projection=section.projection,
            reduce=reduce,
        )

    def _mean_over_processes(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(tensor, "mean")

    def train(self, until: int | None = None) -> Path:
        """Train to the end, or until so many steps are done; writes a checkpoint and the weights there.

        Returns:
            The folder of the weights.

        Raises:
            ValueError: If more than `max_skipped` steps in a row are skipped, or the weights are not finite.
        """
        total = self.config.schedule.steps
        steps = range(self.step, total if until is None else min(until, total))
        batches = load_batches(self.stream, steps, workers=self.config.data.workers)
        log = self.folder.open_log(self.step, total, self.progress) if self.accelerator.is_main_process else None
        try:
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
        if report.applied:
            self.skipped_in_a_row = 0
            if self.average is not None:
                self.average.update()
            return report
        self.num_skipped += 1
        self.skipped_in_a_row += 1
        bad = ", ".join(name for name, value in report.scalars.items() if not value.isfinite()) or "another process's"
        kind, why = ("these are not finite", bad) if problem is None else ("its batch is no scene", problem)
        logger.warning("Step %d was skipped, as %s: %s.", self.step, kind, why)
        if self.skipped_in_a_row > self.config.max_skipped:
            rule = "loss and gradient must be finite" if problem is None else "batches must be scenes"
            got = f"got {self.skipped_in_a_row} steps in a row that are not, up to step {self.step} ({why})"
            raise ValueError(f"{rule}, {got}; the last checkpoint is kept")
        return report._replace(scalars={})

    def _write_what_is_due(self, log: TrainingLog | None, report: StepReport) -> None:
        config, step = self.config, self.step
        if log is not None:
            log.bar.update()
        if step % config.log.every == 0 or step == config.schedule.steps:
            if report.applied:
                poses = score_cameras(report.predictions, report.batch)
                self.means.add({name: value.nanmean() for name, value in poses.items()})
            scalars = ScalarMeans.merge(self._gather(self.means.sums()))
            counts = {"skipped": float(self.num_skipped), "scenes_left_out": float(self._count_left_out())}
            if log is not None:
                log.write(step, {**scalars, "lr": self.optimiser.param_groups[0]["lr"], **counts})
        if config.validation.every and (step % config.validation.every == 0 or step == config.schedule.steps):
            scores = self.validate()
            if log is not None:
                log.write(step, scores, kind="validation")
        self._save_is_due |= step % config.checkpoint.every == 0 and step < config.schedule.steps
        # Weights that lead to nothing finite may be broken: the last good ones stay until it goes on.
        if self._save_is_due and not self.skipped_in_a_row:
            self._save()

    def _stops(self) -> bool:
        """In all processes at once: they ask each other where they have to wait for each other anyway."""
        if self.accelerator.num_processes == 1:
            return self.stop_requested
        return self.step % self.config.log.every == 0 and any(self._gather(self.stop_requested))

    def _gather(self, value: Any) -> list[Any]:
        if self.accelerator.num_processes == 1:
            return [value]
        return import_extra("accelerate.utils").gather_object([value])

    def _count_left_out(self) -> int:
        self.num_left_out = self._left_out_before + sum(self._gather(self.stream.num_left_out))
        return self.num_left_out

    def validate(self) -> dict[str, float]:
        """Losses and scores on held-out scenes, of the averaged weights if there are; the same in every process."""
        scenes = validation_batches(self.config.validation, self.config.data, self.held_out, self.device)
        batches = ((num_views, move_batch(batch, self.device)) for num_views, batch in scenes)
        averaged = contextlib.nullcontext() if self.average is None else self.average.applied()
        with averaged, kept_rng(self.device, self.config.seed):
            return validate(self.bare_model, self.loss, batches, autocast=self.autocast)

    def _save(self) -> None:
        """All processes take part; the first writes."""
        self._save_is_due = False
        check_finite(self.bare_model.state_dict(), self._gather)
        if self.average is not None:
            check_finite(self.average.averages, self._gather)
        state = training_state(self.bare_model, self.optimiser.optimizer)
        state |= {
            "step": self.step,
            "skipped": (self.num_skipped, self.skipped_in_a_row),
            "left_out": self._count_left_out(),
            "average": None if self.average is None else self.average.state_dict(),
            "monitor": None if self.monitor is None else self.monitor.state_dict(),
            "processes": self._gather({"rng": capture_rng(self.device), "means": self.means.peek()}),
        }
        if self.accelerator.is_main_process:
            self.folder.save(state, self.model_config)
        self.accelerator.wait_for_everyone()

    def _restore(self, state: dict[str, Any]) -> None:
        load_into(self.bare_model, self.optimiser.optimizer, state)
        self.step = state["step"]
        self.num_skipped, self.skipped_in_a_row = state["skipped"]
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
