"""A run small enough for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from geomtx.training.config import TrainingConfig
from geomtx.training.config_file import parse_config
from geomtx.training.data import DrawScenes
from geomtx.training.trainer import Trainer
from geomtx.types import Cameras, SceneBatch, TrackLabels

NUMBERS = {
    "patch_size": 7, "image_size": 28, "depth": 1, "taps": [0, 0, 0, 0], "vit_depth": 1, "camera_depth": 1,
    "camera_iterations": 1, "track_levels": 2, "track_depth": 1, "track_iterations": 1,
}  # fmt: skip

CAMERA_ONLY = {"preset": "tiny", "numbers": {**NUMBERS, "heads": ["camera"]}}


def small_config(**changes: Any) -> TrainingConfig:
    """Cameras and depth of 28x28 pixels, two scenes of two views a step; `changes` are keys at the top."""
    values: dict[str, Any] = {
        "model": {"preset": "tiny", "numbers": {**NUMBERS, "heads": ["camera", "depth"]}},
        "data": {"image_hw": [28, 28], "images": 4, "views": {2: 1}},
        "optimiser": {"lr": 2e-3},
        "schedule": {"steps": 4},
        "log": {"every": 2, "tensorboard": False},
    }
    return parse_config({**values, **changes})


def small_trainer(
    folder: Path, draw: DrawScenes | None = None, *, resume: bool = False, cpu: bool = True, **changes: Any
) -> Trainer:
    return Trainer(small_config(**changes), folder, draw=draw, resume=resume, cpu=cpu, progress=False)


def random_scenes(num_scenes: int, num_views: int = 2, image_hw: tuple[int, int] = (28, 28), **_: Any) -> SceneBatch:
    """Numbers without geometry, but of the right kind: every pixel known, three tracks."""
    height, width = image_hw
    shape = (num_scenes, num_views)
    turns = torch.linalg.qr(torch.randn(*shape, 3, 3)).Q
    rotation = turns * torch.linalg.det(turns)[..., None, None]
    intrinsics = torch.tensor([[30.0, 0, width / 2], [0, 30.0, height / 2], [0, 0, 1]]).expand(*shape, 3, 3)
    coords = torch.rand(*shape, 3, 2) * (min(image_hw) - 1)
    return SceneBatch(
        torch.rand(*shape, 3, height, width),
        Cameras(torch.cat([rotation, torch.randn(*shape, 3, 1)], dim=-1), intrinsics),
        None,
        1 + torch.rand(*shape, height, width),
        None,
        torch.ones(*shape, height, width, dtype=torch.bool),
        TrackLabels(coords, torch.ones(*shape, 3, dtype=torch.bool), torch.ones(num_scenes, 3, dtype=torch.bool)),
    )


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.bare_model.state_dict().items()}


def is_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
