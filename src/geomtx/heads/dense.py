"""Heads with one prediction for each pixel: maps with a confidence, and images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from geomtx.checks import check_option, check_positive
from geomtx.heads.dpt import DecoderHead, DPTDecoder
from geomtx.heads.head import Head, HeadFootprint, run_view_by_view
from geomtx.heads.token_decoder import PixelShuffle
from geomtx.layers.precision import Float32Conv2d
from geomtx.types import DenseMap, Float, ProjectedTokens, Tokens

__all__ = [
    "DenseHead",
    "DescriptorHead",
    "LinearMapHead",
    "MapHead",
    "PixelShuffleHead",
    "RGBHead",
    "ValueActivation",
    "activate_confidence",
    "activate_map",
    "value_activation",
]

ValueActivation = Literal["linear", "exp", "signed_expm1", "norm_expm1"]
"""Activation of a dense head's value: "exp" suits depth, "signed_expm1" and "norm_expm1" points."""


def signed_expm1(x: Tensor) -> Tensor:
    """Return sign(x) · (exp|x| - 1), which is linear around zero and exponential far from it."""
    return x.sign() * x.abs().expm1()


def norm_expm1(x: Tensor) -> Tensor:
    """Return x · (exp‖x‖ - 1) / ‖x‖ of vectors along axis 1: the same in all directions (DUSt3R, Wang et al. 2024)."""
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / length.clamp(min=1e-8) * length.expm1()


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "exp": torch.exp,
    "signed_expm1": signed_expm1,
    "norm_expm1": norm_expm1,
}


def value_activation(name: ValueActivation) -> Callable[[Tensor], Tensor]:
    """Return the activation of a name, a function of maps (N, C, H, W).

    Raises:
        ValueError: If the name is unknown.
    """
    check_option("activation", name, _ACTIVATIONS)
    return _ACTIVATIONS[name]


def activate_confidence(x: Tensor) -> Tensor:
    """Return the confidence 1 + exp(x), which is above 1 and has no upper bound (DUSt3R, Wang et al. 2024)."""
    return 1 + x.exp()


def activate_map(
    value: Float[Tensor, "n v h w"],
    log_confidence: Float[Tensor, "n 1 h w"],
    activation: ValueActivation,
    views: Sequence[int],
) -> DenseMap:
    """Return the map of values before their activation, (B, S, H, W) or (B, S, H, W, V).

    Args:
        value: Values of N views, (N, V, H, W).
        log_confidence: Logarithm of the confidence less 1, (N, 1, H, W).
        activation: Activation of the values.
        views: Numbers of scenes and of views of a scene, (B, S).
    """
    value = value_activation(activation)(value)
    value = value[:, 0] if value.shape[1] == 1 else value.movedim(1, -1)
    confidence = activate_confidence(log_confidence[:, 0])
    return DenseMap(value.unflatten(0, views), confidence.unflatten(0, views))


class MapHead(DecoderHead):
    """Base of heads that predict maps with a confidence from the features of a DPT decoder; a subclass has `raw`.

    Args:
        decoder: Decoder from tokens to a feature map.
        value_dim: Number of channels of the value; 1 gives maps without a channel axis.
        activation: Activation of the value, see `ValueActivation`.

    Raises:
        ValueError: If the activation is unknown.
    """

    run_in_parts = run_view_by_view
    hidden_dim = 0
    """Number of channels of maps of the images' size before the last convolution."""

    def __init__(self, decoder: DPTDecoder, value_dim: int, *, activation: ValueActivation = "linear") -> None:
        super().__init__(decoder)
        value_activation(activation)
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
        return activate_map(*self.raw(features.flatten(0, 1)), self.activation, features.shape[:2])

    def raw(self, features: Float[Tensor, "n c _ _"]) -> tuple[Float[Tensor, "n v h w"], Float[Tensor, "n 1 h w"]]:
        """Return the value before its activation, and the logarithm of the confidence less 1.

        Args:
            features: Feature maps of N views, (N, C, ·, ·).
        """
        raise NotImplementedError


class DenseHead(MapHead):
    """Predict depth, points, normals or other maps with a confidence, by a DPT decoder and two convolutions.

    Args:
        decoder: Decoder from tokens to a feature map of the images' size.
        value_dim: Number of channels of the value; 1 gives maps without a channel axis.
        activation: Activation of the value, see `ValueActivation`.
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

    def footprint(self, patch_size: int) -> HeadFootprint:
        """Return the memory that the head takes.

        Args:
            patch_size: Side of a patch in pixels.
        """
        return self.decoder.footprint(hidden_dim=self.hidden_dim, results=self.value_dim + 1, patch_size=patch_size)


class PixelShuffleHead(MapHead):
    """Predict maps with a confidence from smaller feature maps: one 1x1 convolution each, and pixel shuffle.

    Nothing is computed at the images' size (sub-pixel convolution, Shi et al. 2016; as in VGGT-Omega).

    Args:
        decoder: Decoder from tokens to a feature map, for instance `DPTDecoder(…, stride=None)`.
        value_dim: Number of channels of the value; 1 gives maps without a channel axis.
        activation: Activation of the value, see `ValueActivation`.
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

    def footprint(self, patch_size: int) -> HeadFootprint:
        """Return the memory that the head takes.

        Args:
            patch_size: Side of a patch in pixels.
        """
        found = self.decoder.footprint(results=self.value_dim + 1, patch_size=patch_size)
        # In float32 beside the features: these, and the maps before and after the shuffle.
        maps = 2 * (self.decoder.out_channels / self.factor**2 + 3 * (self.value_dim + 1))
        return found._replace(decoding=found.decoding + maps)


class LinearMapHead(Head):
    """Predict maps with a confidence from patch tokens by one linear layer and pixel shuffle (DUSt3R's linear head).

    Args:
        dim: Number of channels C of the tokens.
        value_dim: Number of channels of the value; 1 gives maps without a channel axis.
        layer: Index of the encoder's layer to read.
        activation: Activation of the value, see `ValueActivation`.
        patch_size: Side of a patch in pixels.

    Raises:
        ValueError: If the activation is unknown.
    """

    run_in_parts = run_view_by_view

    def __init__(
        self, dim: int, value_dim: int, *, layer: int, activation: ValueActivation = "linear", patch_size: int = 16
    ) -> None:
        super().__init__()
        value_activation(activation)
        self.value_dim = value_dim
        self.layer = layer
        self.activation = activation
        self.out = PixelShuffle(dim, value_dim + 1, patch_size=patch_size)

    def layers_read(self, taps: tuple[int, ...]) -> tuple[int, ...]:
        """Return the one layer that the head reads.

        Args:
            taps: Indices of the encoder's layers.
        """
        return (self.layer,)

    def forward(self, tokens: Tokens) -> DenseMap:
        """Predict the map of every view by itself, as `MapHead.forward`.

        Args:
            tokens: Tokens of an encoder that kept the layer.
        """
        patches = tokens.layer(self.layer)[:, :, tokens.num_special :]
        out = self.out(patches.flatten(0, 1), tokens.grid_hw, tokens.image_hw)
        return activate_map(out[:, : self.value_dim], out[:, self.value_dim :], self.activation, tokens.views)


class DescriptorHead(Head):
    """Predict a descriptor of unit length for each pixel, by which pixels of two images are matched (MASt3R).

    An MLP on the patch tokens of several layers, and pixel shuffle.

    Args:
        dim: Number of channels of the tokens of all layers together.
        descriptor_dim: Number of channels D of the descriptors.
        layers: Indices of the encoder's layers whose tokens are concatenated.
        patch_size: Side of a patch in pixels.
        mlp_ratio: Number of hidden channels of the MLP, divided by `dim`.
    """

    run_in_parts = run_view_by_view

    def __init__(
        self,
        dim: int,
        descriptor_dim: int = 24,
        *,
        layers: tuple[int, ...] = (0, 12),
        patch_size: int = 16,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.descriptor_dim = descriptor_dim
        self.hidden = nn.Linear(dim, int(dim * mlp_ratio))
        self.activation = nn.GELU()
        self.out = PixelShuffle(int(dim * mlp_ratio), descriptor_dim + 1, patch_size=patch_size)

    def layers_read(self, taps: tuple[int, ...]) -> tuple[int, ...]:
        """Return the layers whose tokens are concatenated.

        Args:
            taps: Indices of the encoder's layers.
        """
        return self.layers

    def forward(self, tokens: Tokens) -> DenseMap:
        """Predict the descriptors of every view by itself.

        Args:
            tokens: Tokens of an encoder that kept the layers.

        Returns:
            Descriptors (B, S, H, W, D) of unit length and confidence (B, S, H, W), above 0, in float32 or better.

        Raises:
            ValueError: If a layer wasn't kept.
        """
        patches = [tokens.layer(index)[:, :, tokens.num_special :] for index in self.layers]
        hidden = self.activation(self.hidden(torch.cat(patches, dim=-1).flatten(0, 1)))
        out: Tensor = self.out(hidden, tokens.grid_hw, tokens.image_hw).unflatten(0, tokens.views)
        descriptors = nn.functional.normalize(out[:, :, : self.descriptor_dim], dim=2, eps=1e-8)
        return DenseMap(descriptors.movedim(2, -1), out[:, :, self.descriptor_dim].exp())


class RGBHead(DecoderHead):
    """Predict colours in [0, 1] by a DPT decoder, two convolutions and a sigmoid.

    Args:
        decoder: Decoder from tokens to a feature map of the images' size.
        hidden_dim: Number of channels between the two convolutions.
    """

    run_in_parts = run_view_by_view

    def __init__(self, decoder: DPTDecoder, *, hidden_dim: int = 32) -> None:
        super().__init__(decoder)
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
