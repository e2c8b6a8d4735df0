"""Every number of a training run, as frozen dataclasses; `geomtx.training.config_file` reads them from YAML."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from geomtx.checks import check_option, check_positive
from geomtx.models.config import HEADS, VGGTConfig

__all__ = [
    "CheckpointSection",
    "DataSection",
    "GroupSection",
    "LogSection",
    "LossSection",
    "ModelSection",
    "MonitorSection",
    "OptimiserSection",
    "ScheduleSection",
    "TrainingConfig",
    "ValidationSection",
]


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must be in {low:g} … {high:g}, got {value}")


def _check_at_least(name: str, value: float, low: float) -> None:
    if not value >= low:
        raise ValueError(f"{name} must be at least {low:g}, got {value}")


@dataclasses.dataclass(frozen=True)
class ModelSection:
    """What is trained.

    Attributes:
        preset: A constructor of `VGGTConfig`; "vggt_1b" is its defaults.
        numbers: Of `VGGTConfig`, in place of the preset's.
        weights: Start from these, as for `VGGT.from_pretrained`, and with their configuration; None = random.
        heads: Train only these heads of `weights`; None = all that they have.
    """

    preset: str = "vggt_1b"
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)
    weights: str | None = None
    heads: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        presets = ("vggt_1b", *(name for name in ("nano", "tiny") if hasattr(VGGTConfig, name)))
        check_option("model.preset", self.preset, presets)
        if self.weights is not None and self.numbers:
            raise ValueError(f"model.numbers must be empty where model.weights bring theirs, got {self.numbers}")
        if self.weights is None and self.heads is not None:
            raise ValueError(f"model.heads must go with model.weights, got {self.heads}; use model.numbers.heads")

    def model_config(self) -> VGGTConfig:
        """The numbers of a model with random weights.

        Raises:
            ValueError: For a number that `VGGTConfig` doesn't have, or doesn't take.
        """
        preset = VGGTConfig() if self.preset == "vggt_1b" else getattr(VGGTConfig, self.preset)()
        return VGGTConfig.from_dict({**preset.to_dict(), **self.numbers})


@dataclasses.dataclass(frozen=True)
class DataSection:
    """Where scenes come from.

    Attributes:
        kind: "synthetic" renders scenes that never repeat; the others read folders.
        root: Folder of a dataset.
        image_hw: Height and width of the images, multiples of the model's patch.
        images: Budget of images a step and process; with n views a batch has max(1, images // n) scenes.
        views: Number of views → weight with which a step has it.
        num_tracks: Tracks a scene; 0 = none.
        options: Keyword arguments of the renderer or dataset.
        augment: Change colours, see `geomtx.data.augmentation`.
        workers: Processes that prepare batches beside the training; 0 = none, rendering on the training device.
    """

    kind: Literal["synthetic", "co3d", "vkitti", "unified"] = "synthetic"
    root: str | None = None
    image_hw: tuple[int, int] = (518, 518)
    images: int = 48
    views: dict[int, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(range(2, 25), 1.0))
    num_tracks: int = 0
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    augment: bool = False
    workers: int = 0

    def __post_init__(self) -> None:
        check_positive("data.images", self.images)
        _check_at_least("data.num_tracks", self.num_tracks, 0)
        _check_at_least("data.workers", self.workers, 0)
        for side in self.image_hw:
            check_positive("data.image_hw", side)
        if not self.views or min(self.views) < 1 or min(self.views.values()) < 0 or sum(self.views.values()) <= 0:
            raise ValueError(f"data.views must give weights to numbers of views, got {self.views}")
        if (self.root is None) != (self.kind == "synthetic"):
            raise ValueError(f"data.root must name the folder of a dataset, got {self.root} for kind {self.kind!r}")


@dataclasses.dataclass(frozen=True)
class ValidationSection:
    """Scenes that are never trained on.

    Attributes:
        every: Steps between validations; 0 = never.
        scenes: For every number of views.
        views: Numbers of views.
    """

    every: int = 0
    scenes: int = 16
    views: tuple[int, ...] = (2, 4)

    def __post_init__(self) -> None:
        _check_at_least("validation.every", self.every, 0)
        check_positive("validation.scenes", self.scenes)
        _check_at_least("validation.views", min(self.views, default=0), 1)


@dataclasses.dataclass(frozen=True)
class LossSection:
    """See `geomtx.losses.MultitaskLoss`.

    Attributes:
        preset: "default", "paper" or "released".
        terms: Task → what differs from the preset's term, `weight` for instance; None = off.
    """

    preset: Literal["default", "paper", "released"] = "default"
    terms: dict[str, dict[str, Any] | None] = dataclasses.field(default_factory=dict)


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
        _check_at_least("lr", self.lr, 0)
        _check_at_least("weight_decay", 0 if self.weight_decay is None else self.weight_decay, 0)


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
    """

    lr: float = 5e-5
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.05
    decay: Literal["matrices", "all"] = "matrices"
    groups: dict[str, GroupSection] = dataclasses.field(default_factory=dict)
    clip: dict[str, float] = dataclasses.field(default_factory=lambda: {"*": 1.0})

    def __post_init__(self) -> None:
        check_positive("optimiser.lr", self.lr)
        check_positive("optimiser.eps", self.eps)
        _check_at_least("optimiser.weight_decay", self.weight_decay, 0)
        for beta in self.betas:
            _check_range("optimiser.betas", beta, 0, 1)
        for pattern, norm in self.clip.items():
            check_positive(f"optimiser.clip.{pattern}", norm)


@dataclasses.dataclass(frozen=True)
class ScheduleSection:
    """Linear warm-up, then cosine.

    Attributes:
        steps: Of the optimiser, in all.
        warmup: Share of the steps in which the learning rate rises.
        initial_lr: At the first step.
        final_lr: At the end.
    """

    steps: int = 16_000
    warmup: float = 0.05
    initial_lr: float = 1e-8
    final_lr: float = 1e-8

    def __post_init__(self) -> None:
        check_positive("schedule.steps", self.steps)
        _check_range("schedule.warmup", self.warmup, 0, 1)
        _check_at_least("schedule.initial_lr", self.initial_lr, 0)
        _check_at_least("schedule.final_lr", self.final_lr, 0)


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
        _check_at_least("monitor.every", self.every, 0)
        _check_at_least("monitor.projection", 1 if self.projection is None else self.projection, 1)


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
        _check_at_least("checkpoint.keep_every", self.keep_every, 0)


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
        freeze: Patterns of module names that stay as they are, in evaluation mode.
        detach: Heads whose gradients stop at the tokens: probes.
        data: Where scenes come from.
        validation: Scenes that are never trained on.
        loss: What is minimised.
        optimiser: AdamW, its groups and clipping.
        schedule: Of the learning rate.
        accumulation: Chunks of a batch that are run one after the other.
        precision: "bfloat16" runs the encoder under autocast; heads, losses and parameters stay in float32.
        gradient_checkpointing: Recompute blocks in the backward pass: half the speed, a fraction of the memory.
        compile: Run the model through torch.compile.
        ema: Decay of the averaged weights, which validation and the saved model use; 0 = none.
        max_skipped: Steps in a row whose loss or gradient may be NaN or infinite; one more ends the run.
        monitor: Of the tasks' gradients.
        checkpoint: What is kept.
        log: What is written down.
    """

    seed: int = 42
    model: ModelSection = dataclasses.field(default_factory=ModelSection)
    freeze: tuple[str, ...] = ()
    detach: tuple[str, ...] = ()
    data: DataSection = dataclasses.field(default_factory=DataSection)
    validation: ValidationSection = dataclasses.field(default_factory=ValidationSection)
    loss: LossSection = dataclasses.field(default_factory=LossSection)
    optimiser: OptimiserSection = dataclasses.field(default_factory=OptimiserSection)
    schedule: ScheduleSection = dataclasses.field(default_factory=ScheduleSection)
    accumulation: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    compile: bool = False
    ema: float = 0.0
    max_skipped: int = 10
    monitor: MonitorSection = dataclasses.field(default_factory=MonitorSection)
    checkpoint: CheckpointSection = dataclasses.field(default_factory=CheckpointSection)
    log: LogSection = dataclasses.field(default_factory=LogSection)

    def __post_init__(self) -> None:
        _check_at_least("seed", self.seed, 0)
        check_positive("accumulation", self.accumulation)
        _check_range("ema", self.ema, 0, 1)
        _check_at_least("max_skipped", self.max_skipped, 0)
        for head in self.detach:
            check_option("detach", head, HEADS)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for YAML; `parse_config` reads them."""
        return _plain(dataclasses.asdict(self))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
