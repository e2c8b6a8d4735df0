"""The parts of VGGT, built from its configuration."""

from __future__ import annotations

from typing import Literal

from geomtx.encoder.alternating import AlternatingEncoder
from geomtx.encoder.patches import Backbone, PatchEmbedding
from geomtx.encoder.vit import VisionTransformer
from geomtx.heads.camera import CameraHead
from geomtx.heads.dense import DenseHead, PixelShuffleHead
from geomtx.heads.dpt import DPTDecoder
from geomtx.heads.track import TrackHead
from geomtx.layers.block import TransformerBlock
from geomtx.models.vggt.config import VGGTConfig
from geomtx.tracking.tracker import Tracker

__all__ = ["build_camera_head", "build_dense_head", "build_encoder", "build_track_decoder", "build_track_head"]


def build_encoder(config: VGGTConfig) -> AlternatingEncoder:
    """Build the backbone and the alternating blocks."""
    backbone: Backbone = PatchEmbedding(config.dim, patch_size=config.patch_size)
    if config.backbone == "vit":
        backbone = VisionTransformer(
            config.dim,
            config.vit_depth,
            num_heads=config.vit_num_heads,
            patch_size=config.patch_size,
            image_size=config.image_size,
            num_registers=config.num_registers,
            backend=config.attention,
        )

    def block() -> TransformerBlock:
        return TransformerBlock(
            config.dim, config.num_heads, qk_norm=True, layer_scale=config.layer_scale, backend=config.attention
        )

    def global_block() -> TransformerBlock:
        made = block()
        if config.similarity_gain:
            made.attention.start_by_similarity(config.similarity_gain)
        return made

    order = (config.scopes,) * config.depth
    num_frame = config.depth * config.scopes.count("frame")
    return AlternatingEncoder(
        backbone,
        [block() for _ in range(num_frame)],
        [global_block() for _ in range(2 * config.depth - num_frame)],
        order=order,
        taps=config.taps,
        num_registers=config.num_registers,
        special_std=0.3 * config.layer_scale,  # in proportion to what a block adds to the tokens
        rope_base=config.rope_base,
    )


def build_camera_head(config: VGGTConfig) -> CameraHead:
    """Build the camera head, which reads the last tap."""
    return CameraHead(
        2 * config.dim,
        config.camera_depth,
        num_heads=config.camera_num_heads,
        num_iterations=config.camera_iterations,
        layer_scale=config.layer_scale,
        layer=config.taps[-1],
        backend=config.attention,
    )


def build_dense_head(
    config: VGGTConfig, value_dim: int, activation: Literal["exp", "signed_expm1"]
) -> DenseHead | PixelShuffleHead:
    """Build the head of depth (1, "exp") or of points (3, "signed_expm1")."""
    stride = 1 if config.dense_head == "dpt" else None
    decoder = DPTDecoder(
        2 * config.dim, config.dpt_features, channels=config.dpt_channels, taps=config.taps, stride=stride
    )
    if stride is None:
        return PixelShuffleHead(decoder, value_dim, activation=activation, factor=config.patch_size // 4)
    return DenseHead(decoder, value_dim, activation=activation)


def build_track_decoder(config: VGGTConfig) -> DPTDecoder:
    """Build the decoder of the tracker's feature maps, of half the images' size."""
    return DPTDecoder(
        2 * config.dim,
        config.track_features,
        channels=config.dpt_channels,
        taps=config.taps,
        out_channels=config.track_features,
        stride=2,
        position_signal=False,
    )


def build_track_head(config: VGGTConfig) -> TrackHead:
    """Build the head of tracks: the decoder of feature maps, and the tracker."""
    tracker = Tracker(
        config.track_features,
        num_levels=config.track_levels,
        radius=config.track_radius,
        num_iterations=config.track_iterations,
        hidden_dim=config.track_dim,
        num_heads=config.track_num_heads,
        depth=config.track_depth,
        num_virtual=config.track_virtual,
        stride=2,
        backend=config.attention,
    )
    return TrackHead(build_track_decoder(config), tracker)
