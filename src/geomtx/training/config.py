"""Every option of a training run, as frozen dataclasses; `geomtx.training.config_file` reads them from YAML."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from geomtx.checks import check_at_least, check_finite_positive, check_option, check_positive, check_range
from geomtx.data.synthetic.motion import MOST_FRAMES
from geomtx.data.synthetic.render import MOST_TRACKS, MOST_VIEWS
from geomtx.models.vggt.config import HEADS, VGGTConfig

__all__ = [
    "MOST_RENDERED",
    "CheckpointSection",
    "DataSection",
    "DatasetSection",
    "GroupSection",
    "LogSection",
    "LoraSection",
    "LossSection",
    "ModelSection",
    "MonitorSection",
    "OptimiserSection",
    "ScheduleSection",
    "TrainingConfig",
    "ValidationSection",
]

MOST_RENDERED = {"synthetic": MOST_VIEWS, "synthetic_video": MOST_FRAMES}
"""Views of a scene, by the kind of scenes that are rendered."""


@dataclasses.dataclass(frozen=True)
class DatasetSection:
    """Scenes in files.

    Attributes:
        kind: "co3d", "virtual_kitti", "unified" or "colmap".
        root: Folder.
        annotations: Folder of Co3Dv2's annotations; None = `root`.
        validation_root: Folder of the scenes to validate on; None = `root`, which Co3Dv2 has a split for.
        length: How often scenes are drawn from it, relative to the others'; None = its number of scenes.
        options: Other keyword arguments of the dataset.
    """

    kind: Literal["co3d", "virtual_kitti", "unified", "colmap"]
    root: str | None = None
    annotations: str | None = None
    validation_root: str | None = None
    length: int | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class DataSection:
    """Where scenes come from.

    Attributes:
        kind: "synthetic" renders scenes that never repeat, "synthetic_video" renders them as videos in which things
            move, "dataset" reads `datasets`.
        datasets: By a name of your choice.
        image_hw: Height and width of the images, multiples of the model's patch.
        aspect: Range of height over width to draw from for every step, in place of the height; None = always
            `image_hw`.
        images: Budget of images a step and process; with n views a batch has max(1, images // n) scenes.
        views: Number of views → weight with which a step has it.
        num_tracks: Tracks a scene; 0 = none.
        supersample: See `geomtx.data.synthetic.render.render_scenes`.
        style: Numbers of `geomtx.data.synthetic.render.RoomStyle`.
        motion: Numbers of `geomtx.data.MotionStyle`, for videos.
        augment: Change colours, see `geomtx.data.augmentation.ColorAugmentation`, and of videos frames and tracks, too,
            see `geomtx.data.VideoAugmentation`.
        color: Numbers of the first.
        video: Numbers of the second.
        transform: Numbers of `geomtx.data.FrameTransform`, for training on `datasets`.
        choice: Numbers of `geomtx.data.FrameChoice`, in place of what is usual for each of `datasets`.
        workers: Processes that prepare batches beside the training; 0 = none, rendering on the training device.
    """

    kind: Literal["synthetic", "synthetic_video", "dataset"] = "synthetic"
    datasets: dict[str, DatasetSection] = dataclasses.field(default_factory=dict)
    image_hw: tuple[int, int] = (518, 518)
    aspect: tuple[float, float] | None = None
    images: int = 48
    views: dict[int, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(range(2, 25), 1.0))
    num_tracks: int = 0
    supersample: int = 1
    style: dict[str, Any] = dataclasses.field(default_factory=dict)
    motion: dict[str, Any] = dataclasses.field(default_factory=dict)
    augment: bool = False
    color: dict[str, Any] = dataclasses.field(default_factory=dict)
    video: dict[str, Any] = dataclasses.field(default_factory=dict)
    transform: dict[str, Any] = dataclasses.field(default_factory=dict)
    choice: dict[str, Any] = dataclasses.field(default_factory=dict)
    workers: int = 0

    def __post_init__(self) -> None:
        check_positive("data.images", self.images)
        check_positive("data.supersample", self.supersample)
        check_at_least("data.num_tracks", self.num_tracks, 0)
        check_at_least("data.workers", self.workers, 0)
        for side in self.image_hw:
            check_positive("data.image_hw", side)
        if self.aspect is not None and not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"data.aspect must be a range above 0, got {self.aspect}")
        weights = self.views.values()
        if not (all(views >= 1 for views in self.views) and all(weight >= 0 for weight in weights)) or not (
            0 < sum(weights) < math.inf
        ):
            raise ValueError(f"data.views must give weights to numbers of views, got {self.views}")
        if self.kind != "dataset":
            self._check_rendered(MOST_RENDERED[self.kind])
        for name in ("motion", "video"):
            value = getattr(self, name)
            if value and self.kind != "synthetic_video":
                raise ValueError(f"data.{name} must go with kind 'synthetic_video', got {value} for {self.kind!r}")
        if (self.kind == "dataset") != bool(self.datasets):
            raise ValueError(f"data.datasets must go with kind 'dataset', got {len(self.datasets)} for {self.kind!r}")

    def _check_rendered(self, most_views: int) -> None:
        if max(self.views) > most_views:
            raise ValueError(f"data.views must be up to {most_views} of rendered scenes, got {max(self.views)}")
        if self.num_tracks > MOST_TRACKS:
            raise ValueError(f"data.num_tracks must be up to {MOST_TRACKS} of rendered scenes, got {self.num_tracks}")
        for name in ("transform", "choice"):
            if getattr(self, name):
                raise ValueError(
                    f"data.{name} must go with kind 'dataset', got {getattr(self, name)} for {self.kind!r}"
                )


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
        check_at_least("validation.every", self.every, 0)
        check_positive("validation.scenes", self.scenes)
        check_at_least("validation.views", min(self.views, default=0), 1)


# Constructors of `VGGTConfig`; other kinds may have others, or more.
PRESETS = ("vggt_1b", "tiny", "nano", "small", "base")


@dataclasses.dataclass(frozen=True)
class ModelSection:
    """What is trained.

    Attributes:
        kind: "vggt", "nvs" or "video_tracker", see `geomtx.training.tasks.task.Task`.
        preset: A constructor of `VGGTConfig`; "vggt_1b" is its defaults.
        numbers: Of `VGGTConfig`, in place of the preset's.
        weights: Start from these, as for `VGGT.from_pretrained`, and with their configuration; None = random. Other
            kinds start from a VGGT, or from a model of their own kind.
        heads: Train only these heads of `weights`; None = all that they have.
    """

    kind: str = "vggt"
    preset: str = "vggt_1b"
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)
    weights: str | None = None
    heads: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.kind == "vggt":
            check_option("model.preset", self.preset, PRESETS)
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
class LoraSection:
    """Adapters of low rank, see `geomtx.layers.lora.add_lora`; they are trained though `freeze` names their layers.

    Attributes:
        patterns: Of the names of linear layers.
        rank: Of what is added to a weight.
        alpha: What is added is scaled by alpha / rank; None = rank, a factor of 1.
    """

    patterns: tuple[str, ...]
    rank: int = 8
    alpha: float | None = None

    def __post_init__(self) -> None:
        if not self.patterns:
            raise ValueError("lora.patterns must name linear layers, got none")
        check_positive("lora.rank", self.rank)
        if self.alpha is not None:
            check_finite_positive("lora.alpha", self.alpha)


@dataclasses.dataclass(frozen=True)
class LossSection:
    """See `geomtx.losses.MultitaskLoss`.

    Attributes:
        preset: "default", "paper" or "released".
        terms: "camera", "depth", "points", "tracks" or "consistency", the losses across views, which are off unless
            named → what differs from the preset's term, `weight` for instance; None = off.
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
