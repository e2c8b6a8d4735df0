"""Configuration of VGGT."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal, get_args

from geomtx.checks import check_divisible, check_name, check_option, check_positive, suggest_keywords
from geomtx.encoder.alternating import Scope
from geomtx.layers.backends import BackendName
from geomtx.models.config import ModelConfig

__all__ = [
    "HEADS",
    "HEAD_MODULES",
    "HeadName",
    "VGGTConfig",
    "check_heads",
    "check_inner_config",
    "check_numbers",
]

HeadName = Literal["camera", "depth", "points", "tracks"]
HEAD_MODULES: dict[HeadName, str] = {
    "camera": "camera_head",
    "depth": "depth_head",
    "points": "point_head",
    "tracks": "track_head",
}
"""Name of a head → attribute of the model that holds it, in geomtx as in published names."""
HEADS: tuple[HeadName, ...] = tuple(HEAD_MODULES)


def check_heads(heads: tuple[str, ...], available: tuple[str, ...] = HEADS) -> None:
    """Require a tuple of names of available heads.

    Raises:
        ValueError: Otherwise.
    """
    if isinstance(heads, str):
        raise ValueError(f"heads must be a tuple of names, got {heads!r}")
    for head in heads:
        check_name("head", head, available)


@suggest_keywords
@dataclasses.dataclass(frozen=True)
class VGGTConfig(ModelConfig):
    """Configuration of a VGGT; the defaults are those of VGGT-1B.

    Attributes:
        heads: Names of the heads to build, of "camera", "depth", "points" and "tracks".
        dim: Number of channels of the tokens; the heads see twice as many, a frame block's output beside a global
            block's.
        depth: Number of pairs of alternating blocks.
        scopes: Scopes of the two blocks of a pair, each "frame", "global" or "cross", see `AlternatingEncoder`.
        num_heads: Number of attention heads of these blocks; dim / num_heads must be a multiple of 4.
        layer_scale: Initial factor of the residual branches of these blocks and of the camera head's.
        similarity_gain: Initial weight of the norms of queries and keys in the global blocks. Above 0, the projections
            of queries and keys start equal, so that tokens first attend to tokens like them, see
            `Attention.start_by_similarity`; 0 for independent ones.
        patch_size: Side of a patch in pixels.
        num_registers: Number of register tokens of a view, in the encoder and in the ViT.
        image_size: Longer side in pixels of the images that the model is made for; the ViT's position table is for a
            square of it.
        backbone: "vit", or "conv" for a patch embedding alone.
        vit_depth: Number of blocks of the ViT.
        vit_num_heads: Number of attention heads of the ViT.
        rope_base: Base of the rotary positions.
        taps: Indices of the four layers that the dense heads read; the camera head reads the last one.
        camera_depth: Number of blocks of the camera head's trunk.
        camera_num_heads: Number of attention heads of the trunk.
        camera_iterations: Number of refinements of the cameras.
        dense_head: Kind of the depth and point heads: "dpt", of the images' resolution, a `DenseHead`; or
            "pixel_shuffle", of a quarter of a patch, a `PixelShuffleHead`, for which `patch_size` is a multiple of 4.
        dpt_features: Number of channels of the depth and point decoders.
        dpt_channels: Numbers of channels of the four projections of all decoders.
        track_features: Number of channels of the tracker's feature maps.
        track_levels: Number of levels of the tracker's correlation pyramid.
        track_radius: Radius of the tracker's correlation windows, in pixels of each level.
        track_iterations: Number of refinements of the tracks.
        track_dim: Number of channels of the tracker's transformer.
        track_num_heads: Number of attention heads of the tracker's transformer.
        track_depth: Number of rounds of the tracker's transformer.
        track_virtual: Number of virtual tracks of the tracker's transformer.
        attention: Name of the attention backend, see `geomtx.layers.backends`.
    """

    heads: tuple[HeadName, ...] = HEADS
    dim: int = 1024
    depth: int = 24
    scopes: tuple[Scope, Scope] = ("frame", "global")
    num_heads: int = 16
    layer_scale: float = 0.01
    similarity_gain: float = 0.0
    patch_size: int = 14
    num_registers: int = 4
    image_size: int = 518
    backbone: Literal["vit", "conv"] = "vit"
    vit_depth: int = 24
    vit_num_heads: int = 16
    rope_base: float = 100.0
    taps: tuple[int, int, int, int] = (4, 11, 17, 23)
    camera_depth: int = 4
    camera_num_heads: int = 16
    camera_iterations: int = 4
    dense_head: Literal["dpt", "pixel_shuffle"] = "dpt"
    dpt_features: int = 256
    dpt_channels: tuple[int, int, int, int] = (256, 512, 1024, 1024)
    track_features: int = 128
    track_levels: int = 7
    track_radius: int = 4
    track_iterations: int = 4
    track_dim: int = 384
    track_num_heads: int = 8
    track_depth: int = 6
    track_virtual: int = 64
    attention: BackendName = "auto"

    def __post_init__(self) -> None:
        check_heads(self.heads)
        for name in ("heads", "scopes", "taps", "dpt_channels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_option("backbone", self.backbone, ("vit", "conv"))
        check_option("dense_head", self.dense_head, ("dpt", "pixel_shuffle"))
        if self.dense_head == "pixel_shuffle":
            check_divisible("patch_size", self.patch_size, 4)
        check_option("attention", self.attention, get_args(BackendName))
        if len(self.scopes) != 2:
            raise ValueError(f"scopes must be two, as a layer is a pair of blocks, got {self.scopes}")
        for scope in self.scopes:
            check_option("scope", scope, ("frame", "global", "cross"))
        check_positive("num_heads", self.num_heads)
        # Rotary positions rotate pairs of channels along two axes.
        check_divisible("dim / num_heads", self.dim / self.num_heads, 4)

    @classmethod
    def tiny(cls, **changes: Any) -> VGGTConfig:
        """Return a configuration small enough for tests; `changes` replace single values."""
        numbers: dict[str, Any] = {
            "dim": 32,
            "depth": 4,
            "num_heads": 2,
            "image_size": 70,
            "vit_depth": 2,
            "vit_num_heads": 2,
            "taps": (0, 1, 2, 3),
            "camera_depth": 2,
            "camera_num_heads": 4,
            "dpt_features": 16,
            "dpt_channels": (16, 16, 32, 32),
            "track_features": 16,
            "track_levels": 3,
            "track_radius": 2,
            "track_dim": 32,
            "track_num_heads": 2,
            "track_depth": 2,
            "track_virtual": 8,
        }
        return cls(**{**numbers, **changes})

    @classmethod
    def small(cls, **changes: Any) -> VGGTConfig:
        """Return a configuration with the widths of a ViT-S, without published weights; `changes` replace values."""
        numbers: dict[str, Any] = {
            "dim": 384,
            "depth": 12,
            "num_heads": 6,
            "vit_depth": 12,
            "vit_num_heads": 6,
            "taps": (2, 5, 8, 11),
            "camera_depth": 2,
            "camera_num_heads": 12,
            "dpt_features": 64,
            "dpt_channels": (48, 96, 192, 384),
            "track_dim": 192,
            "track_depth": 3,
        }
        return cls(**{**numbers, **changes})

    @classmethod
    def base(cls, **changes: Any) -> VGGTConfig:
        """Return a configuration with the widths of a ViT-B, without published weights; see `small`."""
        numbers: dict[str, Any] = {
            "dim": 768,
            "depth": 12,
            "num_heads": 12,
            "vit_depth": 12,
            "vit_num_heads": 12,
            "taps": (2, 5, 8, 11),
            "camera_num_heads": 12,
            "dpt_features": 128,
            "dpt_channels": (96, 192, 384, 768),
        }
        return cls(**{**numbers, **changes})

    @classmethod
    def nano(cls, **changes: Any) -> VGGTConfig:
        """Return the configuration of the weights that ship with geomtx, `VGGT.from_pretrained("nano")`.

        Args:
            changes: Values that replace single ones.
        """
        numbers: dict[str, Any] = {
            "dim": 96,
            "depth": 4,
            "num_heads": 4,
            "layer_scale": 1.0,
            "similarity_gain": 1.5,
            "patch_size": 8,
            "image_size": 64,
            "vit_depth": 1,
            "vit_num_heads": 4,
            "taps": (0, 1, 2, 3),
            "camera_depth": 2,
            "camera_num_heads": 4,
            "dpt_features": 16,
            "dpt_channels": (16, 16, 32, 32),
            "track_features": 16,
            "track_levels": 3,
            "track_radius": 3,
            "track_iterations": 3,
            "track_dim": 48,
            "track_num_heads": 4,
            "track_depth": 1,
            "track_virtual": 8,
        }
        return cls(**{**numbers, **changes})


def check_inner_config(vggt: object) -> None:
    """Require the numbers of the VGGT inside another model."""
    if not isinstance(vggt, VGGTConfig):
        raise ValueError(f"vggt must be a VGGTConfig, got {vggt!r}")


def check_numbers(name: str, keys: Iterable[str], kind: type, *, without: str | None = None) -> None:
    """Require names of attributes of a configuration, all of them but `without`."""
    available = sorted(field.name for field in dataclasses.fields(kind) if field.name != without)
    for key in keys:
        check_option(name, key, available)
