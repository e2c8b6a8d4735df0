"""Configuration of Pi3 and Pi3X."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

from geomtx.checks import check_divisible, check_option, check_positive, suggest_keywords
from geomtx.encoder.scopes import Scope
from geomtx.layers.backends import BackendName
from geomtx.models.config import ModelConfig
from geomtx.models.vggt.config import check_heads

__all__ = ["Pi3Config", "Pi3Head"]

Pi3Head = Literal["camera", "depth", "points", "metric"]


@suggest_keywords
@dataclasses.dataclass(frozen=True)
class Pi3Config(ModelConfig):
    """Configuration of a Pi3 or a Pi3X; the defaults are those of Pi3.

    Attributes:
        heads: Names of the heads to build: of "camera", "depth" and "points", and for Pi3X of "metric", which brings
            the others to metres. Defaults to all of them.
        known_geometry: Whether the model takes known depth, intrinsics and poses, and has convolutional heads and a
            metric scale, as Pi3X.
        dim: Number of channels of the tokens; the heads see twice as many, a frame block's output beside a global
            block's.
        depth: Number of pairs of alternating blocks.
        num_heads: Number of attention heads of these blocks; dim / num_heads must be a multiple of 4, for Pi3X of 8.
        layer_scale: Initial factor of the residual branches of these blocks.
        num_registers: Number of register tokens of a view, which are the same for every view.
        pose_layers: Indices of the pairs after which known poses are injected.
        patch_size: Side of a patch in pixels.
        image_size: Longer side in pixels of the images that the model is made for, of photos in the shape 4:3.
        num_pixels: Number of pixels of these images, at most; photos may be prepared by it, `load_views(mode="area")`.
        table_size: Side in pixels of the square images that the ViT's position table is for.
        vit_depth: Number of blocks of the ViT.
        vit_num_heads: Number of attention heads of the ViT.
        rope_base: Base of the rotary positions.
        head_dim: Number of channels of the heads' transformers.
        head_depth: Number of blocks of each of these.
        head_num_heads: Number of attention heads of these blocks.
        camera_dim: Number of channels of the camera head after its transformer.
        upsampling: Numbers of channels of the convolutional heads' stages, multiples of 16.
        max_log_depth: Largest logarithm of a depth; None for none.
        metric_dim: Number of channels of the head of the metric scale.
        metric_depth: Number of its blocks.
        metric_num_heads: Number of attention heads of its blocks.
        attention: Name of the attention backend, see `geomtx.layers.backends`.
    """

    heads: tuple[Pi3Head, ...] | None = None
    known_geometry: bool = False
    dim: int = 1024
    depth: int = 18
    num_heads: int = 16
    layer_scale: float = 0.01
    num_registers: int = 5
    pose_layers: tuple[int, ...] = (0, 4, 8, 12, 16)
    patch_size: int = 14
    image_size: int = 574
    num_pixels: int = 255_000
    table_size: int = 518
    vit_depth: int = 24
    vit_num_heads: int = 16
    rope_base: float = 100.0
    head_dim: int = 1024
    head_depth: int = 5
    head_num_heads: int = 16
    camera_dim: int = 512
    upsampling: tuple[int, ...] = (256, 128, 64)
    max_log_depth: float | None = None
    metric_dim: int = 512
    metric_depth: int = 5
    metric_num_heads: int = 8
    attention: BackendName = "auto"

    def __post_init__(self) -> None:
        heads = self.available_heads if self.heads is None else self.heads
        check_heads(heads, self.available_heads)
        for name, value in {"heads": heads, "pose_layers": self.pose_layers, "upsampling": self.upsampling}.items():
            object.__setattr__(self, name, tuple(value))
        check_option("attention", self.attention, get_args(BackendName))
        for name in ("num_heads", "head_num_heads", "metric_num_heads", "depth"):
            check_positive(name, getattr(self, name))
        # Rotary positions rotate pairs of channels along two axes; poses transform groups of four in half of them.
        check_divisible("dim / num_heads", self.dim / self.num_heads, 8 if self.known_geometry else 4)
        check_divisible("head_dim / head_num_heads", self.head_dim / self.head_num_heads, 4)
        if self.known_geometry:
            check_divisible("metric_dim / metric_num_heads", self.metric_dim / self.metric_num_heads, 4)
            for layer in self.pose_layers:
                check_option("pose layer", layer, range(self.depth))

    @property
    def available_heads(self) -> tuple[Pi3Head, ...]:
        """Names of the heads that a model of this kind can have."""
        return ("camera", "depth", "points", "metric") if self.known_geometry else ("camera", "depth", "points")

    @property
    def order(self) -> tuple[tuple[Scope, ...], ...]:
        """Layers of the encoder, see `AlternatingEncoder`: pairs of blocks, and an injection of poses after some."""
        layers: list[tuple[Scope, ...]] = []
        for index in range(self.depth):
            layers.append(("frame", "global"))
            if self.known_geometry and index in self.pose_layers:
                layers.append(("pose",))
        return tuple(layers)

    @property
    def taps(self) -> tuple[int, ...]:
        """Index in `order` of the layer that all heads read, the last pair of blocks."""
        order = self.order
        return (max(index for index, layer in enumerate(order) if len(layer) == 2),)

    @classmethod
    def pi3(cls, **changes: Any) -> Pi3Config:
        """Return the configuration of Pi3; `changes` replace single values."""
        return cls(**changes)

    @classmethod
    def pi3x(cls, **changes: Any) -> Pi3Config:
        """Return the configuration of Pi3X; `changes` replace single values."""
        return cls(**{"known_geometry": True, "max_log_depth": 15.0, **changes})

    @classmethod
    def tiny(cls, **changes: Any) -> Pi3Config:
        """Return a configuration small enough for tests; `changes` replace single values.

        `tiny(known_geometry=True)` is a small Pi3X.
        """
        numbers: dict[str, Any] = {
            "dim": 32,
            "depth": 3,
            "num_heads": 2,
            "pose_layers": (0, 1),
            "image_size": 70,
            "num_pixels": 70 * 70,
            "table_size": 70,
            "vit_depth": 1,
            "vit_num_heads": 2,
            "head_dim": 32,
            "head_depth": 1,
            "head_num_heads": 2,
            "camera_dim": 16,
            "upsampling": (16, 16, 16),
            "metric_dim": 16,
            "metric_depth": 2,
            "metric_num_heads": 2,
        }
        if changes.get("known_geometry"):
            numbers["max_log_depth"] = 15.0
        return cls(**{**numbers, **changes})
