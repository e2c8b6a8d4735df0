"""VGGT (Wang et al., CVPR 2025): cameras, depth, points and tracks of a scene in one pass."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from geomtx.inference.quantize import QuantizedType
from geomtx.models.published import EMBEDDED
from geomtx.models.published_model import StoredForm
from geomtx.models.saved_model import HeadSource, config_of_checkpoint, describe_model, open_vggt
from geomtx.models.scene_model import LoadOptions, RunHead, SceneModel
from geomtx.models.vggt.config import HEAD_MODULES, VGGTConfig
from geomtx.models.vggt.keys import VGGT_KEYS, published_config
from geomtx.models.vggt.parts import build_camera_head, build_dense_head, build_encoder, build_track_head
from geomtx.types import Bool, Float, Predictions

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

    def forward(
        self,
        images: Float[Tensor, "*batch s 3 h w"],
        query_points: Tensor | None = None,
        patch_mask: Bool[Tensor, "*batch s rows columns"] | None = None,
        *,
        heads: tuple[str, ...] | None = None,
    ) -> Predictions:
        """Predict; differentiable.

        `geomtx.inference.predict` gives the same result, up to rounding, with less memory, on several processes or
        compiled.

        Args:
            images: Images in [0, 1], (B, S, 3, H, W), or (S, 3, H, W) for one scene; sides are multiples of the patch
                size. The first view is the reference: its camera is the world.
            query_points: Points to track, (B, N, 2) as (x, y) in pixels of view 0, or (B, N, 3) as (view, x, y);
                without the B axis for one scene. Defaults to none; then there are no tracks.
            patch_mask: Mask of the valid patches, (B, S, H/patch, W/patch) bool; without the B axis for one scene.
                Defaults to all.
            heads: Names of the heads to run; defaults to all that the model has.

        Returns:
            `Predictions`, always with the B axis, in float32 or better; lengths are up to scale.

        Raises:
            ValueError: For wrong shapes, a head that the model doesn't have, images too small for tracks, and query
                points outside their view. Values on an accelerator are not checked, which would make the host wait;
                `geomtx.reconstruct` checks them, and the images' too.
        """
        images, query_points, patch_mask, heads = self.check_inputs(images, query_points, patch_mask, heads)
        tokens = self.encoder(images, patch_mask=patch_mask, taps=self.taps_of(heads))
        return self.run_heads(lambda head: tokens, heads, query_points)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        heads: tuple[str, ...] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        config: VGGTConfig | None = None,
        quantize: QuantizedType | None = None,
        extra_heads: Mapping[str, HeadSource] | None = None,
    ) -> VGGT:
        """Load weights, strictly; in evaluation mode.

        Args:
            source: "nano", the small model that comes with geomtx; a hub id ("facebook/VGGT-1B"); a folder
                (`model.safetensors`, sharded or not, with or without `config.json`); or a .safetensors, .pt, .pth,
                .bin or .ckpt file; with published or geomtx names.
            heads: Names of the heads to build and load; defaults to all that the checkpoint has.
            device: Device of the parameters; defaults to the CPU.
            dtype: Dtype of all parameters; defaults to that in the file, for "nano" to float32.
            config: Overrides the configuration found beside or within the weights. Without either it is VGGT-1B's.
            quantize: Format of the blocks' weights, "int8" or "fp8", see `geomtx.quantize_model`; defaults to none.
            extra_heads: The added heads that the weights are for, by name: a module, which is filled, or a function
                from the `VGGTConfig` to one; None leaves a head out. A `DenseHead` or `RGBHead` need not be given.

        Raises:
            ValueError: For missing, unexpected or misshapen tensors (the first ten are listed), a broken file, a
                pickle with code in it, an added head that has to be given; and as `geomtx.quantize_model`.
            ImportError: For quantised weights without torchao.
            FileNotFoundError: If the source is no file and not to be had from the hub.
        """
        checkpoint = open_vggt(source)
        if source in EMBEDDED and dtype is None:
            dtype = torch.float32
        numbers = config_of_checkpoint(checkpoint) if config is None else config
        options = LoadOptions(heads, device, dtype, quantize, extra_heads)
        return cls.load_checkpoint(checkpoint, numbers, lambda _: VGGT_KEYS, options)

    @staticmethod
    def read_config(source: str | os.PathLike[str]) -> VGGTConfig:
        """The configuration of weights, without loading them; arguments and errors as in `from_pretrained`."""
        return config_of_checkpoint(open_vggt(source))

    def stored_form(self) -> StoredForm:
        """Return the names and configurations under which the model is stored, added heads too."""
        ours = describe_model("VGGT", self.config.to_dict(), self.extra_heads)
        return StoredForm(VGGT_KEYS, ours, published_config(self.config))
