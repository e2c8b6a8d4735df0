"""A value and a confidence a pixel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geomtx.checks import check_option
from geomtx.heads.activations import ValueActivation, activate_confidence, value_activation
from geomtx.heads.dpt import DPTDecoder
from geomtx.layers.float32 import Float32Conv2d
from geomtx.types import DenseMap, ProjectedTokens, Tokens

__all__ = ["DenseHead"]


class DenseHead(nn.Module):
    """Depth, points, colours, …: a decoder and two convolutions.

    Args:
        decoder: Tokens to a feature map of the images' size.
        value_dim: Channels of the value; 1 gives maps without a channel axis.
        activation: Of the value, "linear", "exp" or "signed_expm1".
        hidden_dim: Channels between the two convolutions.

    Raises:
        ValueError: For an unknown activation.
    """

    def __init__(
        self, decoder: DPTDecoder, value_dim: int, *, activation: ValueActivation = "linear", hidden_dim: int = 32
    ) -> None:
        super().__init__()
        check_option("activation", activation, ("linear", "exp", "signed_expm1"))
        self.decoder = decoder
        self.value_dim = value_dim
        self.activation = activation
        self.hidden_dim = hidden_dim
        self.hidden = nn.Conv2d(decoder.out_channels, hidden_dim, 3, padding=1)
        self.out = Float32Conv2d(hidden_dim, value_dim + 1, 1)

    def forward(
        self,
        tokens: Tokens | ProjectedTokens,
        *,
        view_chunk: int | None = None,
        output_device: torch.device | None = None,
    ) -> DenseMap:
        """Predict.

        Args:
            tokens: Of an encoder that kept the decoder's taps; or what `decoder.project_tap` made of them.
            view_chunk: Views to decode at a time, into outputs allocated once; None = all.
            output_device: Where the outputs are; None = where the tokens are.

        Returns:
            Value (B, S, H, W) or (B, S, H, W, value_dim), confidence (B, S, H, W), float32 or better.

        Raises:
            ValueError: If a tap wasn't kept or has another width.
        """
        return DenseMap(*self.decoder.decode(tokens, self._predict, view_chunk=view_chunk, output_device=output_device))

    def _predict(self, features: Tensor) -> tuple[Tensor, Tensor]:
        out = self.out(self.hidden(features).relu())
        value = value_activation(self.activation)(out[:, : self.value_dim])
        value = value[:, 0] if self.value_dim == 1 else value.movedim(1, -1)
        return value, activate_confidence(out[:, self.value_dim])
