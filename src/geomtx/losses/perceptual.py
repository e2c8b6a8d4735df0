"""Perceptual loss: distance of two images in the features of VGG-16 or VGG-19 (Simonyan & Zisserman 2015)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from geomtx.checks import check_floating, check_option, check_shape
from geomtx.layers.precision import at_least_float32
from geomtx.types import Float

__all__ = [
    "PERCEPTUAL_TAPS",
    "PerceptualLoss",
    "VGGFeatures",
]

_WIDTHS = (64, 128, 256, 512, 512)
_CONVOLUTIONS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGGFeatures(nn.Module):
    """Feature maps of VGG after chosen rectified layers. `load_weights` loads pretrained weights.

    Parameters have their common names (`features.0.weight`, …) and no gradient.

    Args:
        num_layers: Number of layers of the network, 16 or 19.
        taps: Layers to return as (stage, convolution), both counted from 1: (3, 2) is the layer "relu3_2".

    Raises:
        ValueError: For another number of layers, or a tap that isn't a layer.
    """

    def __init__(self, num_layers: Literal[16, 19], taps: tuple[tuple[int, int], ...]) -> None:
        super().__init__()
        check_option("num_layers", num_layers, _CONVOLUTIONS)
        counts = _CONVOLUTIONS[num_layers]
        layers = [(stage + 1, i + 1) for stage, count in enumerate(counts) for i in range(count)]
        for tap in taps:
            check_option("tap", tap, layers)
        self.taps = tuple(sorted(taps))
        self.layers = tuple(layer for layer in layers if layer <= max(self.taps))
        convolutions: dict[str, nn.Module] = {}
        index, channels = 0, 3
        for stage, i in self.layers:
            if i == 1 and stage > 1:
                index += 1  # index of the pooling layer
            width = _WIDTHS[stage - 1]
            convolutions[str(index)] = nn.Conv2d(channels, width, 3, padding=1)
            index, channels = index + 2, width
        self.features = nn.ModuleDict(convolutions)
        self.pool = nn.MaxPool2d(2)
        self.requires_grad_(requires_grad=False)

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copy weights by their common names; those of later layers and of the classifier are ignored.

        Args:
            weights: Tensors by name, `features.0.weight` and so on.

        Raises:
            ValueError: For a tensor that is missing or has another shape; then no weight is changed.
        """
        parameters = dict(self.named_parameters())
        for name, parameter in parameters.items():
            if name not in weights:
                raise ValueError(f"weights must have {name}, got none")
            check_shape(f"weights of {name}", weights[name], tuple(parameter.shape))
        for name, parameter in parameters.items():
            parameter.data.copy_(weights[name])

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> tuple[Tensor, ...]:
        """Compute the feature maps of the taps.

        Args:
            x: Images, (N, 3, H, W), normalised as the weights require, at least 16 pixels high and wide.

        Returns:
            One feature map (N, C, H', W') for every tap, in the order of the layers.

        Raises:
            ValueError: For other shapes or smaller images.
        """
        check_shape("x", x, ("N", 3, "H", "W"))
        if min(x.shape[-2:]) < 16:
            raise ValueError(f"x must have at least 16 pixels a side, got {tuple(x.shape[-2:])}")
        maps = []
        for (stage, i), convolution in zip(self.layers, self.features.values(), strict=True):
            if i == 1 and stage > 1:
                x = self.pool(x)
            x = convolution(x).relu()
            if (stage, i) in self.taps:
                maps.append(x)
        return tuple(maps)


# Layers relu1_2 … relu5_2, and the divisor of the difference of each.
PERCEPTUAL_TAPS = ((1, 2), (2, 2), (3, 2), (4, 2), (5, 2))
DIVISORS = (2.6, 4.8, 3.7, 5.6, 0.15)
MEANS = (123.68, 116.779, 103.939)  # means of red, green and blue in 0 … 255


class PerceptualLoss(nn.Module):
    """Mean absolute difference of pixels and of VGG-19 features, divided by 255 (LVSM, Jin et al. 2025).

    Args:
        features: VGG-19 with the taps `PERCEPTUAL_TAPS` and the weights of the original network, which expects
            255 · (x - mean) in RGB order, not the weights for images of unit variance. `geomtx.metrics.read_vgg` loads
            it from a file.

    Raises:
        ValueError: For other taps.
    """

    def __init__(self, features: VGGFeatures) -> None:
        super().__init__()
        check_option("features.taps", features.taps, (PERCEPTUAL_TAPS,))
        self.features = features

    def forward(
        self, predicted: Float[Tensor, "*batch 3 h w"], true: Float[Tensor, "*batch 3 h w"]
    ) -> Float[Tensor, "*batch"]:
        """Compute the perceptual distance of image pairs.

        Args:
            predicted: Predicted images in [0, 1], (…, 3, H, W), at least 16 pixels high and wide.
            true: True images, same shape. No gradient flows to them.

        Returns:
            Distance of every pair, (…), float32 or float64.

        Raises:
            ValueError: For other shapes, smaller or integer images.
        """
        check_shape("predicted", predicted, ("...", 3, "H", "W"))
        check_shape("true", true, tuple(predicted.shape))
        check_floating("true", true)
        batch = predicted.shape[:-3]
        with torch.autocast(predicted.device.type, enabled=False):
            a, b = (self._centre(x).reshape(-1, *x.shape[-3:]) for x in (predicted, true.detach()))
            total = (a - b).abs().mean((1, 2, 3))
            with torch.no_grad():
                wanted = self.features(b)
            for got, want, divisor in zip(self.features(a), wanted, DIVISORS, strict=True):
                total = total + (got - want).abs().mean((1, 2, 3)) / divisor
            return (total / 255).reshape(batch)

    def _centre(self, x: Tensor) -> Tensor:
        """Return images in 0 … 255 minus the channel means of the original network."""
        channels = at_least_float32(x).unbind(-3)
        # A tensor of the means would be copied from the host in every call.
        return torch.stack([255 * channel - mean for channel, mean in zip(channels, MEANS, strict=True)], dim=-3)
