"""Configuration of point tracking in video."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from geomtx.checks import check_count, check_divisible, check_option, check_range, suggest_keywords
from geomtx.models.config import ModelConfig
from geomtx.models.vggt.config import VGGTConfig, check_inner_config

__all__ = ["FeatureSource", "VideoTrackerConfig"]

FeatureSource = Literal["vggt", "images"]


@suggest_keywords
@dataclasses.dataclass(frozen=True)
class VideoTrackerConfig(ModelConfig):
    """Configuration of a `VideoTracker`; the defaults are CoTracker2's on VGGT-1B.

    Attributes:
        vggt: Configuration of the VGGT inside; its `track_features` is the number of channels of the feature maps, from
            any source.
        features: Source of the feature maps: "vggt", or "images" for a small network on pixels (`ImageFeatures`).
        encoder_frames: Number of frames that VGGT's encoder sees at a time, each clip with its first frame as the
            reference; 0 for the whole video.
        stride: Number of pixels of the image for a pixel of the feature maps, even; VGGT's maps of stride 2 are
            averaged to it.
        image_width: Number of channels within `ImageFeatures`.
        window: Number of frames of a window.
        window_stride: Number of frames from the beginning of a window to that of the next.
        levels: Number of levels of the correlation pyramid.
        radius: Radius of the correlation windows in pixels of each level.
        iterations: Number of refinements in each window in training.
        test_iterations: Number of refinements in each window in evaluation mode.
        dim: Number of channels of the updating transformer.
        num_heads: Number of attention heads of the transformer.
        depth: Number of rounds of the transformer.
        num_virtual: Number of virtual tracks of the transformer.
    """

    vggt: VGGTConfig = dataclasses.field(default_factory=VGGTConfig)
    features: FeatureSource = "vggt"
    encoder_frames: int = 0
    stride: int = 4
    image_width: int = 64
    window: int = 8
    window_stride: int = 4
    levels: int = 4
    radius: int = 3
    iterations: int = 4
    test_iterations: int = 6
    dim: int = 384
    num_heads: int = 8
    depth: int = 6
    num_virtual: int = 64

    def __post_init__(self) -> None:
        check_inner_config(self.vggt)
        check_option("features", self.features, ("vggt", "images"))
        check_count("encoder_frames", self.encoder_frames, 0)
        check_count("stride", self.stride)
        check_divisible("stride", self.stride, 2)
        for name in ("levels", "iterations", "test_iterations", "dim", "num_heads", "depth", "num_virtual"):
            check_count(name, getattr(self, name))
        check_count("image_width", self.image_width)
        if self.features == "images":
            check_divisible("image_width", self.image_width, 4)
        check_count("radius", self.radius, 0)
        check_count("window", self.window, 2)
        check_count("window_stride", self.window_stride)
        check_range("window_stride", self.window_stride, 1, self.window - 1)

    @property
    def patch_size(self) -> int:
        """Number of pixels that both sides of the frames are multiples of."""
        return self.vggt.patch_size if self.features == "vggt" else self.stride

    @classmethod
    def tiny(cls, **changes: Any) -> VideoTrackerConfig:
        """Return a configuration small enough for tests; `changes` replace single values."""
        numbers: dict[str, Any] = {"vggt": VGGTConfig.tiny(), "image_width": 8, "levels": 2, "radius": 1}
        numbers |= {"iterations": 2, "test_iterations": 2, "dim": 16, "num_heads": 2, "depth": 1, "num_virtual": 4}
        return cls(**{**numbers, **changes})

    @classmethod
    def nano(cls, **changes: Any) -> VideoTrackerConfig:
        """Return a configuration for features of `VGGT.from_pretrained("nano")`; `changes` replace single values."""
        numbers: dict[str, Any] = {"vggt": VGGTConfig.nano(), "stride": 2, "image_width": 32, "levels": 3}
        numbers |= {"iterations": 3, "test_iterations": 4, "dim": 64, "num_heads": 4, "depth": 2, "num_virtual": 8}
        return cls(**{**numbers, **changes})
