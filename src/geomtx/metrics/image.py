"""How alike two images are."""

from __future__ import annotations

import torch
from torch import Tensor

from geomtx.checks import check_floating, check_positive, check_shape
from geomtx.losses.rendering import gaussian_similarity
from geomtx.types import Float

__all__ = ["psnr", "ssim"]


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
