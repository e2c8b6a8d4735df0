"""Configuration of novel view synthesis on VGGT."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

from geomtx.checks import check_count, check_option, check_range, suggest_keywords
from geomtx.geometry.projection import RayOrder
from geomtx.models.config import ModelConfig
from geomtx.models.vggt.config import VGGTConfig, check_inner_config

__all__ = ["NVSConfig"]


@suggest_keywords
@dataclasses.dataclass(frozen=True)
class NVSConfig(ModelConfig):
    """Configuration of a `VGGTForNVS`; the defaults are for VGGT-1B.

    Attributes:
        vggt: Configuration of the VGGT inside.
        rgb_features: Number of channels of the RGB head's decoder; None for that of the VGGT's dense heads.
        rgb_channels: Numbers of channels of the decoder's four projections; None for those of the VGGT's dense heads.
        rgb_hidden: Number of channels between the RGB head's last two convolutions.
        ray_order: Order of the six channels of a ray, see `geomtx.plucker_rays`.
        isolate_targets: Whether input views don't attend to target views, and a target view attends to no other: an
            image then depends on its own camera alone. False for attention of all to all, as in the paper.
        known_cameras: Whether input cameras condition the camera tokens where they are known, by a
            `CameraConditioning`.
        input_rays: Whether the rays of input views whose cameras are known are added to their patches, by the
            convolution that embeds the targets' rays: targets can then match patches of the images by their rays.
        camera_drop: Share of the scenes in training whose known cameras are withheld, 0 to 1.
    """

    vggt: VGGTConfig = dataclasses.field(default_factory=VGGTConfig)
    rgb_features: int | None = None
    rgb_channels: tuple[int, int, int, int] | None = None
    rgb_hidden: int = 32
    ray_order: RayOrder = "moment_direction"
    isolate_targets: bool = False
    known_cameras: bool = False
    input_rays: bool = False
    camera_drop: float = 0.4

    def __post_init__(self) -> None:
        check_inner_config(self.vggt)
        if self.rgb_channels is not None:
            if not isinstance(self.rgb_channels, (tuple, list)) or len(self.rgb_channels) != 4:
                raise ValueError(f"rgb_channels must be four whole numbers, got {self.rgb_channels!r}")
            object.__setattr__(self, "rgb_channels", tuple(self.rgb_channels))
            for count in self.rgb_channels:
                check_count("rgb_channels", count)
        if self.rgb_features is not None:
            check_count("rgb_features", self.rgb_features)
        check_count("rgb_hidden", self.rgb_hidden)
        check_option("ray_order", self.ray_order, get_args(RayOrder))
        for name in ("isolate_targets", "known_cameras", "input_rays"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if isinstance(self.camera_drop, bool) or not isinstance(self.camera_drop, (int, float)):
            raise ValueError(f"camera_drop must be a number, got {self.camera_drop!r}")
        check_range("camera_drop", self.camera_drop, 0, 1)
        if self.isolate_targets and "cross" in self.vggt.scopes:
            raise ValueError("isolate_targets must be False with the scope 'cross', got True")

    @property
    def patch_size(self) -> int:
        """Patch size in pixels, shared by image and ray patches."""
        return self.vggt.patch_size

    @classmethod
    def tiny(cls, **changes: Any) -> NVSConfig:
        """Return a configuration around `VGGTConfig.tiny()`; `changes` replace single values."""
        return cls(**{"vggt": VGGTConfig.tiny(), **changes})

    @classmethod
    def nano(cls, **changes: Any) -> NVSConfig:
        """Return a configuration around `VGGTConfig.nano()`; `changes` replace single values."""
        numbers = {"vggt": VGGTConfig.nano(), "rgb_features": 32, "rgb_channels": (64, 48, 32, 32)}
        return cls(**{**numbers, **changes})
