"""Configurations of the models that see a scene as pairs: DUSt3R, MASt3R, and CroCo, which they start from."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

from geomtx.checks import check_count, check_divisible, check_option
from geomtx.layers.backends import BackendName
from geomtx.models.config import ModelConfig

__all__ = ["CroCoConfig", "DUSt3RConfig", "MASt3RConfig", "PairHeadName"]

PairHeadName = Literal["dpt", "linear"]

_TINY = {"encoder_dim": 32, "encoder_depth": 2, "encoder_num_heads": 2, "dim": 24, "depth": 4, "num_heads": 2}


@dataclasses.dataclass(frozen=True)
class _PairConfig(ModelConfig):
    """What the configurations have in common; see `DUSt3RConfig`."""

    encoder_dim: int = 1024
    encoder_depth: int = 24
    encoder_num_heads: int = 16
    dim: int = 768
    depth: int = 12
    num_heads: int = 12
    patch_size: int = 16
    attention: BackendName = "auto"

    def __post_init__(self) -> None:
        check_option("attention", self.attention, get_args(BackendName))
        for name in ("encoder_depth", "encoder_num_heads", "depth", "num_heads", "patch_size"):
            check_count(name, getattr(self, name))
        # Rotary positions rotate pairs of channels along two axes.
        check_divisible("encoder_dim / encoder_num_heads", self.encoder_dim / self.encoder_num_heads, 4)
        check_divisible("dim / num_heads", self.dim / self.num_heads, 4)


@dataclasses.dataclass(frozen=True)
class DUSt3RConfig(_PairConfig):
    """Configuration of a DUSt3R model; the defaults are those of DUSt3R_ViTLarge_BaseDecoder_512_dpt.

    Attributes:
        encoder_dim: Number of channels of the encoder's tokens.
        encoder_depth: Number of the encoder's blocks.
        encoder_num_heads: Number of attention heads of these blocks; encoder_dim / encoder_num_heads must be a multiple
            of 4.
        dim: Number of channels of the decoder's tokens.
        depth: Number of blocks of each of the decoder's two streams.
        num_heads: Number of attention heads of these blocks; dim / num_heads must be a multiple of 4.
        patch_size: Side of a patch in pixels.
        attention: Name of the attention backend, see `geomtx.layers.backends`.
        head: Kind of the heads of points: "dpt", or "linear".
        image_size: Longer side in pixels of the images that the model is made for; 224 for square ones.
        rope_base: Base of the rotary positions.
        dpt_features: Number of channels of the DPT heads' merged maps.
        dpt_channels: Numbers of channels of the DPT heads' four projections.
    """

    head: PairHeadName = "dpt"
    image_size: int = 512
    rope_base: float = 100.0
    dpt_features: int = 256
    dpt_channels: tuple[int, int, int, int] = (96, 192, 384, 768)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option("head", self.head, get_args(PairHeadName))
        check_count("depth", self.depth, 2)
        object.__setattr__(self, "dpt_channels", tuple(self.dpt_channels))

    @property
    def dpt_taps(self) -> tuple[int, int, int, int]:
        """Layers that the DPT heads read: 0 for the encoder's tokens, k for those after block k of the decoder."""
        return 0, self.depth // 2, self.depth * 3 // 4, self.depth

    @property
    def photo_mode(self) -> str:
        """Mode of `load_views` by which photos are prepared."""
        return "center_square" if self.image_size == 224 else "center"

    @classmethod
    def tiny(cls, **changes: Any) -> Any:
        """Return a configuration small enough for tests; `changes` replace single values."""
        numbers = {**_TINY, "image_size": 64, "dpt_features": 16, "dpt_channels": (8, 8, 16, 16)}
        return cls(**{**numbers, **changes})


@dataclasses.dataclass(frozen=True)
class MASt3RConfig(DUSt3RConfig):
    """Configuration of a MASt3R model; the defaults are those of MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric.

    Attributes:
        descriptor_dim: Number of channels of the descriptors.
        descriptor_ratio: Number of hidden channels of the heads of descriptors, divided by that of their tokens.
    """

    descriptor_dim: int = 24
    descriptor_ratio: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("descriptor_dim", self.descriptor_dim)
        check_option("head", self.head, ("dpt",))


@dataclasses.dataclass(frozen=True)
class CroCoConfig(_PairConfig):
    """Configuration of a CroCo model; the defaults are those of CroCo_V2_ViTLarge_BaseDecoder.

    The numbers of blocks and channels are those of `DUSt3RConfig`, but that the decoder has one stream.

    Attributes:
        rope_base: Base of the rotary positions; None for a fixed table of positions (CroCo v1).
        image_size: Side in pixels of the square images; without rotary positions a model takes no others.
    """

    rope_base: float | None = 100.0
    image_size: int = 224

    photo_mode = "center_square"
    """Mode of `load_views` by which photos are prepared."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_divisible("image_size", self.image_size, self.patch_size)

    @classmethod
    def tiny(cls, **changes: Any) -> CroCoConfig:
        """Return a configuration small enough for tests; `changes` replace single values."""
        return cls(**{**_TINY, "image_size": 64, **changes})
