"""Similarity of pictures: PSNR, SSIM and LPIPS (Zhang et al. 2018), whose weights are read from files."""

from __future__ import annotations

import os
from typing import Literal

import torch
from torch import Tensor, nn

from geomtx.checkpoint.tensor_file import open_tensor_file
from geomtx.checks import check_floating, check_positive, check_shape
from geomtx.files import user_path
from geomtx.losses.perceptual import VGGFeatures
from geomtx.losses.rendering import gaussian_similarity
from geomtx.types import Float

__all__ = [
    "LPIPS",
    "psnr",
    "read_tensors",
    "read_vgg",
    "ssim",
]


def psnr(
    predicted: Float[Tensor, "*batch c h w"], true: Float[Tensor, "*batch c h w"], *, max_value: float = 1.0
) -> Float[Tensor, "*batch"]:
    """Peak signal-to-noise ratio of every image, decibels: 10 · log₁₀(max_value² / mean squared error).

    Args:
        predicted: (..., C, H, W) in [0, max_value].
        true: (..., C, H, W).
        max_value: White.

    Returns:
        (...), one number an image (a mean over images is not the PSNR of a mean); inf for equal images, NaN where an
        image has NaN.

    Raises:
        ValueError: For other shapes, integer images, or a `max_value` that is not positive.
    """
    _check_images(predicted, true, max_value)
    error = (predicted.double() - true.double()).square().mean((-3, -2, -1))
    return 10 * torch.log10(max_value**2 / error)


def ssim(
    predicted: Float[Tensor, "*batch c h w"], true: Float[Tensor, "*batch c h w"], *, max_value: float = 1.0
) -> Float[Tensor, "*batch"]:
    """Structural similarity of every image (Wang et al., 2004): Gaussian window of 11×11 pixels with σ = 1.5.

    The mean over channels and over the windows that lie inside the image, as in the published code.

    Args:
        predicted: (..., C, H, W) in [0, max_value], H and W at least 11.
        true: (..., C, H, W).
        max_value: White.

    Returns:
        (...) in [-1, 1], one number an image, float64; NaN where an image has NaN.

    Raises:
        ValueError: For other shapes, smaller or integer images, or a `max_value` that is not positive.
    """
    _check_images(predicted, true, max_value)
    return gaussian_similarity(predicted.double() / max_value, true.double() / max_value)


def _check_images(predicted: Tensor, true: Tensor, max_value: float) -> None:
    check_shape("predicted", predicted, ("...", "C", "H", "W"))
    check_shape("true", true, tuple(predicted.shape))
    check_floating("predicted", predicted)
    check_floating("true", true)
    check_positive("max_value", max_value)


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """All tensors of a .safetensors file or a pickle without code, by name, on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is broken or something else.
    """
    if not user_path(path).is_file():
        raise FileNotFoundError(f"weights must be a file, got '{path}', which is none")
    file = open_tensor_file(user_path(path))
    # Copies: what is read may be the file itself.
    return {name: tensor.clone() for name, tensor in file.read(list(file.shapes))}


def read_vgg(
    path: str | os.PathLike[str], num_layers: Literal[16, 19], taps: tuple[tuple[int, int], ...]
) -> VGGFeatures:
    """VGG-16 or VGG-19 with the weights of a file, `features.0.weight` and so on.

    Args:
        path: A .safetensors file or a pickle without code.
        num_layers: 16 or 19.
        taps: See `VGGFeatures`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is broken, or not of that network.
    """
    network = VGGFeatures(num_layers, taps)
    try:
        network.load_weights(read_tensors(path))
    except ValueError as error:
        raise ValueError(f"{path} must hold the weights of VGG-{num_layers}: {error}") from error
    return network.eval()


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
