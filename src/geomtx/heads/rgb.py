"""A picture a view."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geomtx.heads.dpt import DPTDecoder
from geomtx.layers.float32 import Float32Conv2d
from geomtx.types import Float, ProjectedTokens, Tokens

__all__ = ["RGBHead"]


class RGBHead(nn.Module):
    """Colours in 0 … 1: a decoder, two convolutions and a sigmoid. Starts at about grey.

    Args:
        decoder: Tokens to a feature map of the images' size.
        hidden_dim: Channels between the two convolutions.
    """

    def __init__(self, decoder: DPTDecoder, *, hidden_dim: int = 32) -> None:
        super().__init__()
        self.decoder = decoder
        self.hidden_dim = hidden_dim
        self.hidden = nn.Conv2d(decoder.out_channels, hidden_dim, 3, padding=1)
        self.out = Float32Conv2d(hidden_dim, 3, 1)

    def forward(
        self,
        tokens: Tokens | ProjectedTokens,
        *,
        view_chunk: int | None = None,
        output_device: torch.device | None = None,
    ) -> Float[Tensor, "b s 3 h w"]:
        """Make the picture of every view.

        Args:
            tokens: Of an encoder that kept the decoder's taps; or what `decoder.project_tap` made of them.
            view_chunk: Views to decode at a time; None = all.
            output_device: Where the pictures are; None = where the tokens are.

        Returns:
            (B, S, 3, H, W) in [0, 1], float32 or better.

        Raises:
            ValueError: If a tap wasn't kept or has another width.
        """
        (pictures,) = self.decoder.decode(tokens, self._paint, view_chunk=view_chunk, output_device=output_device)
        return pictures

    def _paint(self, features: Tensor) -> tuple[Tensor]:
        return (self.out(self.hidden(features).relu()).sigmoid(),)
