"""The parts of VGGT-Omega, built from its configuration."""

from __future__ import annotations

from typing import Any

from geomtx.encoder.frame_rotary import FrameRotaryEncoder
from geomtx.encoder.vit import VisionTransformer
from geomtx.heads.camera_one_pass import OnePassCameraHead
from geomtx.heads.dense import PixelShuffleHead
from geomtx.heads.dpt import DPTDecoder
from geomtx.heads.text_alignment import TextAlignmentHead
from geomtx.layers.block import TransformerBlock
from geomtx.layers.rope import GridRotary
from geomtx.models.omega.config import VGGTOmegaConfig

__all__ = ["build_camera_head", "build_depth_head", "build_encoder", "build_text_head"]


def build_encoder(config: VGGTOmegaConfig) -> FrameRotaryEncoder:
    """Build the backbone and the blocks within and across views."""
    backbone = VisionTransformer(
        config.dim,
        config.vit_depth,
        num_heads=config.vit_num_heads,
        patch_size=config.patch_size,
        num_registers=config.vit_registers,
        rope=GridRotary(config.dim // config.vit_num_heads, base=config.rope_base),
        norm_eps=1e-5,
        **_block(config),
    )

    def block() -> TransformerBlock:
        return TransformerBlock(config.dim, config.num_heads, qk_norm=True, **_block(config))

    return FrameRotaryEncoder(
        backbone,
        [block() for _ in range(config.depth)],
        [block() for _ in range(config.depth)],
        rope=GridRotary(config.dim // config.num_heads, base=config.rope_base),
        order=config.order,
        taps=config.taps,
        num_registers=config.num_registers,
        special_std=1e-3,
    )


def _block(config: VGGTOmegaConfig) -> dict[str, Any]:
    """Return what all blocks have in common."""
    return {"layer_scale": config.layer_scale, "masked_bias": True, "backend": config.attention}


def _trunk(config: VGGTOmegaConfig) -> dict[str, Any]:
    """Return what the heads on special tokens have in common: the last tap, and their blocks."""
    return {"num_heads": config.trunk_num_heads, "layer": config.taps[-1], **_block(config)}


def build_camera_head(config: VGGTOmegaConfig) -> OnePassCameraHead:
    """Build the camera head."""
    return OnePassCameraHead(2 * config.dim, config.trunk_depth, **_trunk(config))


def build_text_head(config: VGGTOmegaConfig) -> TextAlignmentHead:
    """Build the head that embeds scenes."""
    return TextAlignmentHead(2 * config.dim, config.trunk_depth, out_dim=config.text_dim, **_trunk(config))


def build_depth_head(config: VGGTOmegaConfig) -> PixelShuffleHead:
    """Build the depth head."""
    decoder = DPTDecoder(
        2 * config.dim,
        config.dpt_features,
        channels=config.dpt_channels,
        taps=config.taps,
        stride=None,
        rectified_skip=False,
    )
    return PixelShuffleHead(decoder, 1, activation="exp", factor=config.patch_size // 4)
