"""Configuration of Depth Anything 3."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

from geomtx.checks import check_divisible, check_name, check_option, check_positive, suggest_keywords
from geomtx.encoder.reference_view import REFERENCE_RULES, ReferenceRule
from geomtx.layers.backends import BackendName
from geomtx.models.config import ModelConfig

__all__ = ["DepthAnything3Config", "DepthAnything3Head"]

DepthAnything3Head = Literal["camera", "depth", "rays", "sky"]
_OF_MANY_VIEWS: tuple[DepthAnything3Head, ...] = ("camera", "depth", "rays")
_OF_SINGLE_VIEWS: tuple[DepthAnything3Head, ...] = ("depth", "sky")


@suggest_keywords
@dataclasses.dataclass(frozen=True)
class DepthAnything3Config(ModelConfig):
    """Configuration of a Depth Anything 3 model; the defaults are those of DA3-SMALL.

    Attributes:
        heads: Names of the heads to build: of "camera", "depth" and "rays" for models of many views, of "depth" and
            "sky" for models of single views. Defaults to all of them.
        dim: Number of channels of the tokens.
        depth: Number of blocks.
        num_heads: Number of attention heads of each block; dim / num_heads must be a multiple of 4.
        first_global: Index of the first block with rotary positions and normalised queries and keys. From it on, every
            block with an odd index attends across views. None for a model of single views.
        gated: Whether the blocks' MLPs are gated (SwiGLU).
        layer_scale: Initial factor of the blocks' residual branches.
        taps: Indices of the four blocks that the dense heads read; the camera head reads the last one. In models of
            many views they attend across views, so they are odd.
        reference: Rule by which the reference view of a scene is chosen, see `geomtx.encoder.choose_reference`.
        patch_size: Side of a patch in pixels.
        image_size: Longer side in pixels of the images that the model is made for.
        table_size: Side in pixels of the square images that the position table is for.
        rope_base: Base of the rotary positions.
        camera_depth: Number of blocks of the encoder of known cameras.
        camera_num_heads: Number of attention heads of these blocks.
        dpt_features: Number of channels of the dense heads' merged maps.
        dpt_channels: Numbers of channels of the dense heads' four projections.
        metric: Whether depth times the focal length in pixels, divided by 300, is in metres.
        attention: Name of the attention backend, see `geomtx.layers.backends`.
    """

    heads: tuple[DepthAnything3Head, ...] | None = None
    dim: int = 384
    depth: int = 12
    num_heads: int = 6
    first_global: int | None = 4
    gated: bool = False
    layer_scale: float = 1.0
    taps: tuple[int, int, int, int] = (5, 7, 9, 11)
    reference: ReferenceRule = "saddle_balanced"
    patch_size: int = 14
    image_size: int = 504
    table_size: int = 518
    rope_base: float = 100.0
    camera_depth: int = 4
    camera_num_heads: int = 16
    dpt_features: int = 64
    dpt_channels: tuple[int, int, int, int] = (48, 96, 192, 384)
    metric: bool = False
    attention: BackendName = "auto"

    num_registers = 0
    """Number of register tokens of a view."""

    def __post_init__(self) -> None:
        available = self.available_heads
        if isinstance(self.heads, str):
            raise ValueError(f"heads must be a tuple of names, got {self.heads!r}")
        object.__setattr__(self, "heads", available if self.heads is None else tuple(self.heads))
        for head in self.heads or ():
            check_name("head", head, available)
        for name in ("taps", "dpt_channels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_option("attention", self.attention, get_args(BackendName))
        check_option("reference", self.reference, REFERENCE_RULES)
        check_positive("num_heads", self.num_heads)
        # Rotary positions rotate pairs of channels along two axes.
        check_divisible("dim / num_heads", self.dim / self.num_heads, 4)
        for tap in self.taps:
            check_option("tap", tap, range(self.depth))
        if self.first_global is not None:
            check_option("first_global", self.first_global, range(1, self.depth))
            if any(tap % 2 == 0 or tap <= self.first_global for tap in self.taps):
                raise ValueError(
                    f"taps must be odd and above first_global, {self.first_global}, so that each ends a pair of a "
                    f"block on each view by itself and one across views, got {self.taps}"
                )
            if self.metric:
                raise ValueError("metric must be False for a model of many views, got True")

    @property
    def available_heads(self) -> tuple[DepthAnything3Head, ...]:
        """Names of the heads that a model of this kind can have."""
        return _OF_SINGLE_VIEWS if self.first_global is None else _OF_MANY_VIEWS

    @property
    def num_stem_blocks(self) -> int:
        """Number of blocks that run on each view by itself, before the tokens get rotary positions."""
        return 0 if self.first_global is None else self.first_global

    @property
    def order(self) -> tuple[tuple[Literal["frame", "global"], ...], ...]:
        """Layers of the other blocks, see `AlternatingEncoder`: a layer ends with a block across views."""
        if self.first_global is None:
            return (("frame",),) * self.depth
        layers: list[tuple[Literal["frame", "global"], ...]] = []
        start = self.first_global
        while start < self.depth:
            layer: tuple[Literal["frame", "global"], ...] = ("global",) if start % 2 else ("frame", "global")
            layers.append(layer[: self.depth - start])
            start += len(layer)
        return tuple(layers)

    @property
    def layers(self) -> tuple[int, int, int, int]:
        """Index in `order` of the layer that each of the `taps` ends."""
        if self.first_global is None:
            return self.taps
        first, second, third, fourth = (tap // 2 - self.first_global // 2 for tap in self.taps)
        return first, second, third, fourth

    @classmethod
    def tiny(cls, **changes: Any) -> DepthAnything3Config:
        """Return a configuration small enough for tests; `changes` replace single values."""
        numbers: dict[str, Any] = {
            "dim": 32,
            "depth": 8,
            "num_heads": 2,
            "first_global": 2,
            "taps": (3, 5, 5, 7),
            "image_size": 70,
            "table_size": 70,
            "camera_depth": 2,
            "camera_num_heads": 4,
            "dpt_features": 16,
            "dpt_channels": (16, 16, 32, 32),
        }
        return cls(**{**numbers, **changes})

    @classmethod
    def small(cls, **changes: Any) -> DepthAnything3Config:
        """Return the configuration of DA3-SMALL; `changes` replace single values."""
        return cls(**changes)

    @classmethod
    def base(cls, **changes: Any) -> DepthAnything3Config:
        """Return the configuration of DA3-BASE; `changes` replace single values."""
        numbers = {"dim": 768, "num_heads": 12, "dpt_features": 128, "dpt_channels": (96, 192, 384, 768)}
        return cls(**{**numbers, **changes})

    @classmethod
    def large(cls, **changes: Any) -> DepthAnything3Config:
        """Return the configuration of DA3-LARGE and DA3-LARGE-1.1; `changes` replace single values."""
        numbers = {"first_global": 8, "taps": (11, 15, 19, 23)}
        return cls(**{**_VIT_LARGE, **numbers, **changes})

    @classmethod
    def giant(cls, **changes: Any) -> DepthAnything3Config:
        """Return the configuration of DA3-GIANT and DA3-GIANT-1.1; `changes` replace single values."""
        numbers = {
            "dim": 1536,
            "depth": 40,
            "num_heads": 24,
            "gated": True,
            "first_global": 13,
            "taps": (19, 27, 33, 39),
        }
        return cls(**{**_VIT_LARGE, **numbers, **changes})

    @classmethod
    def mono(cls, **changes: Any) -> DepthAnything3Config:
        """Return the configuration of DA3MONO-LARGE, a model of single views; `changes` replace single values."""
        numbers = {"first_global": None, "taps": (4, 11, 17, 23)}
        return cls(**{**_VIT_LARGE, **numbers, **changes})

    @classmethod
    def metric_large(cls, **changes: Any) -> DepthAnything3Config:
        """Return the configuration of DA3METRIC-LARGE, whose depth can be brought to metres; see `mono`."""
        return cls.mono(**{"metric": True, **changes})


_VIT_LARGE: dict[str, Any] = {
    "dim": 1024,
    "depth": 24,
    "num_heads": 16,
    "dpt_features": 256,
    "dpt_channels": (256, 512, 1024, 1024),
}
