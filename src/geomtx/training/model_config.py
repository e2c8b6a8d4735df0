"""What of a training configuration is about the model and its loss."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from geomtx.checks import check_finite_positive, check_option, check_positive
from geomtx.models.vggt.config import VGGTConfig

__all__ = ["LoraSection", "LossSection", "ModelSection"]

# Constructors of `VGGTConfig`; other kinds may have others, or more.
PRESETS = ("vggt_1b", "tiny", "nano", "small", "base")


@dataclasses.dataclass(frozen=True)
class ModelSection:
    """What is trained.

    Attributes:
        kind: "vggt", "nvs" or "video_tracker", see `geomtx.training.task.Task`.
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
