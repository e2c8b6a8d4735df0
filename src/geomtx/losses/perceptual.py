"""How different two pictures look to a network that was trained to tell what is in them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geomtx.checks import check_floating, check_option, check_shape
from geomtx.layers.float32 import at_least_float32
from geomtx.layers.vgg import VGGFeatures
from geomtx.types import Float

__all__ = ["PERCEPTUAL_TAPS", "PerceptualLoss"]

# relu1_2 … relu5_2, and by what the difference of each is divided.
PERCEPTUAL_TAPS = ((1, 2), (2, 2), (3, 2), (4, 2), (5, 2))
DIVISORS = (2.6, 4.8, 3.7, 5.6, 0.15)
MEANS = (123.68, 116.779, 103.939)  # of red, green and blue in 0 … 255


class PerceptualLoss(nn.Module):
    """Mean absolute difference of the pixels and of VGG-19's features, over 255 (LVSM's, Jin et al. 2025).

    Args:
        features: VGG-19 with the taps `PERCEPTUAL_TAPS` and weights that want 255 · (x - mean), red first: those of the
            original network, not the ones for pictures of unit variance. `geomtx.metrics.read_vgg` makes it of a file.

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
        """One number a picture.

        Args:
            predicted: (..., 3, H, W) in [0, 1], at least 16 pixels a side.
            true: Likewise; no gradient flows to it.

        Returns:
            (...), float32 or better.

        Raises:
            ValueError: For other shapes, smaller or integer pictures.
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
        channels = at_least_float32(x).unbind(-3)
        # Channel by channel: a tensor of constants would be copied from the host in every call.
        return torch.stack([255 * channel - mean for channel, mean in zip(channels, MEANS, strict=True)], dim=-3)
