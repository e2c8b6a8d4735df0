"""Training of `VGGT`."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import torch
from torch import Tensor, nn

from geomtx.checkpoint.files import Checkpoint
from geomtx.checks import check_option
from geomtx.geometry.scene_frame import normalize_scene
from geomtx.heads.track import TrackHead
from geomtx.losses.multitask import MultitaskLoss
from geomtx.losses.reduce import select
from geomtx.metrics.evaluate import measure_depth, measure_poses
from geomtx.models.saved_model import added_heads, config_of_checkpoint, open_vggt
from geomtx.models.vggt import VGGT, VGGTConfig
from geomtx.models.vggt.config import HEADS
from geomtx.training.config import LossSection, ModelSection
from geomtx.training.prepare import build_loss
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

# In the log, by their names in `Evaluation`.
_POSES = {"auc_5": "auc@5", "auc_15": "auc@15", "auc_30": "auc@30"}
_DEPTH = {"depth_abs_rel": "abs_rel", "depth_delta": "delta_1.25"}


@dataclasses.dataclass(frozen=True)
class VggtTask:
    """All heads on a batch; queries are where the tracks are in view 0. See `Task`."""

    def build_model(self, section: ModelSection) -> VGGT:
        """With random weights, drawn from torch's global generator, or with those of a checkpoint, in float32."""
        return VGGT(section.model_config()) if section.weights is None else load_vggt(section)

    def rebuild_model(self, numbers: dict[str, Any]) -> VGGT:
        """The model of `VGGTConfig.to_dict`."""
        return VGGT(VGGTConfig.from_dict(numbers))

    def build_loss(self, section: LossSection) -> MultitaskLoss:
        """See `geomtx.training.prepare.build_loss`."""
        return build_loss(section)

    def prepare(self, batch: SceneBatch, *, training: bool = True) -> SceneBatch:
        """In the first camera's frame and the unit of the scene; tracks that begin in a later view are left out."""
        return leave_out_late_tracks(normalize_scene(batch)[0])

    def predict(self, model: nn.Module, batch: SceneBatch) -> Predictions:
        """Run all heads; see `queries_for`."""
        return model(batch.images, queries_for(model, batch))

    def score(self, outputs: Predictions, batch: SceneBatch) -> dict[str, Tensor]:
        """`score_cameras` and `score_depth`."""
        return score_cameras(outputs, batch) | score_depth(outputs, batch)


def load_vggt(section: ModelSection) -> VGGT:
    """The VGGT of `section.weights`, in float32, without heads that were added: a configuration has no losses of them.

    Raises:
        ValueError: For weights of something else, and for heads that they don't have.
    """
    assert section.weights is not None
    for head in section.heads or ():
        check_option("model.heads", head, HEADS)
    checkpoint = open_vggt(section.weights)
    numbers = config_of_checkpoint(checkpoint)
    if section.heads is None:
        leave_out_heads(checkpoint)
    return VGGT.from_pretrained(section.weights, heads=section.heads or numbers.heads, dtype=torch.float32)


def leave_out_heads(checkpoint: Checkpoint) -> dict[str, None]:
    """`extra_heads` of `from_pretrained` that leaves out what was added to a model; a warning says so."""
    added = added_heads(checkpoint)
    if added:
        logger.warning(
            "Added heads of model.weights are left out, as there are no losses of them: %s.", ", ".join(added)
        )
    return dict.fromkeys(added)


def leave_out_late_tracks(batch: SceneBatch) -> SceneBatch:
    """Without the tracks of videos that aren't seen in view 0, where VGGT's queries are."""
    if batch.tracks is None:
        return batch
    valid = batch.tracks.valid & batch.tracks.visible[:, 0]
    return batch._replace(tracks=batch.tracks._replace(valid=valid))


def queries_for(model: nn.Module, batch: SceneBatch) -> Tensor | None:
    """Where the tracks of a prepared batch are in view 0, (B, N, 2), for a VGGT or the one inside a model.

    Without tracks there are none and the head of tracks doesn't run, unless other processes wait for it: then it
    follows a pixel that no label is of.
    """
    if batch.tracks is not None:
        # An empty slot may hold anything.
        return select(batch.tracks.coords_px[:, 0], batch.tracks.valid[..., None])
    if model.training and _num_processes() > 1 and _trains_tracks(model):
        return batch.images.new_zeros(batch.images.shape[0], 1, 2)
    return None


def score_cameras(predictions: Predictions, batch: SceneBatch) -> dict[str, Tensor]:
    """Areas under the curve of pose errors, in 0 … 1, a scene each (B,), as in `geomtx.metrics.Evaluation`.

    Nothing where there are no cameras or no two views; NaN for a scene without two known cameras.
    """
    measured = measure_poses(predictions, batch)
    return {short: measured[name] for name, short in _POSES.items() if name in measured}


def score_depth(predictions: Predictions, batch: SceneBatch) -> dict[str, Tensor]:
    """Errors of depth with one scale a scene, (B,), as in `geomtx.metrics.Evaluation`; nothing without depth."""
    measured = measure_depth(predictions, batch)
    return {short: measured[name] for name, short in _DEPTH.items() if name in measured}


def _num_processes() -> int:
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _trains_tracks(model: nn.Module) -> bool:
    heads = [module for module in model.modules() if isinstance(module, TrackHead)]
    return any(parameter.requires_grad for head in heads for parameter in head.parameters())
