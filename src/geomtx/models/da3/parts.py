"""The parts of Depth Anything 3, built from its configuration."""

from __future__ import annotations

from torch import nn

from geomtx.encoder.camera_encoder import CameraEncoder
from geomtx.encoder.class_token import ClassTokenEncoder
from geomtx.encoder.vit import ViTStem
from geomtx.heads.camera_mlp import CameraMLP
from geomtx.heads.depth_rays import DepthRayHead
from geomtx.heads.depth_sky import DepthSkyHead
from geomtx.heads.dpt import DPTDecoder
from geomtx.layers.block import TransformerBlock
from geomtx.models.da3.config import DepthAnything3Config

__all__ = ["build_camera_encoder", "build_camera_head", "build_dense_head", "build_encoder"]


def build_encoder(config: DepthAnything3Config) -> ClassTokenEncoder:
    """Build the blocks: first those on each view by itself, then those that alternate."""
    many_views = config.first_global is not None
    stem = ViTStem(
        config.dim,
        config.num_stem_blocks,
        num_heads=config.num_heads,
        patch_size=config.patch_size,
        image_size=config.table_size,
        layer_scale=config.layer_scale,
        gated=config.gated,
        antialias=False,
        backend=config.attention,
    )

    def block() -> TransformerBlock:
        return TransformerBlock(
            config.dim,
            config.num_heads,
            gated=config.gated,
            qk_norm=many_views,
            layer_scale=config.layer_scale,
            norm_eps=1e-6,
            backend=config.attention,
        )

    scopes = [scope for layer in config.order for scope in layer]
    return ClassTokenEncoder(
        stem,
        [block() for _ in range(scopes.count("frame"))],
        [block() for _ in range(scopes.count("global"))],
        reference=config.reference if many_views else None,
        tap_norm=nn.LayerNorm(config.dim, eps=1e-5),
        order=config.order,
        taps=tuple(dict.fromkeys(config.layers)),
        rope_base=config.rope_base if many_views else None,
    )


def build_camera_encoder(config: DepthAnything3Config) -> CameraEncoder:
    """Build the encoder of known cameras."""
    return CameraEncoder(config.dim, config.camera_depth, num_heads=config.camera_num_heads, backend=config.attention)


def build_camera_head(config: DepthAnything3Config) -> CameraMLP:
    """Build the camera head, which reads the last tap."""
    return CameraMLP(2 * config.dim, layer=config.layers[-1])


def build_dense_head(config: DepthAnything3Config) -> DepthRayHead | DepthSkyHead:
    """Build the head of depth, and of rays or sky."""
    many_views = config.first_global is not None
    decoder = DPTDecoder(
        2 * config.dim if many_views else config.dim,
        config.dpt_features,
        channels=config.dpt_channels,
        taps=config.layers,
        position_signal=many_views,
        token_norm=many_views,
        rectified_skip=False,
    )
    if many_views:
        return DepthRayHead(decoder, rays="rays" in (config.heads or ()))
    return DepthSkyHead(decoder)
