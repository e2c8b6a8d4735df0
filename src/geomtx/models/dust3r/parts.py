"""The parts of DUSt3R, MASt3R and CroCo, built from their configurations."""

from __future__ import annotations

from torch import nn

from geomtx.encoder.pair_decoder import CompletionDecoder, PairDecoder
from geomtx.encoder.patch_transformer import PatchTransformer
from geomtx.heads.dense import DenseHead, DescriptorHead, LinearMapHead
from geomtx.heads.dpt import DPTDecoder
from geomtx.inference.pair_maps import PairedView
from geomtx.models.dust3r.config import CroCoConfig, DUSt3RConfig, MASt3RConfig
from geomtx.types import Tokens

__all__ = ["PairHead", "build_completion_decoder", "build_encoder", "build_head", "build_pair_decoder"]


class PairHead(nn.Module):
    """The head of one of the two images of a pair: points, and descriptors where a model has them.

    Args:
        points: Head of points in the camera of the pair's first image.
        descriptors: Head of descriptors; None for none.
    """

    def __init__(self, points: DenseHead | LinearMapHead, descriptors: DescriptorHead | None = None) -> None:
        super().__init__()
        self.points = points
        self.descriptors = descriptors

    @property
    def taps(self) -> tuple[int, ...]:
        """Indices of the layers that are read."""
        points = (self.points.layer,) if isinstance(self.points, LinearMapHead) else self.points.decoder.taps
        return tuple(sorted({*points, *(self.descriptors.layers if self.descriptors is not None else ())}))

    def forward(self, tokens: Tokens) -> PairedView:
        """Predict for N images, in float32 or better.

        Args:
            tokens: Tokens with the layers `taps`, (N, 1, P, ·).
        """
        maps = [head(tokens) for head in (self.points, self.descriptors) if head is not None]
        return PairedView(*(type(each)(*(tensor[:, 0] for tensor in each)) for each in maps))


def build_encoder(config: DUSt3RConfig | CroCoConfig) -> PatchTransformer:
    """Build the encoder, which both images go through."""
    return PatchTransformer(
        config.encoder_dim,
        config.encoder_depth,
        num_heads=config.encoder_num_heads,
        patch_size=config.patch_size,
        rope_base=config.rope_base,
        table_side=config.image_size // config.patch_size,
        backend=config.attention,
    )


def build_pair_decoder(config: DUSt3RConfig) -> PairDecoder:
    """Build the decoder of two streams."""
    return PairDecoder(
        config.encoder_dim,
        config.dim,
        config.depth,
        num_heads=config.num_heads,
        rope_base=config.rope_base,
        backend=config.attention,
    )


def build_head(config: DUSt3RConfig) -> PairHead:
    """Build the head of one of the two images."""
    points: DenseHead | LinearMapHead
    if config.head == "linear":
        points = LinearMapHead(config.dim, 3, layer=config.depth, activation="norm_expm1", patch_size=config.patch_size)
    else:
        decoder = DPTDecoder(
            (config.encoder_dim, config.dim, config.dim, config.dim),
            config.dpt_features,
            channels=config.dpt_channels,
            taps=config.dpt_taps,
            position_signal=False,
            token_norm=False,
            rectified_skip=False,
            crop=True,
            unused_skip=True,
        )
        points = DenseHead(decoder, 3, activation="norm_expm1", hidden_dim=decoder.out_channels)
    if not isinstance(config, MASt3RConfig):
        return PairHead(points)
    descriptors = DescriptorHead(
        config.encoder_dim + config.dim,
        config.descriptor_dim,
        layers=(0, config.depth),
        patch_size=config.patch_size,
        mlp_ratio=config.descriptor_ratio,
    )
    return PairHead(points, descriptors)


def build_completion_decoder(config: CroCoConfig) -> CompletionDecoder:
    """Build CroCo's decoder."""
    return CompletionDecoder(
        config.encoder_dim,
        config.dim,
        config.depth,
        num_heads=config.num_heads,
        patch_size=config.patch_size,
        rope_base=config.rope_base,
        table_side=config.image_size // config.patch_size,
        backend=config.attention,
    )
