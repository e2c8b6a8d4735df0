"""Heads with one prediction for each pixel: maps with a confidence, and images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from geomtx.checks import check_option, check_positive
from geomtx.heads.dpt import DPTDecoder, HeadFootprint
from geomtx.layers.precision import Float32Conv2d
from geomtx.types import DenseMap, Float, ProjectedTokens, Tokens

__all__ = [
    "DenseHead",
    "MapHead",
    "PixelShuffleHead",
    "RGBHead",
    "ValueActivation",
    "activate_confidence",
    "value_activation",
]

ValueActivation = Literal["linear", "exp", "signed_expm1"]
"""Activation of a dense head's value: "exp" suits depth, "signed_expm1" points."""


def signed_expm1(x: Tensor) -> Tensor:
    """Return sign(x) · (exp|x| - 1), which is linear around zero and exponential far from it."""
    return x.sign() * x.abs().expm1()


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "exp": torch.exp,
    "signed_expm1": signed_expm1,
}


def value_activation(name: ValueActivation) -> Callable[[Tensor], Tensor]:
    """Return the activation of a name: "linear", "exp" or "signed_expm1"."""
    return _ACTIVATIONS[name]


def activate_confidence(x: Tensor) -> Tensor:
    """Return the confidence 1 + exp(x), which is above 1 and has no upper bound (DUSt3R, Wang et al. 2024)."""
    return 1 + x.exp()


class MapHead(nn.Module):
    """Base of heads that predict maps with a confidence from the features of a DPT decoder; a subclass has `raw`.

    Args:
        decoder: Decoder from tokens to a feature map.
        value_dim: Number of channels of the value; 1 gives maps without a channel axis.
        activation: Activation of the value: "linear", "exp" or "signed_expm1".

    Raises:
        ValueError: If the activation is unknown.
    """

    hidden_dim = 0
    """Number of channels of maps of the images' size before the last convolution."""

    def __init__(self, decoder: DPTDecoder, value_dim: int, *, activation: ValueActivation = "linear") -> None:
        super().__init__()
        check_option("activation", activation, ("linear", "exp", "signed_expm1"))
        self.decoder = decoder
        self.value_dim = value_dim
        self.activation = activation

    def forward(self, tokens: Tokens | ProjectedTokens) -> DenseMap:
        """Predict the map of every view by itself.

        Args:
            tokens: Tokens of an encoder that kept the decoder's taps; or their projections, see `DPTDecoder`.

        Returns:
            Value (B, S, H, W) or (B, S, H, W, value_dim) and confidence (B, S, H, W), in float32 or better.

        Raises:
            ValueError: If a tap wasn't kept or has another number of channels.
        """
        features = self.decoder.decode(tokens)
        value, log_confidence = self.raw(features.flatten(0, 1))
        value = value_activation(self.activation)(value)
        value = value[:, 0] if self.value_dim == 1 else value.movedim(1, -1)
        confidence = activate_confidence(log_confidence[:, 0])
        views = features.shape[:2]
        return DenseMap(value.unflatten(0, views), confidence.unflatten(0, views))

    def raw(self, features: Float[Tensor, "n c _ _"]) -> tuple[Float[Tensor, "n v h w"], Float[Tensor, "n 1 h w"]]:
        """Return the value before its activation, and the logarithm of the confidence less 1.

        Args:
            features: Feature maps of N views, (N, C, ·, ·).
        """
        raise NotImplementedError

    def footprint(self, patch_size: int) -> HeadFootprint:
        """Return the memory that the head takes.

        Args:
            patch_size: Side of a patch in pixels.
        """
        return self.decoder.footprint(hidden_dim=self.hidden_dim, results=self.value_dim + 1, patch_size=patch_size)


class DenseHead(MapHead):
    """Predict depth, points, normals or other maps with a confidence, by a DPT decoder and two convolutions.

    Args:
        decoder: Decoder from tokens to a feature map of the images' size.
        value_dim: Number of channels of the value; 1 gives maps without a channel axis.
        activation: Activation of the value: "linear", "exp" or "signed_expm1".
        hidden_dim: Number of channels between the two convolutions.

    Raises:
        ValueError: If the activation is unknown.
    """

    def __init__(
        self, decoder: DPTDecoder, value_dim: int, *, activation: ValueActivation = "linear", hidden_dim: int = 32
    ) -> None:
        super().__init__(decoder, value_dim, activation=activation)
        self.hidden_dim = hidden_dim
        self.hidden = nn.Conv2d(decoder.out_channels, hidden_dim, 3, padding=1)
        self.out = Float32Conv2d(hidden_dim, value_dim + 1, 1)

    def raw(self, features: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n v h w"], Float[Tensor, "n 1 h w"]]:
        """Return the value before its activation, and the logarithm of the confidence less 1.

        Args:
            features: Feature maps of N views, (N, C, H, W).
        """
        out = self.out(self.hidden(features).relu())
        return out[:, : self.value_dim], out[:, self.value_dim :]


class PixelShuffleHead(MapHead):
    """Predict maps with a confidence from smaller feature maps: one 1x1 convolution each, and pixel shuffle.

    Nothing is computed at the images' size (sub-pixel convolution, Shi et al. 2016; as in VGGT-Omega).

    Args:
        decoder: Decoder from tokens to a feature map, for instance `DPTDecoder(…, stride=None)`.
        value_dim: Number of channels of the value; 1 gives maps without a channel axis.
        activation: Activation of the value: "linear", "exp" or "signed_expm1".
        factor: Side in pixels of the image of a pixel of the feature map: a quarter of the patch without a stride.

    Raises:
        ValueError: If the activation is unknown.
    """

    def __init__(
        self, decoder: DPTDecoder, value_dim: int, *, activation: ValueActivation = "linear", factor: int = 4
    ) -> None:
        super().__init__(decoder, value_dim, activation=activation)
        check_positive("factor", factor)
        self.factor = factor
        self.value = Float32Conv2d(decoder.out_channels, value_dim * factor**2, 1)
        self.confidence = Float32Conv2d(decoder.out_channels, factor**2, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with the confidence 1.05 everywhere."""
        nn.init.zeros_(self.confidence.weight)
        if self.confidence.bias is not None:
            nn.init.constant_(self.confidence.bias, math.log(0.05))

    def raw(self, features: Float[Tensor, "n c _ _"]) -> tuple[Float[Tensor, "n v h w"], Float[Tensor, "n 1 h w"]]:
        """Return the value before its activation, and the logarithm of the confidence less 1.

        Args:
            features: Feature maps of N views, (N, C, H / factor, W / factor).
        """
        value = nn.functional.pixel_shuffle(self.value(features), self.factor)
        return value, nn.functional.pixel_shuffle(self.confidence(features), self.factor)


class RGBHead(nn.Module):
    """Predict colours in [0, 1] by a DPT decoder, two convolutions and a sigmoid.

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
        """Predict the image of every view by itself.

        Args:
            tokens: Tokens of an encoder that kept the decoder's taps; or their projections, see `DPTDecoder`.

        Returns:
            Colours in [0, 1], (B, S, 3, H, W), in float32 or better.

        Raises:
            ValueError: If a tap wasn't kept or has another number of channels.
        """
        features = self.decoder.decode(tokens)
        colors = self.out(self.hidden(features.flatten(0, 1)).relu()).sigmoid()
        return colors.unflatten(0, features.shape[:2])

    def footprint(self, patch_size: int) -> HeadFootprint:
        """Return the memory that the head takes.

        Args:
            patch_size: Side of a patch in pixels.
        """
        return self.decoder.footprint(hidden_dim=self.hidden_dim, results=3, patch_size=patch_size)
