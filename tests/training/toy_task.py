"""A model that is no VGGT, and its task: grey values of pictures from their neighbours and a number that is drawn."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from geomtx.geometry.scene_frame import normalize_scene
from geomtx.losses.multitask import LossReport
from geomtx.training.config import LossSection, ModelSection
from geomtx.types import SceneBatch


@dataclasses.dataclass(frozen=True)
class GreyConfig:
    width: int = 8
    patch_size: int = 7

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class GreyModel(nn.Module):
    def __init__(self, config: GreyConfig) -> None:
        super().__init__()
        self.config = config
        self.hidden = nn.Linear(3, config.width)
        self.out = nn.Linear(config.width, 1)
        self.dropout = nn.Dropout(0.1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return self.out(self.dropout(self.hidden(images.movedim(-3, -1)).relu())).squeeze(-1)

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        save_file(self.state_dict(), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(self.config.to_dict()))

    @classmethod
    def from_pretrained(cls, source: Path) -> GreyModel:
        model = cls(GreyConfig(**json.loads((Path(source) / "config.json").read_text())))
        model.load_state_dict(load_file(Path(source) / "model.safetensors"))
        return model


class GreyOutputs(NamedTuple):
    grey: Tensor
    others: dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class GreyTask:
    noise: float = 0.1

    def __post_init__(self) -> None:
        if self.noise < 0:
            raise ValueError(f"noise must be at least 0, got {self.noise}")

    def build_model(self, section: ModelSection) -> GreyModel:
        return GreyModel(GreyConfig(**section.numbers))

    def rebuild_model(self, numbers: dict[str, Any]) -> GreyModel:
        return GreyModel(GreyConfig(**numbers))

    def build_loss(self, section: LossSection) -> Any:
        return grey_loss

    def prepare(self, batch: SceneBatch, *, training: bool = True) -> SceneBatch:
        batch = normalize_scene(batch)[0]
        return batch._replace(images=batch.images + self.noise * torch.randn_like(batch.images))

    def predict(self, model: nn.Module, batch: SceneBatch) -> GreyOutputs:
        grey = model(batch.images)
        return GreyOutputs(grey, {"twice": 2 * grey})

    def score(self, outputs: GreyOutputs, batch: SceneBatch) -> dict[str, Tensor]:
        return {"error": (outputs.grey - batch.images.mean(2)).abs().mean((1, 2, 3))}


def grey_loss(outputs: GreyOutputs, batch: SceneBatch) -> LossReport:
    loss = (outputs.grey - batch.images.mean(2)).square().mean()
    return LossReport(loss, {"grey": loss}, {"loss_grey": loss})
