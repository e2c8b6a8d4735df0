"""Head with depth and a score of sky from one decoder (Depth Anything 3's single-view models, Lin et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from geomtx.heads.dpt import DecoderHead, DPTDecoder
from geomtx.heads.head import HeadFootprint, run_view_by_view
from geomtx.layers.precision import Float32Conv2d
from geomtx.types import DenseMap, ProjectedTokens, Tokens

__all__ = ["SKY_THRESHOLD", "DepthSkyHead"]

SKY_THRESHOLD = 0.3
"""Score from which a pixel counts as sky."""


class DepthSkyHead(DecoderHead):
    """Predict depth, and for each pixel a score of being sky, by a DPT decoder and two convolutions for each.

    The weights give no confidence. Confidence is 2 on the ground and 1 in the sky, so that sky comes last where points
    are ranked.

    Args:
        decoder: Decoder from tokens to a feature map of the images' size.
        hidden_dim: Number of channels between the two convolutions.
    """

    run_in_parts = run_view_by_view

    def __init__(self, decoder: DPTDecoder, *, hidden_dim: int = 32) -> None:
        super().__init__(decoder)
        self.hidden = nn.Conv2d(decoder.out_channels, hidden_dim, 3, padding=1)
        self.out = Float32Conv2d(hidden_dim, 1, 1)
        self.sky_hidden = nn.Conv2d(decoder.out_channels, hidden_dim, 3, padding=1)
        self.sky_out = Float32Conv2d(hidden_dim, 1, 1)

    def forward(
        self, tokens: Tokens | ProjectedTokens, maps: Sequence[str] = ("depth", "sky")
    ) -> dict[str, DenseMap | Tensor]:
        """Predict the maps of every view by itself.

        Args:
            tokens: Tokens of an encoder that kept the decoder's taps; or their projections, see `DPTDecoder`.
            maps: Names of the maps to return, "depth" and "sky".

        Returns:
            Name → map, in float32 or better: depth and confidence (B, S, H, W), and the score of sky (B, S, H, W).

        Raises:
            ValueError: If a tap wasn't kept or has another number of channels.
        """
        features = self.decoder.decode(tokens)
        views, x = features.shape[:2], features.flatten(0, 1)
        sky = self.sky_out(self.sky_hidden(x).relu()).relu()[:, 0].unflatten(0, views)
        found: dict[str, DenseMap | Tensor] = {}
        if "depth" in maps:
            depth = self.out(self.hidden(x).relu()).exp()[:, 0].unflatten(0, views)
            found["depth"] = DenseMap(depth, 1 + (sky < SKY_THRESHOLD).to(sky.dtype))
        if "sky" in maps:
            found["sky"] = sky
        return found

    def footprint(self, patch_size: int) -> HeadFootprint:
        """Return the memory that the head takes.

        Args:
            patch_size: Side of a patch in pixels.
        """
        return self.decoder.footprint(hidden_dim=self.hidden.out_channels, results=3, patch_size=patch_size)
