"""All options of a training run, as frozen dataclasses; `geomtx.training.config_file` reads them from YAML.

Every dataclass checks its own numbers and names the field that is wrong; the parser puts the path before it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from geomtx.checks import check_at_least, check_finite_positive, check_option, check_positive, check_range
from geomtx.data.synthetic.motion import MOST_FRAMES
from geomtx.data.synthetic.render import MOST_TRACKS, MOST_VIEWS
from geomtx.models.vggt.config import HEADS, VGGTConfig
from geomtx.parsing import replace_fields

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
"""Kind of rendered scenes → largest number of views."""

# Constructors of `VGGTConfig`; other kinds of models may have others, or more.
PRESETS = ("vggt_1b", "tiny", "nano", "small", "base")
_PAIR_KINDS = ("dust3r", "mast3r", "croco")


@dataclasses.dataclass(frozen=True)
class DatasetSection:
    """A dataset of scenes in files.

    Attributes:
        kind: Layout of the files: "co3d", "virtual_kitti", "unified" or "colmap".
        root: Folder of the dataset.
        annotations: Folder of Co3Dv2's annotations; defaults to `root`.
        validation_root: Folder of the scenes to validate on; not for Co3Dv2, which has a split for it.
        length: Weight of this dataset when scenes are drawn, relative to the others; defaults to its number of scenes.
        options: Further keyword arguments of the dataset's class.
    """

    kind: Literal["co3d", "virtual_kitti", "unified", "colmap"]
    root: str | None = None
    annotations: str | None = None
    validation_root: str | None = None
    length: int | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class DataSection:
    """Scenes to train on.

    Attributes:
        kind: "synthetic" renders scenes that never repeat, "synthetic_video" renders videos of moving scenes, "dataset"
            reads `datasets`.
        datasets: Name of your choice → dataset.
        image_hw: Height and width of the images in pixels, multiples of the model's patch size.
        aspect: Range of height over width, from which the height is drawn for every step; defaults to `image_hw`.
        images: Number of images a step and process; with n views, a batch has max(1, images // n) scenes.
        views: Number of views of a scene → weight with which a step has it.
        num_tracks: Number of tracks a scene; 0 for none.
        supersample: Number of rays a pixel along each axis, for rendered scenes.
        style: Fields of `geomtx.data.synthetic.RoomStyle`, for rendered scenes.
        motion: Fields of `geomtx.data.MotionStyle`, for rendered videos.
        augment: Whether to augment colours (`geomtx.data.ColorAugmentation`), and of rendered videos also frames and
            tracks (`geomtx.data.VideoAugmentation`).
        color: Fields of `ColorAugmentation`.
        video: Fields of `VideoAugmentation`.
        transform: Fields of `geomtx.data.FrameTransform`, for training on `datasets`.
        choice: Fields of `geomtx.data.FrameChoice`, in place of those that are usual for each of `datasets`.
        workers: Number of processes that prepare batches beside the training; 0 prepares them in the training process,
            where rendering runs on the training device.
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
        check_positive("images", self.images)
        check_positive("supersample", self.supersample)
        check_at_least("num_tracks", self.num_tracks, 0)
        check_at_least("workers", self.workers, 0)
        for side in self.image_hw:
            check_positive("image_hw", side)
        if self.aspect is not None and not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"aspect must be a range above 0, got {self.aspect}")
        weights = self.views.values()
        if not (all(views >= 1 for views in self.views) and all(weight >= 0 for weight in weights)) or not (
            0 < sum(weights) < math.inf
        ):
            raise ValueError(f"views must give weights to numbers of views, got {self.views}")
        if self.kind != "dataset":
            self._check_rendered(MOST_RENDERED[self.kind])
        for name in ("motion", "video"):
            value = getattr(self, name)
            if value and self.kind != "synthetic_video":
                raise ValueError(f"{name} must go with kind 'synthetic_video', got {value} for {self.kind!r}")
        if (self.kind == "dataset") != bool(self.datasets):
            raise ValueError(f"datasets must go with kind 'dataset', got {len(self.datasets)} for {self.kind!r}")

    def _check_rendered(self, most_views: int) -> None:
        if max(self.views) > most_views:
            raise ValueError(f"views must be up to {most_views} of rendered scenes, got {max(self.views)}")
        if self.num_tracks > MOST_TRACKS:
            raise ValueError(f"num_tracks must be up to {MOST_TRACKS} of rendered scenes, got {self.num_tracks}")
        for name in ("transform", "choice"):
            value = getattr(self, name)
            if value:
                raise ValueError(f"{name} must go with kind 'dataset', got {value} for {self.kind!r}")


@dataclasses.dataclass(frozen=True)
class ValidationSection:
    """Validation on scenes that are never trained on.

    Attributes:
        every: Number of steps between validations, of which there is one before the first step, too; 0 for none.
        scenes: Number of scenes for each number of views.
        views: Numbers of views to validate with.
    """

    every: int = 0
    scenes: int = 16
    views: tuple[int, ...] = (2, 4)

    def __post_init__(self) -> None:
        check_at_least("every", self.every, 0)
        check_positive("scenes", self.scenes)
        check_at_least("views", min(self.views, default=0), 1)


@dataclasses.dataclass(frozen=True)
class ModelSection:
    """The model to train.

    Attributes:
        kind: "vggt", "depth_anything", "dust3r", "mast3r", "croco", "nvs" or "video_tracker", see
            `geomtx.training.tasks.task.Task`.
        preset: Name of a constructor of `VGGTConfig`; "vggt_1b" stands for its defaults. Models of pairs have "tiny",
            and by default the sizes of the largest published one.
        numbers: Fields of `VGGTConfig`, or of the configuration of a model of pairs, in place of the preset's.
        weights: Weights to start from, as for `VGGT.from_pretrained`, with their configuration; defaults to random
            weights. "depth_anything" starts from a `DepthAnything3`; "dust3r" and "mast3r" from a model of their own or
            a `CroCo`, "mast3r" also from a `DUSt3R`; other kinds from a VGGT or a model of their own.
        heads: Names of the heads of `weights` to train; defaults to all.
    """

    kind: str = "vggt"
    preset: str = "vggt_1b"
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)
    weights: str | None = None
    heads: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.kind == "vggt":
            check_option("preset", self.preset, PRESETS)
        # Models of pairs may begin with those of another one, which are no weights of their heads.
        if self.weights is not None and self.numbers and self.kind not in _PAIR_KINDS:
            raise ValueError(f"numbers must be empty where model.weights bring theirs, got {self.numbers}")
        if self.weights is None and self.heads is not None:
            raise ValueError(f"heads must go with model.weights, got {self.heads}; use model.numbers.heads")
        if self.heads is not None and self.kind in _PAIR_KINDS:
            raise ValueError(f"heads must be left out for models of pairs, got {self.heads}")
        for head in self.heads or ():
            check_option("heads", head, HEADS)

    def model_config(self) -> VGGTConfig:
        """Return the configuration of a model with random weights.

        Raises:
            ValueError: For a field that `VGGTConfig` doesn't have, or a value that it doesn't take.
        """
        preset = VGGTConfig() if self.preset == "vggt_1b" else getattr(VGGTConfig, self.preset)()
        return replace_fields(preset, self.numbers, "model.numbers")


@dataclasses.dataclass(frozen=True)
class LoraSection:
    """Low-rank adapters, see `geomtx.add_lora`; they are trained even where `freeze` names their layers.

    Attributes:
        patterns: Patterns of the names of linear layers.
        rank: Rank of the matrix that is added to a weight.
        alpha: The matrix is scaled by alpha / rank; defaults to the rank, a factor of 1.
    """

    patterns: tuple[str, ...]
    rank: int = 8
    alpha: float | None = None

    def __post_init__(self) -> None:
        if not self.patterns:
            raise ValueError("patterns must name linear layers, got none")
        check_positive("rank", self.rank)
        if self.alpha is not None:
            check_finite_positive("alpha", self.alpha)


@dataclasses.dataclass(frozen=True)
class LossSection:
    """The loss, see `geomtx.losses.MultitaskLoss`.

    Attributes:
        preset: "default", "paper" or "released".
        terms: Name of a term → fields in place of the preset's, or None to turn it off. Terms are "camera", "depth",
            "points", "tracks" and "consistency", the losses across views, which are off unless they are named.
    """

    preset: Literal["default", "paper", "released"] = "default"
    terms: dict[str, dict[str, Any] | None] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class GroupSection:
    """How the parameters that match a pattern are optimised differently.

    Attributes:
        lr: Factor of the learning rate.
        weight_decay: Weight decay; defaults to the optimiser's.
    """

    lr: float = 1.0
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        check_at_least("lr", self.lr, 0)
        check_at_least("weight_decay", 0 if self.weight_decay is None else self.weight_decay, 0)


@dataclasses.dataclass(frozen=True)
class OptimiserSection:
    """The optimiser, AdamW, with clipping of gradients.

    Attributes:
        lr: Peak learning rate.
        betas: Decay rates of the two moments.
        eps: Number added to the denominator.
        weight_decay: Decoupled weight decay.
        decay: Parameters with weight decay: "matrices", those with two axes or more, or "all".
        groups: Pattern of parameter names → differences; the first pattern that matches a parameter counts.
        clip: Pattern of parameter names → norm that their gradient is clipped to. Every trained parameter must match
            exactly one.
        skip_above: A step is skipped if one of these norms, before clipping, is above this many times its limit;
            defaults to never.
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
        check_finite_positive("lr", self.lr)
        check_finite_positive("eps", self.eps)
        check_at_least("weight_decay", self.weight_decay, 0)
        for beta in self.betas:
            check_range("betas", beta, 0, 1)
        for pattern, norm in self.clip.items():
            check_finite_positive(f"clip.{pattern}", norm)
        if self.skip_above is not None:
            check_at_least("skip_above", self.skip_above, 1)


@dataclasses.dataclass(frozen=True)
class ScheduleSection:
    """The learning rate over the run: a linear warm-up, then a decay.

    Attributes:
        steps: Number of steps of the optimiser in the whole run.
        warmup: Share of the steps in which the learning rate rises, 0 … 1.
        initial_lr: Learning rate of the first step.
        final_lr: Learning rate at the end.
        shape: Shape of the decay, "cosine" or "linear".
    """

    steps: int = 16_000
    warmup: float = 0.05
    initial_lr: float = 1e-8
    final_lr: float = 1e-8
    shape: Literal["cosine", "linear"] = "cosine"

    def __post_init__(self) -> None:
        check_option("shape", self.shape, ("cosine", "linear"))
        check_positive("steps", self.steps)
        check_range("warmup", self.warmup, 0, 1)
        check_at_least("initial_lr", self.initial_lr, 0)
        check_at_least("final_lr", self.final_lr, 0)


@dataclasses.dataclass(frozen=True)
class MonitorSection:
    """Comparison of the tasks' gradients on shared parameters, see `geomtx.training.monitor.GradientMonitor`.

    Attributes:
        every: Number of steps between comparisons; 0 for none.
        parameters: Patterns of the names of the shared parameters; defaults to those of the last two frame blocks and
            the last two global blocks.
    """

    every: int = 0
    parameters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_at_least("every", self.every, 0)


@dataclasses.dataclass(frozen=True)
class CheckpointSection:
    """Which checkpoints are written and kept.

    Attributes:
        every: Number of steps between checkpoints; there is one after the last step, too.
        keep_every: Checkpoints at multiples of this number of steps are kept, others until the next is written; 0 keeps
            the last only.
    """

    every: int = 1000
    keep_every: int = 0

    def __post_init__(self) -> None:
        check_positive("every", self.every)
        check_at_least("keep_every", self.keep_every, 0)


@dataclasses.dataclass(frozen=True)
class LogSection:
    """The log.

    Attributes:
        every: Number of steps that a line of the log is the mean of.
        tensorboard: Whether scalars are written for TensorBoard, too.
    """

    every: int = 20
    tensorboard: bool = True

    def __post_init__(self) -> None:
        check_positive("every", self.every)


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """A training run; the defaults are those of VGGT's released fine-tuning where it has them.

    Attributes:
        seed: Seed of weights, data and augmentation.
        model: The model to train.
        task: Fields of the task that goes with `model.kind`, for instance `geomtx.training.tasks.nvs.NvsTask`.
        lora: Low-rank adapters, trained in place of the weights that they adapt; defaults to none. `freeze` says which
            other weights stay as they are.
        freeze: Patterns of the names of modules that are not trained and stay in evaluation mode.
        detach: Names of heads whose gradients stop at the tokens (probes).
        data: Scenes to train on.
        validation: Validation on other scenes.
        loss: The loss.
        optimiser: The optimiser, its parameter groups and the clipping of gradients.
        schedule: Number of steps and learning rate.
        accumulation: Number of chunks that a batch is split into, which are run one after the other.
        precision: "bfloat16" runs the encoder under autocast; heads, losses and parameters stay in float32.
        tf32: Whether matrix products of float32 may round their factors to TF32, in the whole process.
        gradient_checkpointing: Whether activations are computed again in the backward pass instead of being kept: one
            more forward pass, less memory.
        compile: Whether the model is run through torch.compile.
        ema: Decay of the averaged weights, which validation and the saved model use; 0 for none.
        max_skipped: Number of steps in a row that may be skipped; one more ends the run.
        monitor: Comparison of the tasks' gradients.
        checkpoint: Schedule of the checkpoints that are written and kept.
        log: The log.
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
        """Return plain values, which `geomtx.training.config_file.parse_config` reads."""
        return _plain(dataclasses.asdict(self))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
