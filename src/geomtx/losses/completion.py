"""CroCo's objective: hidden patches of an image from the others and another view (Weinzaepfel et al. 2022)."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor

from geomtx.checks import check_mask, check_shape
from geomtx.layers.precision import float32_island
from geomtx.losses.reduce import masked_mean
from geomtx.types import Bool, Float

__all__ = ["completion_loss"]

_EPS = 1e-6  # added to a patch's variance


@float32_island
def completion_loss(
    predicted: Float[Tensor, "n p v"],
    images: Float[Tensor, "n 3 h w"],
    hidden: Bool[Tensor, "n p"],
    *,
    normalize: bool = True,
) -> Float[Tensor, ""]:
    """Return the mean over the hidden patches of the mean squared error of their values.

    Args:
        predicted: Predicted patches, (N, P, 3 · patch²): row, column and colour of each pixel, in order.
        images: True images, normalised as the model is given them, (N, 3, H, W).
        hidden: Mask of the hidden patches, row by row, (N, P) bool.
        normalize: Whether a patch is compared with the true one less its mean and divided by its standard deviation.

    Returns:
        Loss, a scalar in float32 or better; 0 where no patch is hidden.

    Raises:
        ValueError: For shapes that don't fit each other.
    """
    check_shape("images", images, ("N", 3, "H", "W"))
    check_shape("predicted", predicted, (len(images), "P", "V"))
    check_mask("hidden", hidden, tuple(predicted.shape[:2]))
    side = math.isqrt(predicted.shape[2] // 3)
    size = predicted.shape[1] * side**2
    if 3 * side**2 != predicted.shape[2] or size != images.shape[-2] * images.shape[-1]:
        raise ValueError(
            f"predicted must have the patches of images {tuple(images.shape)}, got {tuple(predicted.shape)}"
        )
    target = rearrange(images, "n c (r h) (q w) -> n (r q) (h w c)", h=side, w=side)
    if normalize:
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        target = (target - mean) / (variance + _EPS).sqrt()
    errors = (predicted - target).square().mean(-1)
    return masked_mean(errors, hidden)
