"""Pi3 and Pi3X (Wang et al. 2025): points, cameras and confidence of a scene in one pass, without a reference view."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor, nn

from geomtx.checkpoint.files import Checkpoint
from geomtx.checkpoint.key_table import KeyTable
from geomtx.encoder.geometry_conditioning import GeometryHints, KnownGeometry, check_geometry, prepare_geometry
from geomtx.inference.chunks import map_chunks
from geomtx.models.pi3.config import Pi3Config
from geomtx.models.pi3.keys import config_of, is_pi3_name, keys_of
from geomtx.models.pi3.parts import build_conditioning, build_encoder, build_metric_head, build_point_head
from geomtx.models.published_model import StoredForm
from geomtx.models.saved_model import describe_model, open_as, parse_stored, published_name, stored_kind
from geomtx.models.scene_model import RunHead, SceneModel
from geomtx.types import Bool, Cameras, Float, Predictions

__all__ = ["Pi3"]


class Pi3(SceneModel):
    """An encoder in which all views are equal, and a head of points, confidence and camera of each view.

    With `Pi3Config.pi3x()` it is Pi3X, which takes known depth, intrinsics and poses, and predicts the metric scale.

    Args:
        config: Configuration of the model; `Pi3Config()` is Pi3, `.pi3x()` Pi3X, `.tiny()` a model for tests.
    """

    without_tracks = "Pi3"

    def __init__(self, config: Pi3Config) -> None:
        super().__init__()
        self.config = config
        heads = config.heads or ()
        self.encoder = build_encoder(config)
        self.conditioning = build_conditioning(config) if config.known_geometry else None
        self.point_head = build_point_head(config) if set(heads) - {"metric"} else None
        self.metric_head = build_metric_head(config) if "metric" in heads else None
        self.extra_heads = nn.ModuleDict()

    @property
    def takes_cameras(self) -> bool:
        """Whether `forward` takes known cameras, as a Pi3X does."""
        return self.conditioning is not None

    def own_heads(self) -> dict[str, nn.Module]:
        """Return name → head of the model's own heads; what is computed together has the same one."""
        heads = {name: self.metric_head if name == "metric" else self.point_head for name in self.config.heads or ()}
        return {name: head for name, head in heads.items() if head is not None}

    def run_own_heads(self, run: RunHead, heads: tuple[str, ...]) -> dict[str, Any]:
        """Return field of `Predictions` → value, by those of the model's own heads that are among `heads`.

        Args:
            run: Function that runs a head, `run(name, head, **options)`. Points, depth and cameras are computed
                together, under the first of their names.
            heads: Names of heads, also of added ones.
        """
        fields: dict[str, Any] = {}
        if self.metric_head is not None and "metric" in heads:
            fields["metric_scale"] = run("metric", self.metric_head)
        maps = [name for name in self.config.heads or () if name in heads and name != "metric"]
        if self.point_head is not None and maps:
            fields |= run(maps[0], self.point_head, maps=maps, scale=fields.get("metric_scale"))
        return fields

    def forward(
        self,
        images: Float[Tensor, "*batch s 3 h w"],
        query_points: Tensor | None = None,
        patch_mask: Bool[Tensor, "*batch s rows columns"] | None = None,
        *,
        heads: tuple[str, ...] | None = None,
        cameras: Cameras | KnownGeometry | None = None,
    ) -> Predictions:
        """Predict; differentiable.

        `geomtx.inference.predict` gives the same result, up to rounding, with less memory, on several processes or
        compiled.

        Args:
            images: Images in [0, 1], (B, S, 3, H, W), or (S, 3, H, W) for one scene; sides are multiples of the patch
                size. The order of the views has no influence on what is predicted for each.
            query_points: Points to track by an added `TrackHead`, see `VGGT.forward`; None for a model without one.
            patch_mask: Mask of the valid patches, (B, S, H/patch, W/patch) bool; without the B axis for one scene.
                Defaults to all.
            heads: Names of the heads to run; defaults to all that the model has. Without "metric" a Pi3X predicts in a
                unit of its own.
            cameras: Known cameras of all views, (B, S, 3, 4) and (B, S, 3, 3) in pixels of the images; or what else is
                known of some views: depth, intrinsics or poses. For Pi3X, which takes them as hints, and still predicts
                all in a frame of its own. Without the B axis for one scene. Defaults to nothing.

        Returns:
            `Predictions`, always with the B axis, in float32 or better: depth, points in each view's camera and in the
            world, and cameras, whose world is a frame that all views of the scene share, not that of a view. Lengths
            are in metres where "metric" runs, otherwise up to scale.

        Raises:
            ValueError: For wrong shapes, a head that the model doesn't have, query points, and known geometry for a
                model that takes none.
        """
        images, query_points, patch_mask, names, known = self.check_inputs(
            images, query_points, patch_mask, heads, cameras=cameras
        )
        image_hw = (images.shape[-2], images.shape[-1])
        given = {} if known is None else self.condition(prepare_geometry(known), image_hw, patch_mask)
        tokens = self.encoder(images, patch_mask=patch_mask, taps=self.taps_of(names), **given)
        return self.run_heads(lambda head: tokens, names, query_points)

    def condition(
        self,
        hints: GeometryHints,
        image_hw: tuple[int, int],
        patch_mask: Tensor | None = None,
        view_chunk: int | None = None,
    ) -> dict[str, Any]:
        """Return what the encoder is given of the known geometry of some views.

        Args:
            hints: Known geometry of these views, see `prepare_geometry`, on any device.
            image_hw: Height and width of the images in pixels.
            patch_mask: Mask of the valid patches of these views; defaults to all.
            view_chunk: Number of views that are embedded at a time; defaults to all.
        """
        conditioning = self.conditioning
        assert conditioning is not None, "check_inputs has passed"
        device = conditioning.depth_token.device
        given: dict[str, Any] = {}
        if hints.poses is not None and hints.pose_mask is not None:
            given["poses"] = (hints.poses.to(device), hints.pose_mask.to(device))
        of_pixels = hints.depth if hints.intrinsics is None else hints.intrinsics
        if of_pixels is None:
            return given

        def embed(part: slice) -> Tensor:
            mask = None if patch_mask is None else patch_mask[:, part]
            shift: Tensor | None = conditioning(hints.take_views(part).to(device), image_hw, mask)
            assert shift is not None, "there are depth or intrinsics"
            return shift

        num_scenes, num_views = of_pixels.shape[:2]
        chunk = None if view_chunk is None else max(1, view_chunk // num_scenes)
        given["patch_shift"] = map_chunks(embed, num_views, chunk, dim=1)
        return given

    def check_inputs(
        self,
        images: Tensor,
        query_points: Tensor | None,
        patch_mask: Tensor | None,
        heads: tuple[str, ...] | None,
        *,
        cameras: Cameras | KnownGeometry | None = None,
    ) -> tuple[Any, ...]:
        """Return the arguments of `forward` with the B axis, the names of the heads that run in place of `heads`.

        Raises:
            ValueError: As `forward`.
        """
        if cameras is not None and self.conditioning is None:
            raise ValueError("cameras must be None for a Pi3, which takes no known geometry as a Pi3X does, got some")
        images, *others = super().check_inputs(images, query_points, patch_mask, heads)
        known = KnownGeometry(*cameras) if isinstance(cameras, Cameras) else cameras
        return images, *others, None if known is None else check_geometry(known, images)

    @classmethod
    def open_weights(cls, source: str | os.PathLike[str]) -> Checkpoint:
        """Open the weights of a Pi3, see `open_as`."""
        return open_as(source, "Pi3", is_pi3_name)

    @classmethod
    def config_of(cls, checkpoint: Checkpoint) -> Pi3Config:
        """Return the stored configuration, else that of the published model of the same names."""
        if published_name(checkpoint) is None or stored_kind(checkpoint) != "Pi3":
            return parse_stored(checkpoint, "Pi3", Pi3Config.from_dict)
        return config_of(checkpoint.shapes, checkpoint.source)

    @staticmethod
    def keys_of(config: Pi3Config) -> KeyTable:
        """Return the names of all parameters and stored numbers of a Pi3, published ↔ geomtx."""
        return keys_of(config)

    @classmethod
    def passed_over(cls, checkpoint: Checkpoint, config: Pi3Config) -> list[str]:
        """Return the prefixes of the camera's names, where the model has none."""
        if {"camera", "points"} & set(config.heads or ()):
            return []
        return ["camera_decoder.", "camera_head.", "point_head.camera."]

    def stored_form(self) -> StoredForm:
        """Return the names and configurations under which the model is stored, added heads too."""
        ours = describe_model("Pi3", self.config.to_dict(), self.extra_heads)
        return StoredForm(keys_of(self.config), ours, {})
