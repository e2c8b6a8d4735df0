"""Every number of a training run, as frozen dataclasses; `geomtx.training.config_file` reads them from YAML."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from geomtx.checks import check_at_least, check_finite_positive, check_option, check_positive, check_range
from geomtx.models.vggt.config import HEADS
from geomtx.training.data_config import MOST_RENDERED, DataSection, ValidationSection
from geomtx.training.model_config import LoraSection, LossSection, ModelSection

__all__ = [
    "CheckpointSection",
    "GroupSection",
    "LogSection",
    "LoraSection",
    "LossSection",
    "ModelSection",
    "MonitorSection",
    "OptimiserSection",
    "ScheduleSection",
    "TrainingConfig",
]


@dataclasses.dataclass(frozen=True)
class GroupSection:
    """How the parameters that match a pattern differ from the others.

    Attributes:
        lr: Factor of the learning rate.
        weight_decay: In place of the optimiser's; None = the same.
    """

    lr: float = 1.0
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        check_at_least("lr", self.lr, 0)
        check_at_least("weight_decay", 0 if self.weight_decay is None else self.weight_decay, 0)


@dataclasses.dataclass(frozen=True)
class OptimiserSection:
    """AdamW.

    Attributes:
        lr: Peak of the learning rate.
        betas: Of the moments.
        eps: Of the denominator.
        weight_decay: Decoupled.
        decay: Of "matrices", the parameters with two axes or more, or of "all".
        groups: Pattern of parameter names → differences; the first that matches a parameter counts.
        clip: Pattern of parameter names → largest norm of their gradient. Each trained parameter in exactly one.
        skip_above: Skip a step in which one of these norms, before clipping, is more than so many times its largest;
            None = none is.
    """

    lr: float = 5e-5
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.05
    decay: Literal["matrices", "all"] = "matrices"
    groups: dict[str, GroupSection] = dataclasses.field(default_factory=dict)
    clip: dict[str, float] = dataclasses.field(default_factory=lambda: {"*": 1.0})
    skip_above: float | None = None

    def __post_init__(self) -> None:
        check_finite_positive("optimiser.lr", self.lr)
        check_finite_positive("optimiser.eps", self.eps)
        check_at_least("optimiser.weight_decay", self.weight_decay, 0)
        for beta in self.betas:
            check_range("optimiser.betas", beta, 0, 1)
        for pattern, norm in self.clip.items():
            check_finite_positive(f"optimiser.clip.{pattern}", norm)
        if self.skip_above is not None:
            check_at_least("optimiser.skip_above", self.skip_above, 1)


@dataclasses.dataclass(frozen=True)
class ScheduleSection:
    """Linear warm-up, then down.

    Attributes:
        steps: Of the optimiser, in all.
        warmup: Share of the steps in which the learning rate rises.
        initial_lr: At the first step.
        final_lr: At the end.
        shape: Of the way down, "cosine" or "linear".
    """

    steps: int = 16_000
    warmup: float = 0.05
    initial_lr: float = 1e-8
    final_lr: float = 1e-8
    shape: Literal["cosine", "linear"] = "cosine"

    def __post_init__(self) -> None:
        check_option("schedule.shape", self.shape, ("cosine", "linear"))
        check_positive("schedule.steps", self.steps)
        check_range("schedule.warmup", self.warmup, 0, 1)
        check_at_least("schedule.initial_lr", self.initial_lr, 0)
        check_at_least("schedule.final_lr", self.final_lr, 0)


@dataclasses.dataclass(frozen=True)
class MonitorSection:
    """Do the tasks pull the shared blocks in the same direction? See `GradientMonitor`.

    Attributes:
        every: Steps between looks; 0 = never.
        parameters: Patterns of the shared parameters; empty = the last two frame and global blocks.
        projection: Compare random projections to so many numbers; None = the gradients themselves.
        pcgrad: Project conflicting gradients off each other, in every step.
    """

    every: int = 0
    parameters: tuple[str, ...] = ()
    projection: int | None = None
    pcgrad: bool = False

    def __post_init__(self) -> None:
        check_at_least("monitor.every", self.every, 0)
        check_at_least("monitor.projection", 1 if self.projection is None else self.projection, 1)


@dataclasses.dataclass(frozen=True)
class CheckpointSection:
    """What is kept.

    Attributes:
        every: Steps between checkpoints; the last step always makes one.
        keep_every: Checkpoints at multiples of this stay, the others only until the next; 0 = only the last stays.
    """

    every: int = 1000
    keep_every: int = 0

    def __post_init__(self) -> None:
        check_positive("checkpoint.every", self.every)
        check_at_least("checkpoint.keep_every", self.keep_every, 0)


@dataclasses.dataclass(frozen=True)
class LogSection:
    """What is written down.

    Attributes:
        every: Steps that a line of the log is the mean of.
        tensorboard: Write scalars for TensorBoard too.
    """

    every: int = 20
    tensorboard: bool = True

    def __post_init__(self) -> None:
        check_positive("log.every", self.every)


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """A training run; the defaults are those of VGGT's released fine-tuning where it has them.

    Attributes:
        seed: Of weights, data and augmentation.
        model: What is trained.
        task: Options of the task that goes with `model.kind`, by name.
        lora: Adapters, trained in place of the weights that they adapt; None = none. What else of the model stays as it
            is, `freeze` says.
        freeze: Patterns of module names that stay as they are, in evaluation mode.
        detach: Heads whose gradients stop at the tokens: probes.
        data: Where scenes come from.
        validation: Scenes that are never trained on.
        loss: What is minimised.
        optimiser: AdamW, its groups and clipping.
        schedule: Of the learning rate.
        accumulation: Chunks of a batch that are run one after the other.
        precision: "bfloat16" runs the encoder under autocast; heads, losses and parameters stay in float32.
        tf32: Let matrix products of float32 round their factors to TF32 where the hardware can; for the whole process.
        gradient_checkpointing: Recompute blocks in the backward pass: one more forward pass, less memory.
        compile: Run the model through torch.compile.
        ema: Decay of the averaged weights, which validation and the saved model use; 0 = none.
        max_skipped: Steps in a row whose loss or gradient may be NaN or infinite; one more ends the run.
        monitor: Of the tasks' gradients.
        checkpoint: What is kept.
        log: What is written down.
    """

    seed: int = 42
    model: ModelSection = dataclasses.field(default_factory=ModelSection)
    task: dict[str, Any] = dataclasses.field(default_factory=dict)
    lora: LoraSection | None = None
    freeze: tuple[str, ...] = ()
    detach: tuple[str, ...] = ()
    data: DataSection = dataclasses.field(default_factory=DataSection)
    validation: ValidationSection = dataclasses.field(default_factory=ValidationSection)
    loss: LossSection = dataclasses.field(default_factory=LossSection)
    optimiser: OptimiserSection = dataclasses.field(default_factory=OptimiserSection)
    schedule: ScheduleSection = dataclasses.field(default_factory=ScheduleSection)
    accumulation: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    tf32: bool = False
    gradient_checkpointing: bool = False
    compile: bool = False
    ema: float = 0.0
    max_skipped: int = 10
    monitor: MonitorSection = dataclasses.field(default_factory=MonitorSection)
    checkpoint: CheckpointSection = dataclasses.field(default_factory=CheckpointSection)
    log: LogSection = dataclasses.field(default_factory=LogSection)

    def __post_init__(self) -> None:
        check_at_least("seed", self.seed, 0)
        check_positive("accumulation", self.accumulation)
        check_range("ema", self.ema, 0, 1)
        check_at_least("max_skipped", self.max_skipped, 0)
        views = max(self.validation.views)
        most_views = MOST_RENDERED.get(self.data.kind, views)
        if views > most_views:
            raise ValueError(f"validation.views must be up to {most_views} of rendered scenes, got {views}")
        for head in self.detach:
            check_option("detach", head, HEADS)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for YAML; `parse_config` reads them."""
        return _plain(dataclasses.asdict(self))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
