"""Image similarity: PSNR, SSIM and LPIPS (Zhang et al. 2018), whose weights are read from files."""

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
    """Compute the peak signal-to-noise ratio of every image, 10 · log₁₀(max_value² / mean squared error).

    Args:
        predicted: Predicted images in [0, max_value], (…, C, H, W).
        true: True images, same shape.
        max_value: Value of white, positive. Defaults to 1.

    Returns:
        PSNR of every image, (…), decibels, float64; infinite for equal images, NaN where an image has NaN. The mean
        over images is not the PSNR of the mean error.

    Raises:
        ValueError: For other shapes, integer images, or a `max_value` that is not positive.
    """
    _check_images(predicted, true, max_value)
    error = (predicted.double() - true.double()).square().mean((-3, -2, -1))
    return 10 * torch.log10(max_value**2 / error)


def ssim(
    predicted: Float[Tensor, "*batch c h w"], true: Float[Tensor, "*batch c h w"], *, max_value: float = 1.0
) -> Float[Tensor, "*batch"]:
    """Compute the SSIM of every image with a Gaussian window of 11×11 pixels and σ = 1.5 (Wang et al. 2004).

    The result is the mean over channels and over the windows inside the image, as in the published code.

    Args:
        predicted: Predicted images in [0, max_value], (…, C, H, W), at least 11 pixels high and wide.
        true: True images, same shape.
        max_value: Value of white, positive. Defaults to 1.

    Returns:
        SSIM of every image, (…), in [-1, 1], float64; NaN where an image has NaN.

    Raises:
        ValueError: For other shapes, smaller or integer images, or a `max_value` that is not positive.
    """
    _check_images(predicted, true, max_value)
    return gaussian_similarity(predicted.double() / max_value, true.double() / max_value)


def _check_images(predicted: Tensor, true: Tensor, max_value: float) -> None:
    """Check the shapes, dtypes and value range of two images."""
    check_shape("predicted", predicted, ("...", "C", "H", "W"))
    check_shape("true", true, tuple(predicted.shape))
    check_floating("predicted", predicted)
    check_floating("true", true)
    check_positive("max_value", max_value)


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read all tensors of a .safetensors file, or of a pickle that runs no code.

    Args:
        path: Path of the file.

    Returns:
        Tensors on the CPU by name.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or of another format.
    """
    if not user_path(path).is_file():
        raise FileNotFoundError(f"weights must be a file, got '{path}', which is none")
    file = open_tensor_file(user_path(path))
    # Tensors may be memory maps of the file, hence the copies.
    return {name: tensor.clone() for name, tensor in file.read(list(file.shapes))}


def read_vgg(
    path: str | os.PathLike[str], num_layers: Literal[16, 19], taps: tuple[tuple[int, int], ...]
) -> VGGFeatures:
    """Load VGG-16 or VGG-19 with the weights of a file.

    Args:
        path: Path of a .safetensors file, or of a pickle that runs no code, with tensors named `features.0.weight`, ….
        num_layers: Number of layers of the network, 16 or 19.
        taps: Layers to return as (stage, convolution), see `VGGFeatures`.

    Returns:
        The network in evaluation mode, on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or belongs to another network.
    """
    network = VGGFeatures(num_layers, taps)
    try:
        network.load_weights(read_tensors(path))
    except ValueError as error:
        raise ValueError(f"{path} must hold the weights of VGG-{num_layers}: {error}") from error
    return network.eval()


TAPS = ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3))
WIDTHS = (64, 128, 256, 512, 512)
# ImageNet's mean and standard deviation in the published code, for images in -1 … 1.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)


class LPIPS(nn.Module):
    """Learned perceptual similarity: weighted squared distance of normalised VGG-16 features, version 0.1.

    Args:
        vgg: Path of the weights of VGG-16, trained on ImageNet with images of unit variance (`features.0.weight`, …).
        linear: Path of the weights of the channels, `lin0.model.1.weight` to `lin4.model.1.weight`; the file `vgg.pth`
            of the package lpips.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file is damaged or holds other weights.
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
        """Compute the distance of image pairs; differentiable.

        Args:
            predicted: Predicted images in [0, 1], (…, 3, H, W), at least 16 pixels high and wide.
            true: True images, same shape.

        Returns:
            Distance of every pair, (…), 0 for equal images.

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
        """Return the feature maps of images (N, 3, H, W), normalised to length 1 over the channels."""
        channels = (2 * images.float() - 1).unbind(1)
        scaled = [(x - shift) / scale for x, shift, scale in zip(channels, SHIFT, SCALE, strict=True)]
        maps = self.features(torch.stack(scaled, dim=1))
        # A zero feature stays zero, with a finite gradient.
        return [x / (torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=1e-10)) for x in maps]
