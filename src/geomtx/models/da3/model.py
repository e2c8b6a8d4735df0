"""Depth Anything 3 (Lin et al. 2025): cameras, depth and rays of a scene in one pass, or depth of single photos."""

from __future__ import annotations

import logging
import os
from typing import Any

from torch import Tensor, nn

from geomtx.checkpoint.files import Checkpoint
from geomtx.checkpoint.key_table import KeyTable
from geomtx.checks import check_shape
from geomtx.encoder.camera_encoder import to_first_camera
from geomtx.models.da3.config import DepthAnything3Config
from geomtx.models.da3.keys import GAUSSIANS, PREFIX, config_of, is_da3_name, keys_of, published_config
from geomtx.models.da3.parts import build_camera_encoder, build_camera_head, build_dense_head, build_encoder
from geomtx.models.published_model import StoredForm
from geomtx.models.saved_model import describe_model, open_as, parse_stored, published_name, stored_kind
from geomtx.models.scene_model import RunHead, SceneModel
from geomtx.types import Bool, Cameras, Float, Predictions

__all__ = ["DepthAnything3"]

logger = logging.getLogger("geomtx")


class DepthAnything3(SceneModel):
    """An encoder whose blocks begin to attend across views after the first few, a camera head, and a dense head.

    Models of many views predict cameras, depth and rays; models of single views depth and sky.

    Args:
        config: Configuration of the model; `DepthAnything3Config.small()` is DA3-SMALL, `.tiny()` a model for tests.
    """

    without_tracks = "Depth Anything 3"

    def __init__(self, config: DepthAnything3Config) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config)
        self.camera_encoder = None if config.first_global is None else build_camera_encoder(config)
        heads = config.heads or ()
        self.camera_head = build_camera_head(config) if "camera" in heads else None
        self.dense_head = build_dense_head(config) if set(heads) - {"camera"} else None
        self.extra_heads = nn.ModuleDict()

    def own_heads(self) -> dict[str, nn.Module]:
        """Return name → head of the model's own heads; maps that are computed together have the same one."""
        heads = {name: self.camera_head if name == "camera" else self.dense_head for name in self.config.heads}
        return {name: head for name, head in heads.items() if head is not None}

    def run_own_heads(self, run: RunHead, heads: tuple[str, ...]) -> dict[str, Any]:
        """Return field of `Predictions` → value, by those of the model's own heads that are among `heads`.

        Args:
            run: Function that runs a head, `run(name, head, **options)`. The maps of the dense head are computed
                together, under the first of their names.
            heads: Names of heads, also of added ones.
        """
        fields: dict[str, Any] = {}
        if self.camera_head is not None and "camera" in heads:
            found = run("camera", self.camera_head)
            fields |= {"cameras": found.cameras, "pose_encodings": found.pose_encodings}
        maps = [name for name in self.config.heads if name in heads and name != "camera"]
        if self.dense_head is not None and maps:
            fields |= run(maps[0], self.dense_head, maps=maps)
        return fields

    @property
    def takes_cameras(self) -> bool:
        """Whether `forward` takes known cameras of all views, as models of many views do."""
        return self.camera_encoder is not None

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
            query_points: Points to track by an added `TrackHead`, see `VGGT.forward`; None for a model without one.
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
        images, query_points, patch_mask, names, cameras = self.check_inputs(
            images, query_points, patch_mask, heads, cameras=cameras
        )
        known: dict[str, Tensor] = {}
        if cameras is not None:
            known["camera_tokens"] = self.encode_cameras(cameras, (images.shape[-2], images.shape[-1]))
        tokens = self.encoder(images, patch_mask=patch_mask, taps=self.taps_of(names), **known)
        return self.run_heads(lambda head: tokens, names, query_points)

    def encode_cameras(self, cameras: Cameras, image_hw: tuple[int, int]) -> Float[Tensor, "b s c"]:
        """Return the camera tokens of known cameras, (B, S, C).

        Args:
            cameras: Cameras of all views, as for `forward`, with the B axis.
            image_hw: Height and width in pixels of the images that the intrinsics belong to.
        """
        assert self.camera_encoder is not None, "check_inputs has passed"
        return self.camera_encoder(cameras._replace(cam_from_world=to_first_camera(cameras.cam_from_world)), image_hw)

    def check_inputs(
        self,
        images: Tensor,
        query_points: Tensor | None,
        patch_mask: Tensor | None,
        heads: tuple[str, ...] | None,
        *,
        cameras: Cameras | None = None,
    ) -> tuple[Any, ...]:
        """Return the arguments of `forward` with the B axis, the names of the heads that run in place of `heads`.

        Raises:
            ValueError: As `forward`.
        """
        images, *others = super().check_inputs(images, query_points, patch_mask, heads)
        return images, *others, None if cameras is None else self._check_cameras(cameras, images)

    def _check_cameras(self, cameras: Cameras, images: Tensor) -> Cameras:
        if self.camera_encoder is None:
            raise ValueError("cameras must be None for a model of single views, got some")
        if cameras.cam_from_world.ndim == 3:
            cameras = Cameras(*(each[None] for each in cameras))
        check_shape("cam_from_world", cameras.cam_from_world, (*images.shape[:2], 3, 4))
        check_shape("intrinsics", cameras.intrinsics, (*images.shape[:2], 3, 3))
        return cameras

    @classmethod
    def open_weights(cls, source: str | os.PathLike[str]) -> Checkpoint:
        """Open the weights of a Depth Anything 3, see `open_as`."""
        return open_as(source, "DepthAnything3", is_da3_name)

    @classmethod
    def config_of(cls, checkpoint: Checkpoint) -> DepthAnything3Config:
        """Return the stored configuration, else that of the published model of the same sizes."""
        name = published_name(checkpoint)
        if name is None or stored_kind(checkpoint) != "DepthAnything3":
            return parse_stored(checkpoint, "DepthAnything3", DepthAnything3Config.from_dict)
        return config_of(checkpoint.shapes, name, checkpoint.source)

    @staticmethod
    def keys_of(config: DepthAnything3Config) -> KeyTable:
        """Return the names of all parameters of a Depth Anything 3, published ↔ geomtx."""
        return keys_of(config)

    @classmethod
    def passed_over(cls, checkpoint: Checkpoint, config: DepthAnything3Config) -> list[str]:
        """Return prefixes of names: of Gaussians, which is said in the log, and of rays that the model leaves out."""
        prefixes, keys = [GAUSSIANS, PREFIX + GAUSSIANS], keys_of(config)
        if any(name.startswith(tuple(prefixes)) for name in checkpoint.shapes):
            logger.warning(
                "%s has a head of Gaussians, which geomtx doesn't have; it is passed over.", checkpoint.source
            )
        if "rays" not in (config.heads or ()):
            stored = checkpoint.shapes
            prefixes += [name for name in stored if (keys.to_geomtx(name) or name).startswith("dense_head.rays.")]
        return prefixes

    def stored_form(self) -> StoredForm:
        """Return the names and configurations under which the model is stored, added heads too."""
        ours = describe_model("DepthAnything3", self.config.to_dict(), self.extra_heads)
        return StoredForm(keys_of(self.config), ours, published_config(self.config))
