"""Training of `DepthAnything3` models of many views, from published weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from geomtx.models.da3 import DepthAnything3, DepthAnything3Config
from geomtx.training.config import ModelSection
from geomtx.training.tasks.running import PLAIN, RunOptions, run_vggt
from geomtx.training.tasks.task import starting_from
from geomtx.training.tasks.vggt import VggtTask
from geomtx.types import Predictions, SceneBatch

__all__ = ["DepthAnythingTask"]


@dataclasses.dataclass(frozen=True)
class DepthAnythingTask(VggtTask):
    """Cameras and depth of a Depth Anything 3 of many views on a batch. See `Task`.

    The reference view is the first, whose camera is the labels' world, and stays so in the weights that are written.
    The encoder of known cameras is kept as it is; rays, which have no loss, are left out of the model.
    """

    def build_model(self, section: ModelSection) -> DepthAnything3:  # type: ignore[override]
        """Build the model in float32 with the weights of the section.

        Raises:
            ValueError: Without weights, for those of a model of single views, and as `DepthAnything3.from_pretrained`.
        """
        if section.weights is None:
            raise ValueError("model.weights must be given where model.kind is 'depth_anything', got none")
        with starting_from(section):
            config = DepthAnything3.read_config(section.weights)
            if config.first_global is None:
                raise ValueError(f"weights must be of a model of many views, got '{section.weights}' of single views")
            config = dataclasses.replace(config, reference="first")
            heads = ("camera", "depth") if section.heads is None else section.heads
            model = DepthAnything3.from_pretrained(section.weights, config=config, heads=heads, dtype=torch.float32)
        return _keep_camera_encoder(model)

    def rebuild_model(self, numbers: dict[str, Any]) -> DepthAnything3:  # type: ignore[override]
        """Build the model of `DepthAnything3Config.to_dict()`."""
        return _keep_camera_encoder(DepthAnything3(DepthAnything3Config.from_dict(numbers)))

    def predict(self, model: nn.Module, batch: SceneBatch, options: RunOptions = PLAIN) -> Predictions:
        """Run all heads; there are no query points."""
        if options == PLAIN:
            return model(batch.images)
        assert isinstance(model, DepthAnything3), "options are for the model itself"
        return run_vggt(model, batch.images, None, options)


def _keep_camera_encoder(model: DepthAnything3) -> DepthAnything3:
    """Without known cameras nothing depends on it, and processes would wait for its gradients."""
    if model.camera_encoder is not None:
        model.camera_encoder.requires_grad_(False)
    return model
