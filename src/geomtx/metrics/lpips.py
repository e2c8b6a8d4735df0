"""LPIPS: how different two pictures look (Zhang et al. 2018), from weights in files."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from geomtx.checks import check_shape
from geomtx.metrics.perceptual_file import read_tensors, read_vgg
from geomtx.types import Float

__all__ = ["LPIPS"]

TAPS = ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3))
WIDTHS = (64, 128, 256, 512, 512)
# What the published code takes ImageNet's mean and deviation for, on pictures in -1 … 1.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)


class LPIPS(nn.Module):
    """Weighted squared distances of VGG-16's features, each of unit length, averaged over the picture; version 0.1.

    Args:
        vgg: File of VGG-16 as trained on ImageNet with pictures of unit variance, `features.0.weight` and so on.
        linear: File of the weights of the channels, `lin0.model.1.weight` to `lin4.model.1.weight`; `vgg.pth` in the
            package lpips.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If one is broken or of something else.
    """

    def __init__(self, vgg: str | os.PathLike[str], linear: str | os.PathLike[str]) -> None:
        super().__init__()
        self.features = read_vgg(vgg, 16, TAPS)
        tensors = read_tensors(linear)
        weights = []
        for index, width in enumerate(WIDTHS):
            name = f"lin{index}.model.1.weight"
            if name not in tensors:
                raise ValueError(f"{linear} must hold LPIPS's weights of channels, got no {name}")
            check_shape(f"{linear}: {name}", tensors[name], (1, width, 1, 1))
            weights.append(nn.Parameter(tensors[name].float(), requires_grad=False))
        self.weights = nn.ParameterList(weights)

    def forward(
        self, predicted: Float[Tensor, "*batch 3 h w"], true: Float[Tensor, "*batch 3 h w"]
    ) -> Float[Tensor, "*batch"]:
        """One number a picture, 0 for equal ones; differentiable.

        Args:
            predicted: (..., 3, H, W) in [0, 1], at least 16 pixels a side.
            true: Likewise.

        Raises:
            ValueError: For other shapes.
        """
        check_shape("predicted", predicted, ("...", 3, "H", "W"))
        check_shape("true", true, tuple(predicted.shape))
        batch = predicted.shape[:-3]
        with torch.autocast(predicted.device.type, enabled=False):
            pair = [self._describe(x.reshape(-1, *x.shape[-3:])) for x in (predicted, true)]
            total = torch.zeros((), device=predicted.device)
            for weight, a, b in zip(self.weights, *pair, strict=True):
                total = total + (weight * (a - b).square()).sum(1).mean((1, 2))
        return total.reshape(batch)

    def _describe(self, images: Tensor) -> list[Tensor]:
        channels = (2 * images.float() - 1).unbind(1)
        scaled = [(x - shift) / scale for x, shift, scale in zip(channels, SHIFT, SCALE, strict=True)]
        maps = self.features(torch.stack(scaled, dim=1))
        # A map of nothing stays nothing, with a finite gradient.
        return [x / (torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=1e-10)) for x in maps]
