"""Depth Anything 3 (Lin et al. 2025): cameras, depth and rays of a scene in one pass, or depth of single photos."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from geomtx.checkpoint.files import Checkpoint, load_weights
from geomtx.checks import check_images, check_shape
from geomtx.encoder.camera_encoder import to_first_camera
from geomtx.heads.run import EachView, Gather, run_head
from geomtx.inference.quantize import QuantizedType, quantize_model
from geomtx.models.da3.config import DepthAnything3Config
from geomtx.models.da3.keys import GAUSSIANS, PREFIX, config_of, is_da3_name, keys_of, published_config
from geomtx.models.da3.parts import build_camera_encoder, build_camera_head, build_dense_head, build_encoder
from geomtx.models.published import open_weights, state_licence
from geomtx.models.published_model import PublishedModel, StoredForm
from geomtx.models.saved_model import describe_model, parse_stored, published_name, stored_kind
from geomtx.models.vggt.config import check_heads
from geomtx.types import Bool, Cameras, Float, Predictions, ProjectedTokens, Tokens

__all__ = ["DepthAnything3"]

logger = logging.getLogger("geomtx")


class DepthAnything3(PublishedModel):
    """An encoder whose blocks begin to attend across views after the first few, a camera head, and a dense head.

    Models of many views predict cameras, depth and rays; models of single views depth and sky.

    Args:
        config: Configuration of the model; `DepthAnything3Config.small()` is DA3-SMALL, `.tiny()` a model for tests.
    """

    def __init__(self, config: DepthAnything3Config) -> None:
        super().__init__()
        self.config = config
        heads = config.heads or ()
        self.encoder = build_encoder(config)
        self.camera_encoder = None if config.first_global is None else build_camera_encoder(config)
        self.camera_head = build_camera_head(config) if "camera" in heads else None
        self.dense_head = build_dense_head(config) if set(heads) - {"camera"} else None

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads of this model."""
        return self.config.heads or ()

    def forward(
        self,
        images: Float[Tensor, "*batch s 3 h w"],
        query_points: Tensor | None = None,
        patch_mask: Bool[Tensor, "*batch s rows columns"] | None = None,
        *,
        heads: tuple[str, ...] | None = None,
        cameras: Cameras | None = None,
    ) -> Predictions:
        """Predict; differentiable.

        `geomtx.inference.predict` gives the same result, up to rounding, with less memory, on several processes or
        compiled.

        Args:
            images: Images in [0, 1], (B, S, 3, H, W), or (S, 3, H, W) for one scene; sides are multiples of the patch
                size. The model chooses the view that it takes for the reference, see `DepthAnything3Config.reference`;
                the world is about that view's camera.
            query_points: None, as the model tracks no points.
            patch_mask: Mask of the valid patches, (B, S, H/patch, W/patch) bool; without the B axis for one scene.
                Defaults to all.
            heads: Names of the heads to run; defaults to all that the model has.
            cameras: Known cameras of all views, (B, S, 3, 4) and (B, S, 3, 3) in pixels of the images, in any frame and
                unit; without the B axis for one scene. They help the model, which still predicts cameras and depth in a
                frame and a unit of its own. Defaults to none.

        Returns:
            `Predictions`, always with the B axis, in float32 or better; lengths are up to scale.

        Raises:
            ValueError: For wrong shapes, a head that the model doesn't have, query points, and cameras for a model of
                single views.
        """
        images, _, patch_mask, heads, cameras = self.check_inputs(
            images, query_points, patch_mask, heads, cameras=cameras
        )
        known: dict[str, Tensor] = {}
        if cameras is not None:
            known["camera_tokens"] = self.encode_cameras(cameras, (images.shape[-2], images.shape[-1]))
        tokens = self.encoder(images, patch_mask=patch_mask, taps=self.taps_of(heads), **known)
        return self.run_heads(lambda head: tokens, heads)

    def encode_cameras(self, cameras: Cameras, image_hw: tuple[int, int]) -> Float[Tensor, "b s c"]:
        """Return the camera tokens of known cameras, (B, S, C).

        Args:
            cameras: Cameras of all views, as for `forward`, with the B axis.
            image_hw: Height and width in pixels of the images that the intrinsics belong to.
        """
        assert self.camera_encoder is not None, "check_inputs has passed"
        return self.camera_encoder(cameras._replace(cam_from_world=to_first_camera(cameras.cam_from_world)), image_hw)

    def run_heads(
        self,
        read: Callable[[str], Tokens | ProjectedTokens],
        heads: tuple[str, ...],
        query_points: Tensor | None = None,
        *,
        each_view: EachView | None = None,
        gather: Gather | None = None,
    ) -> Predictions:
        """Run heads on what an encoder gave.

        Args:
            read: Function from the name of a head to what it reads. The maps of the dense head are computed together,
                from what is read under the first of their names.
            heads: Names of the heads to run.
            query_points: None, as the model tracks no points.
            each_view: Function that applies a function of single views, `each_view(function, tokens)`; defaults to one
                call with all views.
            gather: Brings the views of all processes together along axis 1; defaults to the identity.
        """
        fields: dict[str, Any] = {}
        if self.camera_head is not None and "camera" in heads:
            result = run_head(self.camera_head, read("camera"), None, each_view=each_view, gather=gather)
            fields |= {"cameras": result.cameras, "pose_encodings": result.pose_encodings}
        maps = [name for name in self.heads if name in heads and name != "camera"]
        if self.dense_head is not None and maps:
            tokens = read(maps[0])
            fields |= run_head(self.dense_head, tokens, None, each_view=each_view, gather=gather, maps=maps)
        return Predictions(**fields)

    def head_modules(self) -> dict[str, nn.Module]:
        """Return name → head of all heads; maps that are computed together have the same one."""
        modules = {name: self.camera_head if name == "camera" else self.dense_head for name in self.heads}
        return {name: module for name, module in modules.items() if module is not None}

    def taps_of(self, heads: tuple[str, ...]) -> tuple[int, ...]:
        """Return the layers that some heads read: all taps, or the last one for the camera head alone."""
        return self.encoder.taps if set(heads) - {"camera"} else self.encoder.taps[-1:]

    def check_inputs(
        self,
        images: Tensor,
        query_points: Tensor | None,
        patch_mask: Tensor | None,
        heads: tuple[str, ...] | None,
        *,
        cameras: Cameras | None = None,
    ) -> tuple[Tensor, None, Tensor | None, tuple[str, ...], Cameras | None]:
        """Return the arguments of `forward` with the B axis, and the names of the heads that run.

        Raises:
            ValueError: As `forward`.
        """
        if query_points is not None:
            raise ValueError("query_points must be None, as Depth Anything 3 tracks no points, got some")
        if heads is not None:
            check_heads(heads, self.heads)
        check_images("images", images)
        images = images[None] if images.ndim == 4 else images
        if patch_mask is not None and patch_mask.ndim == 3:
            patch_mask = patch_mask[None]
        if cameras is not None:
            cameras = self._check_cameras(cameras, images)
        return images, None, patch_mask, self.heads if heads is None else heads, cameras

    def _check_cameras(self, cameras: Cameras, images: Tensor) -> Cameras:
        if self.camera_encoder is None:
            raise ValueError("cameras must be None for a model of single views, got some")
        if cameras.cam_from_world.ndim == 3:
            cameras = Cameras(*(each[None] for each in cameras))
        check_shape("cam_from_world", cameras.cam_from_world, (*images.shape[:2], 3, 4))
        check_shape("intrinsics", cameras.intrinsics, (*images.shape[:2], 3, 3))
        return cameras

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        heads: tuple[str, ...] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        config: DepthAnything3Config | None = None,
        quantize: QuantizedType | None = None,
    ) -> DepthAnything3:
        """Load weights, strictly; in evaluation mode.

        Args:
            source: A hub id ("depth-anything/DA3-SMALL"); a folder (`model.safetensors`, with or without
                `config.json`); or a file; with published or geomtx names.
            heads: Names of the heads to build and load; defaults to all that the checkpoint has.
            device: Device of the parameters; defaults to the CPU.
            dtype: Dtype of all parameters; defaults to that in the file.
            config: Overrides the configuration found beside or within the weights, or told by their sizes.
            quantize: Format of the blocks' weights, "int8" or "fp8", see `geomtx.quantize_model`; defaults to none.

        Raises:
            ValueError: For missing, unexpected or misshapen tensors (the first ten are listed), a broken file, weights
                of another family; and as `geomtx.quantize_model`.
            ImportError: For quantised weights without torchao.
            FileNotFoundError: If the source is no file and not to be had from the hub.
        """
        checkpoint = _open(source)
        numbers = _config_of_checkpoint(checkpoint) if config is None else config
        if heads is not None:
            check_heads(heads, numbers.heads or ())
            numbers = dataclasses.replace(numbers, heads=tuple(head for head in numbers.heads or () if head in heads))
        keys = keys_of(numbers)
        ignored = [GAUSSIANS, PREFIX + GAUSSIANS]
        if any(name.startswith(tuple(ignored)) for name in checkpoint.shapes):
            logger.warning("%s has a head of Gaussians, which geomtx doesn't have; it is passed over.", source)
        if "rays" not in (numbers.heads or ()):
            ours = {name: keys.to_geomtx(name) or name for name in checkpoint.shapes}
            ignored += [name for name, own in ours.items() if own.startswith("dense_head.rays.")]
        parts = ("camera_head", "dense_head", "camera_encoder")
        model = load_weights(
            checkpoint, lambda: cls(numbers), keys, device=device, dtype=dtype, ignored=ignored, parts=parts
        )
        state_licence(checkpoint.source)
        return model if quantize is None else quantize_model(model, quantize)

    @staticmethod
    def read_config(source: str | os.PathLike[str]) -> DepthAnything3Config:
        """The configuration of weights, without loading them; arguments and errors as in `from_pretrained`."""
        return _config_of_checkpoint(_open(source))

    def stored_form(self) -> StoredForm:
        """Return the names and configurations under which the model is stored."""
        ours = describe_model("DepthAnything3", self.config.to_dict())
        return StoredForm(keys_of(self.config), ours, published_config(self.config))


def _open(source: str | os.PathLike[str]) -> Checkpoint:
    """Open weights; tensors have the names of a model, see `Checkpoint.unwrapped`."""
    return open_weights(source).unwrapped(is_da3_name)


def _config_of_checkpoint(checkpoint: Checkpoint) -> DepthAnything3Config:
    """Return the stored configuration, else that of the published model of the same sizes."""
    name = published_name(checkpoint)
    if name is None or stored_kind(checkpoint) != "DepthAnything3":
        return parse_stored(checkpoint, "DepthAnything3", DepthAnything3Config.from_dict)
    return config_of(checkpoint.shapes, name, checkpoint.source)
