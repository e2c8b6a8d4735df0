"""The convolutions of VGG-16 and VGG-19 (Simonyan & Zisserman 2015), as features to compare pictures by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from geomtx.checks import check_option, check_shape
from geomtx.types import Float

__all__ = ["VGGFeatures"]

_WIDTHS = (64, 128, 256, 512, 512)
_CONVOLUTIONS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGGFeatures(nn.Module):
    """Feature maps after chosen rectified layers; without weights of its own: `load_weights` takes them.

    Parameters have their common names, `features.0.weight` and so on, and never a gradient.

    Args:
        num_layers: 16 or 19.
        taps: (stage, convolution), both from 1: (3, 2) is the layer "relu3_2".

    Raises:
        ValueError: For another number of layers, or a tap that is no layer.
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
                index += 1  # the pooling
            width = _WIDTHS[stage - 1]
            convolutions[str(index)] = nn.Conv2d(channels, width, 3, padding=1)
            index, channels = index + 2, width
        self.features = nn.ModuleDict(convolutions)
        self.pool = nn.MaxPool2d(2)
        self.requires_grad_(requires_grad=False)

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copy weights by their common names; those of later layers, and of a classifier, are passed over.

        Raises:
            ValueError: For one that is missing or has another shape; then nothing has changed.
        """
        parameters = dict(self.named_parameters())
        for name, parameter in parameters.items():
            if name not in weights:
                raise ValueError(f"weights must have {name}, got none")
            check_shape(f"weights of {name}", weights[name], tuple(parameter.shape))
        for name, parameter in parameters.items():
            parameter.data.copy_(weights[name])

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> tuple[Tensor, ...]:
        """Feature maps of the taps, from early to late.

        Args:
            x: (N, 3, H, W), normalised as the weights want it; sides of at least 16 pixels.

        Raises:
            ValueError: For other shapes and smaller pictures.
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
