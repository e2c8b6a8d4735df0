"""Configuration of VGGT-Omega."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

from geomtx.checks import check_divisible, check_option, check_positive, suggest_keywords
from geomtx.encoder.scopes import Scope
from geomtx.layers.backends import BackendName
from geomtx.models.config import ModelConfig
from geomtx.models.vggt.config import check_heads

__all__ = ["VGGTOmegaConfig", "VGGTOmegaHead"]

VGGTOmegaHead = Literal["camera", "depth", "text"]


@suggest_keywords
@dataclasses.dataclass(frozen=True)
class VGGTOmegaConfig(ModelConfig):
    """Configuration of a VGGT-Omega; the defaults are those of the published weights for 512 pixels.

    Attributes:
        heads: Names of the heads to build, of "camera", "depth" and "text".
        dim: Number of channels of the tokens; the heads see twice as many, a frame block's output beside that of the
            block across views.
        depth: Number of pairs of blocks: within each view, and across views.
        register_layers: Indices of the pairs whose block across views runs on the special tokens alone.
        num_heads: Number of attention heads of these blocks; dim / num_heads must be a multiple of 4.
        layer_scale: Initial factor of the residual branches of all blocks.
        patch_size: Side of a patch in pixels, a multiple of 4.
        num_registers: Number of register tokens of a view in the encoder.
        image_size: Side in pixels of a square image with as many pixels as those that the model is made for.
        vit_depth: Number of blocks of the ViT.
        vit_num_heads: Number of attention heads of the ViT; dim / vit_num_heads must be a multiple of 4.
        vit_registers: Number of register tokens of the ViT.
        rope_base: Base of the periods of the rotary positions; weights bring periods of their own.
        taps: Indices of the four layers that the depth head reads; the other heads read the last one.
        trunk_depth: Number of blocks of the camera head and of the text head.
        trunk_num_heads: Number of attention heads of these blocks.
        text_dim: Number of channels of the embedding of a scene.
        dpt_features: Number of channels of the depth decoder.
        dpt_channels: Numbers of channels of its four projections.
        attention: Name of the attention backend, see `geomtx.layers.backends`.
    """

    heads: tuple[VGGTOmegaHead, ...] = ("camera", "depth")
    dim: int = 1024
    depth: int = 24
    register_layers: tuple[int, ...] = (2, 6, 9, 14, 20)
    num_heads: int = 16
    layer_scale: float = 1e-5
    patch_size: int = 16
    num_registers: int = 16
    image_size: int = 512
    vit_depth: int = 24
    vit_num_heads: int = 16
    vit_registers: int = 4
    rope_base: float = 100.0
    taps: tuple[int, int, int, int] = (4, 11, 17, 23)
    trunk_depth: int = 4
    trunk_num_heads: int = 16
    text_dim: int = 2048
    dpt_features: int = 256
    dpt_channels: tuple[int, int, int, int] = (256, 512, 1024, 1024)
    attention: BackendName = "auto"

    photo_mode = "balanced"
    """Mode in which photos are prepared, see `geomtx.load_views`."""

    def __post_init__(self) -> None:
        check_heads(self.heads, get_args(VGGTOmegaHead))
        for name in ("heads", "register_layers", "taps", "dpt_channels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_option("attention", self.attention, get_args(BackendName))
        check_divisible("patch_size", self.patch_size, 4)
        for name in ("num_heads", "vit_num_heads"):
            check_positive(name, getattr(self, name))
            # Rotary positions rotate pairs of channels along two axes.
            check_divisible(f"dim / {name}", self.dim / getattr(self, name), 4)
        for layer in (*self.register_layers, *self.taps):
            check_option("layer", layer, range(self.depth))

    @property
    def order(self) -> tuple[tuple[Scope, Scope], ...]:
        """Layers of the blocks, see `AlternatingEncoder`."""
        return tuple(("frame", "register" if i in self.register_layers else "global") for i in range(self.depth))

    @classmethod
    def tiny(cls, **changes: Any) -> VGGTOmegaConfig:
        """Return a configuration small enough for tests; `changes` replace single values."""
        numbers: dict[str, Any] = {
            "dim": 32,
            "depth": 4,
            "register_layers": (1,),
            "num_heads": 2,
            "num_registers": 3,
            "image_size": 64,
            "vit_depth": 2,
            "vit_num_heads": 2,
            "taps": (0, 1, 2, 3),
            "trunk_depth": 1,
            "trunk_num_heads": 4,
            "text_dim": 24,
            "dpt_features": 16,
            "dpt_channels": (16, 16, 32, 32),
        }
        return cls(**{**numbers, **changes})
