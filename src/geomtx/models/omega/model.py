"""VGGT-Omega: cameras and depth of a scene in one pass, and its embedding in a space of texts."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor, nn

from geomtx.checkpoint.files import Checkpoint
from geomtx.checkpoint.key_table import KeyTable
from geomtx.inference.engine import predict
from geomtx.layers.attention import MaskedBiasLinear
from geomtx.layers.rope import GridRotary
from geomtx.models.omega.config import VGGTOmegaConfig
from geomtx.models.omega.keys import HEAD_MODULES, OMEGA_KEYS, config_of
from geomtx.models.omega.parts import build_camera_head, build_depth_head, build_encoder, build_text_head
from geomtx.models.published_model import StoredForm
from geomtx.models.saved_model import describe_model, open_as, parse_stored, published_name, stored_kind
from geomtx.models.scene_model import RunHead, SceneModel
from geomtx.types import Bool, Float

__all__ = ["VGGTOmega"]


class VGGTOmega(SceneModel):
    """An encoder whose blocks across views are partly among special tokens alone, and up to three heads.

    Args:
        config: Configuration of the model; `VGGTOmegaConfig()` is the published one for 512 pixels,
            `VGGTOmegaConfig.tiny()` a model for tests.
    """

    own_frame = True
    without_tracks = "VGGT-Omega"

    def __init__(self, config: VGGTOmegaConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config)
        self.camera_head = build_camera_head(config) if "camera" in config.heads else None
        self.depth_head = build_depth_head(config) if "depth" in config.heads else None
        self.text_head = build_text_head(config) if "text" in config.heads else None
        self.extra_heads = nn.ModuleDict()

    def own_heads(self) -> dict[str, nn.Module]:
        """Return name → head of the model's own heads."""
        return {name: getattr(self, HEAD_MODULES[name]) for name in self.config.heads}

    def run_own_heads(self, run: RunHead, heads: tuple[str, ...]) -> dict[str, Any]:
        """Return field of `Predictions` → value, by those of the model's own heads that are among `heads`.

        Args:
            run: Function that runs a head, `run(name, head)`.
            heads: Names of heads, also of added ones.
        """
        found = {name: run(name, head) for name, head in self.own_heads().items() if name in heads}
        fields: dict[str, Any] = {"depth": found["depth"]} if "depth" in found else {}
        if "camera" in found:
            fields |= found["camera"]._asdict()
        if "text" in found:
            fields["scene_embedding"] = found["text"].embedding
        return fields

    def scene_embedding(
        self,
        images: Float[Tensor, "*batch s 3 h w"],
        patch_mask: Bool[Tensor, "*batch s rows columns"] | None = None,
        **options: Any,
    ) -> Float[Tensor, "b d"]:
        """Embed scenes: one vector of unit length for all views of a scene together; differentiable.

        The product of two vectors says how alike two scenes are. The published weights were aligned with a model of
        texts that was not published with them.

        Args:
            images: Images, see `forward`.
            patch_mask: Mask of the valid patches, see `forward`.
            options: `plan`, `approximation` and `recompute`, as for `geomtx.inference.predict`.

        Returns:
            Embeddings, (B, text_dim), in float32 or better.

        Raises:
            ValueError: For a model without the head "text", and as `forward`.
        """
        found = predict(self, images, None, patch_mask, heads=("text",), **options).scene_embedding
        assert found is not None, "the head ran"
        return found

    @classmethod
    def open_weights(cls, source: str | os.PathLike[str]) -> Checkpoint:
        """Open the weights of a VGGT-Omega, see `open_as`."""
        return open_as(source, "VGGTOmega", OMEGA_KEYS.__contains__)

    @classmethod
    def config_of(cls, checkpoint: Checkpoint) -> VGGTOmegaConfig:
        """Return the stored configuration, else that of the published weights of the same names and sizes."""
        if published_name(checkpoint) is None or stored_kind(checkpoint) != "VGGTOmega":
            return parse_stored(checkpoint, "VGGTOmega", VGGTOmegaConfig.from_dict)
        return config_of(checkpoint.shapes, checkpoint.source)

    @staticmethod
    def keys_of(config: VGGTOmegaConfig) -> KeyTable:
        """Return the names of all parameters and tables of a VGGT-Omega, published ↔ geomtx."""
        return OMEGA_KEYS

    def check_values(self, source: str) -> None:
        """Require masks of zeros and ones and positive periods: without them every output would be wrong or NaN.

        Args:
            source: Name of the weights, for the error.

        Raises:
            ValueError: For other values.
        """
        for name, module in self.named_modules():
            if isinstance(module, MaskedBiasLinear) and not ((module.bias_mask == 0) | (module.bias_mask == 1)).all():
                raise ValueError(f"{name}.bias_mask of {source} must be of zeros and ones, got other numbers")
            if isinstance(module, GridRotary) and not (module.periods.isfinite() & (module.periods > 0)).all():
                raise ValueError(f"{name}.periods of {source} must be positive, got other numbers")

    def stored_form(self) -> StoredForm:
        """Return the names and configurations under which the model is stored, added heads too."""
        ours = describe_model("VGGTOmega", self.config.to_dict(), self.extra_heads)
        return StoredForm(OMEGA_KEYS, ours, {})  # beside published files there is no configuration
