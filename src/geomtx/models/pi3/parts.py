"""The parts of Pi3 and Pi3X, built from their configuration."""

from __future__ import annotations

from torch import nn

from geomtx.encoder.alternating import AlternatingEncoder
from geomtx.encoder.geometry_conditioning import GeometryConditioning
from geomtx.encoder.patches import ImageNormalization, PatchEmbedding
from geomtx.encoder.pose_injection import PoseBlock
from geomtx.encoder.special import RegisterTokens
from geomtx.encoder.vit import VisionTransformer
from geomtx.heads.metric_scale import MetricScaleHead
from geomtx.heads.point_map import PointMapHead, PooledCamera, TokenMap
from geomtx.heads.token_decoder import PixelShuffle, TokenDecoder
from geomtx.heads.upsampler import Upsampler
from geomtx.layers.block import TransformerBlock
from geomtx.models.pi3.config import Pi3Config

__all__ = ["build_conditioning", "build_encoder", "build_metric_head", "build_point_head"]


def build_vit(config: Pi3Config, in_channels: int = 3) -> VisionTransformer:
    """Build the ViT of images, or that of known depth."""
    return VisionTransformer(
        config.dim,
        config.vit_depth,
        num_heads=config.vit_num_heads,
        patch_size=config.patch_size,
        image_size=config.table_size,
        in_channels=in_channels,
        mask_token=False,
        backend=config.attention,
    )


def build_encoder(config: Pi3Config) -> AlternatingEncoder:
    """Build the ViT, the blocks that alternate, and those that inject poses."""

    def block(kind: type[TransformerBlock] = TransformerBlock) -> TransformerBlock:
        return kind(
            config.dim,
            config.num_heads,
            qk_norm=True,
            layer_scale=config.layer_scale,
            norm_eps=1e-6,
            backend=config.attention,
        )

    num_poses = sum("pose" in layer for layer in config.order)
    return AlternatingEncoder(
        build_vit(config),
        [block() for _ in range(config.depth)],
        [block() for _ in range(config.depth)],
        pose_blocks=[block(PoseBlock) for _ in range(num_poses)],
        order=config.order,
        taps=config.taps,
        special=RegisterTokens(config.dim, config.num_registers),
        rope_base=config.rope_base,
        normalize=ImageNormalization(),
    )


def build_conditioning(config: Pi3Config) -> GeometryConditioning:
    """Build what makes patch tokens of known depth and intrinsics."""
    rays = PatchEmbedding(config.dim, patch_size=config.patch_size, in_channels=2, in_float32=True)
    return GeometryConditioning(build_vit(config, in_channels=2), rays)


def build_trunk(config: Pi3Config, out_dim: int | None = None) -> TokenDecoder:
    """Build a head's transformer."""
    return TokenDecoder(
        2 * config.dim,
        config.head_dim,
        config.head_depth,
        num_heads=config.head_num_heads,
        out_dim=out_dim,
        rope_base=config.rope_base,
        layer=config.taps[-1],
        backend=config.attention,
    )


def build_map(config: Pi3Config, *out_dims: int) -> TokenMap:
    """Build a head's map with some outputs."""
    out: nn.Module
    if config.known_geometry:
        out = Upsampler(config.head_dim, stages=config.upsampling, out_dims=out_dims)
    else:
        out = PixelShuffle(config.head_dim, sum(out_dims), patch_size=config.patch_size)
    return TokenMap(build_trunk(config), out)


def build_point_head(config: Pi3Config) -> PointMapHead:
    """Build the head of points, confidence and camera."""
    needs_camera = bool({"camera", "points"} & set(config.heads or ()))
    camera = PooledCamera(build_trunk(config, config.camera_dim)) if needs_camera else None
    return PointMapHead(build_map(config, 2, 1), build_map(config, 1), camera, max_log_depth=config.max_log_depth)


def build_metric_head(config: Pi3Config) -> MetricScaleHead:
    """Build the head of the factor to metres."""
    return MetricScaleHead(
        2 * config.dim,
        config.metric_dim,
        config.metric_depth,
        num_heads=config.metric_num_heads,
        rope_base=config.rope_base,
        layer=config.taps[-1],
    )
