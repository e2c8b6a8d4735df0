"""A head that predicts a value and a confidence for every pixel."""

from __future__ import annotations

from torch import nn

from geomtx.checks import check_option
from geomtx.heads.activations import ValueActivation, activate_confidence, value_activation
from geomtx.heads.dpt import DPTDecoder
from geomtx.layers.float32 import Float32Conv2d
from geomtx.types import DenseMap, ProjectedTokens, Tokens

__all__ = ["DenseHead"]


class DenseHead(nn.Module):
    """Depth, points, normals or other maps: a DPT decoder and two convolutions.

    Args:
        decoder: Decoder from tokens to a feature map of the images' size.
        value_dim: Number of channels of the value; 1 gives maps without a channel axis.
        activation: Activation of the value: "linear", "exp" or "signed_expm1".
        hidden_dim: Number of channels between the two convolutions.

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

    def forward(self, tokens: Tokens | ProjectedTokens) -> DenseMap:
        """Predict a map for every view, each by itself.

        Args:
            tokens: Tokens of an encoder that kept the decoder's taps; or their projections, see `DPTDecoder`.

        Returns:
            Value (B, S, H, W) or (B, S, H, W, value_dim) and confidence (B, S, H, W), in float32 or better.

        Raises:
            ValueError: If a tap wasn't kept or has another width.
        """
        features = self.decoder.decode(tokens)
        out = self.out(self.hidden(features.flatten(0, 1)).relu())
        value = value_activation(self.activation)(out[:, : self.value_dim])
        value = value[:, 0] if self.value_dim == 1 else value.movedim(1, -1)
        confidence = activate_confidence(out[:, self.value_dim])
        views = features.shape[:2]
        return DenseMap(value.unflatten(0, views), confidence.unflatten(0, views))
