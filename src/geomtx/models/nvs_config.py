"""The numbers of a model that makes pictures from new places."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

from geomtx.checks import check_count, check_option, check_range
from geomtx.geometry.rays import RayOrder
from geomtx.models.config import VGGTConfig, check_inner_config, parse_around_vggt

__all__ = ["NVSConfig"]


@dataclasses.dataclass(frozen=True)
class NVSConfig:
    """Every number of a `VGGTForNVS`; the defaults are for VGGT-1B.

    Attributes:
        vggt: Of the VGGT inside.
        rgb_features: Channels of the RGB head's decoder; None = as the VGGT's dense heads.
        rgb_channels: Channels of its four projections; None likewise.
        rgb_hidden: Channels between its last two convolutions.
        ray_order: Of the six channels of a ray, see `geomtx.plucker_rays`.
        isolate_targets: Input views don't see targets, and a target sees no other: a picture depends on its own camera
            alone. False = all attend to all, as in the paper.
        known_cameras: Take the input views' cameras where they are known, by a `CameraConditioning`.
        input_rays: Add the rays of input views whose cameras are known to their patches, by the convolution that makes
            tokens of the targets' rays: a target can then match the photos' patches by their rays.
        camera_drop: Share of the scenes in training whose known cameras are withheld.
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
        """Of the images and of the rays, pixels."""
        return self.vggt.patch_size

    @classmethod
    def tiny(cls, **changes: Any) -> NVSConfig:
        """Around `VGGTConfig.tiny()`; `changes` replace single numbers."""
        return cls(**{"vggt": VGGTConfig.tiny(), **changes})

    @classmethod
    def nano(cls, **changes: Any) -> NVSConfig:
        """Around `VGGTConfig.nano()`; `changes` replace single numbers."""
        numbers = {"vggt": VGGTConfig.nano(), "rgb_features": 32, "rgb_channels": (64, 48, 32, 32)}
        return cls(**{**numbers, **changes})

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and one mapping, "vggt", for JSON."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {**plain, "vggt": self.vggt.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NVSConfig:
        """The inverse of `to_dict`.

        Raises:
            ValueError: For a key that is no attribute, or a value that it can't have.
        """
        return parse_around_vggt(cls, values)
