"""Training of `VGGT`."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import torch
from torch import Tensor, nn

from geomtx.checkpoint.files import Checkpoint
from geomtx.geometry.scene_frame import normalize_scene
from geomtx.heads.track import TrackHead
from geomtx.losses.multitask import MultitaskLoss
from geomtx.losses.reduce import select
from geomtx.metrics.evaluate import measure_depth, measure_poses
from geomtx.models.saved_model import added_heads, config_of_checkpoint, open_vggt
from geomtx.models.vggt.config import VGGTConfig
from geomtx.models.vggt.model import VGGT
from geomtx.training.config import LossSection, ModelSection
from geomtx.training.prepare import build_loss
from geomtx.training.tasks.running import PLAIN, RunOptions, run_vggt
from geomtx.training.tasks.task import starting_from
from geomtx.types import Predictions, SceneBatch

__all__ = [
    "VggtTask",
    "leave_out_heads",
    "leave_out_late_tracks",
    "load_vggt",
    "queries_for",
    "score_cameras",
    "score_depth",
]

logger = logging.getLogger("geomtx")

# Name in the log → name in `geomtx.metrics.Evaluation`.
_POSES = {"auc@5": "auc_5", "auc@15": "auc_15", "auc@30": "auc_30"}
_DEPTH = {"abs_rel": "depth_abs_rel", "delta_1.25": "depth_delta"}


@dataclasses.dataclass(frozen=True)
class VggtTask:
    """All heads of a VGGT on a batch; tracks are queried at their positions in view 0. See `Task`."""

    def build_model(self, section: ModelSection) -> VGGT:
        """Build the model in float32, with random weights or with those of `section.weights`."""
        if section.weights is None:
            return VGGT(section.model_config())
        with starting_from(section):
            return load_vggt(section)

    def rebuild_model(self, numbers: dict[str, Any]) -> VGGT:
        """Build the model of `VGGTConfig.to_dict()`."""
        return VGGT(VGGTConfig.from_dict(numbers))

    def build_loss(self, section: LossSection) -> MultitaskLoss:
        """Return the loss of the configuration."""
        return build_loss(section)

    def prepare(self, batch: SceneBatch, *, training: bool = True) -> SceneBatch:
        """Return scenes in the frame of the first camera and in their own unit, without tracks that begin later."""
        return leave_out_late_tracks(normalize_scene(batch)[0])

    def predict(self, model: nn.Module, batch: SceneBatch, options: RunOptions = PLAIN) -> Predictions:
        """Run all heads, with the queries of `queries_for`."""
        queries = queries_for(model, batch)
        if options == PLAIN:
            return model(batch.images, queries)
        assert isinstance(model, VGGT), "options are for the model itself"
        return run_vggt(model, batch.images, queries, options)

    def score(self, outputs: Predictions, batch: SceneBatch) -> dict[str, Tensor]:
        """Return the scores of `score_cameras` and `score_depth`."""
        return score_cameras(outputs, batch) | score_depth(outputs, batch)


def load_vggt(section: ModelSection) -> VGGT:
    """Load the VGGT of `section.weights` in float32, without added heads, which a configuration has no losses for.

    Raises:
        ValueError: For weights of something else, and for heads that they don't have.
    """
    assert section.weights is not None
    checkpoint = open_vggt(section.weights)
    numbers = config_of_checkpoint(checkpoint)
    if section.heads is None:
        leave_out_heads(checkpoint)
    return VGGT.from_pretrained(section.weights, heads=section.heads or numbers.heads, dtype=torch.float32)


def leave_out_heads(checkpoint: Checkpoint) -> dict[str, None]:
    """Return `extra_heads` for `from_pretrained` that leave out the added heads of a checkpoint, with a warning."""
    added = added_heads(checkpoint.shapes)
    if added:
        logger.warning(
            "Added heads of model.weights are left out, as the configuration has no losses for them: %s.",
            ", ".join(added),
        )
    return dict.fromkeys(added)


def leave_out_late_tracks(batch: SceneBatch) -> SceneBatch:
    """Mask the tracks that are not visible in view 0, where VGGT's queries are."""
    if batch.tracks is None:
        return batch
    valid = batch.tracks.valid & batch.tracks.visible[:, 0]
    return batch._replace(tracks=batch.tracks._replace(valid=valid))


def queries_for(model: nn.Module, batch: SceneBatch) -> Tensor | None:
    """Return the positions of the tracks in view 0, (B, N, 2), for a VGGT or the one inside a model.

    Without tracks there are none, and the head of tracks doesn't run. Where other processes wait for its gradients, it
    runs nevertheless, from a pixel that has no label.
    """
    if batch.tracks is not None:
        # An empty slot may hold anything.
        return select(batch.tracks.coords_px[:, 0], batch.tracks.valid[..., None])
    if model.training and _num_processes() > 1 and _trains_tracks(model):
        return batch.images.new_zeros(batch.images.shape[0], 1, 2)
    return None


def score_cameras(predictions: Predictions, batch: SceneBatch) -> dict[str, Tensor]:
    """Return areas under the curve of pose errors, in 0 … 1, (B,), as in `geomtx.metrics.Evaluation`.

    There are none without cameras or with one view; a scene without two known cameras has NaN.
    """
    measured = measure_poses(predictions, batch)
    return {name: measured[field] for name, field in _POSES.items() if field in measured}


def score_depth(predictions: Predictions, batch: SceneBatch) -> dict[str, Tensor]:
    """Return errors of depth aligned by one scale a scene, (B,), as in `geomtx.metrics.Evaluation`, if it is known."""
    measured = measure_depth(predictions, batch)
    return {name: measured[field] for name, field in _DEPTH.items() if field in measured}


def _num_processes() -> int:
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _trains_tracks(model: nn.Module) -> bool:
    heads = [module for module in model.modules() if isinstance(module, TrackHead)]
    return any(parameter.requires_grad for head in heads for parameter in head.parameters())
