"""A head that predicts the colours of every view."""

from __future__ import annotations

from torch import Tensor, nn

from geomtx.heads.dpt import DPTDecoder
from geomtx.layers.float32 import Float32Conv2d
from geomtx.types import Float, ProjectedTokens, Tokens

__all__ = ["RGBHead"]


class RGBHead(nn.Module):
    """Colours in [0, 1]: a DPT decoder, two convolutions and a sigmoid. Starts at about grey.

    Args:
        decoder: Decoder from tokens to a feature map of the images' size.
        hidden_dim: Number of channels between the two convolutions.
    """

    def __init__(self, decoder: DPTDecoder, *, hidden_dim: int = 32) -> None:
        super().__init__()
        self.decoder = decoder
        self.hidden_dim = hidden_dim
        self.hidden = nn.Conv2d(decoder.out_channels, hidden_dim, 3, padding=1)
        self.out = Float32Conv2d(hidden_dim, 3, 1)

    def forward(self, tokens: Tokens | ProjectedTokens) -> Float[Tensor, "b s 3 h w"]:
        """Predict the image of every view.

        Args:
            tokens: Tokens of an encoder that kept the decoder's taps; or their projections, see `DPTDecoder`.

        Returns:
            Colours in [0, 1], (B, S, 3, H, W), in float32 or better.

        Raises:
            ValueError: If a tap wasn't kept or has another width.
        """
        features = self.decoder.decode(tokens)
        colors = self.out(self.hidden(features.flatten(0, 1)).relu()).sigmoid()
        return colors.unflatten(0, features.shape[:2])
