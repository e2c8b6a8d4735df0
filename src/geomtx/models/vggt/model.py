"""VGGT (Wang et al., CVPR 2025): cameras, depth, points and tracks of a scene in one pass."""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from geomtx.checkpoint.files import Checkpoint
from geomtx.checkpoint.key_table import KeyTable
from geomtx.models.published_model import StoredForm
from geomtx.models.saved_model import config_of_checkpoint, describe_model, open_vggt
from geomtx.models.scene_model import RunHead, SceneModel
from geomtx.models.vggt.config import HEAD_MODULES, VGGTConfig
from geomtx.models.vggt.keys import VGGT_KEYS, published_config
from geomtx.models.vggt.parts import build_camera_head, build_dense_head, build_encoder, build_track_head

__all__ = ["VGGT", "VGGTConfig"]


class VGGT(SceneModel):
    """An encoder and up to four heads, each usable alone, as in `model.camera_head(model.encoder(images))`.

    Args:
        config: Configuration of the model; `VGGTConfig()` is VGGT-1B, `VGGTConfig.tiny()` a model for tests.
    """

    def __init__(self, config: VGGTConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config)
        self.camera_head = build_camera_head(config) if "camera" in config.heads else None
        self.depth_head = build_dense_head(config, 1, "exp") if "depth" in config.heads else None
        self.point_head = build_dense_head(config, 3, "signed_expm1") if "points" in config.heads else None
        self.track_head = build_track_head(config) if "tracks" in config.heads else None
        self.extra_heads = nn.ModuleDict()

    def own_heads(self) -> dict[str, nn.Module]:
        """Return name → head of the model's own heads."""
        heads = {name: getattr(self, attribute, None) for name, attribute in HEAD_MODULES.items()}
        return {name: head for name, head in heads.items() if head is not None}

    def run_own_heads(self, run: RunHead, heads: tuple[str, ...]) -> dict[str, Any]:
        """Return field of `Predictions` → value, by those of the model's own heads that are among `heads`.

        Args:
            run: Function that runs a head, `run(name, head)`.
            heads: Names of heads, also of added ones.
        """
        fields: dict[str, Any] = {}
        for name, head in self.own_heads().items():
            if name not in heads:
                continue
            result = run(name, head)
            if name == "camera":
                fields |= {"cameras": result.cameras, "pose_encodings": result.pose_encodings}
            elif name == "tracks":
                fields |= {"tracks": result.tracks, "track_iterations": result.iterations}
            else:
                fields[name] = result
        return fields

    @classmethod
    def open_weights(cls, source: str | os.PathLike[str]) -> Checkpoint:
        """Open the weights of a VGGT; tensors have the model's names, see `Checkpoint.unwrapped`."""
        return open_vggt(source)

    @classmethod
    def config_of(cls, checkpoint: Checkpoint) -> VGGTConfig:
        """Return the stored configuration; else VGGT-1B's, with the heads that the checkpoint has tensors of."""
        return config_of_checkpoint(checkpoint)

    @staticmethod
    def keys_of(config: VGGTConfig) -> KeyTable:
        """Return the names of all parameters of a VGGT, published ↔ geomtx."""
        return VGGT_KEYS

    def stored_form(self) -> StoredForm:
        """Return the names and configurations under which the model is stored, added heads too."""
        ours = describe_model("VGGT", self.config.to_dict(), self.extra_heads)
        return StoredForm(VGGT_KEYS, ours, published_config(self.config))
