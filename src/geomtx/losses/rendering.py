"""Losses of pictures that a model makes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geomtx.checks import check_at_least, check_floating, check_mask, check_shape
from geomtx.layers.precision import at_least_float32
from geomtx.losses.perceptual import PerceptualLoss
from geomtx.losses.reduce import counting, masked_mean, over_batch, select, weigh
from geomtx.losses.terms import TermLoss
from geomtx.types import Bool, Float

__all__ = ["RenderingLoss", "gaussian_similarity"]

WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2


def gaussian_similarity(
    predicted: Float[Tensor, "*batch c h w"], true: Float[Tensor, "*batch c h w"]
) -> Float[Tensor, "*batch"]:
    """SSIM with Gaussian windows of 11x11 pixels, σ = 1.5 (Wang et al. 2004); differentiable.

    Mean over channels and over the windows that lie inside. `geomtx.metrics.ssim` is this in float64.

    Args:
        predicted: (..., C, H, W) in [0, 1], H and W at least 11.
        true: (..., C, H, W).

    Returns:
        (...) in [-1, 1], float32 or better.

    Raises:
        ValueError: For other shapes, smaller or integer pictures.
    """
    check_shape("predicted", predicted, ("...", "C", "H", "W"))
    check_shape("true", true, tuple(predicted.shape))
    check_floating("true", true)
    if min(predicted.shape[-2:]) < WINDOW:
        raise ValueError(f"predicted must have at least {WINDOW} pixels a side, got {tuple(predicted.shape[-2:])}")
    batch = predicted.shape[:-3]
    with torch.autocast(predicted.device.type, enabled=False):
        a, b = (at_least_float32(x).reshape(-1, 1, *x.shape[-2:]) for x in (predicted, true))
        mean_a, mean_b = _blur(a), _blur(b)
        var_a, var_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
        covariance = _blur(a * b) - mean_a * mean_b
        similarity = (2 * mean_a * mean_b + C1) * (2 * covariance + C2)
        similarity = similarity / ((mean_a**2 + mean_b**2 + C1) * (var_a + var_b + C2))
        return similarity.reshape(*batch, -1).mean(-1)


def _blur(x: Tensor) -> Tensor:
    """Gaussian means of (N, 1, H, W) over the windows that lie inside."""
    offsets = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    kernel = torch.exp(-offsets.square() / (2 * SIGMA**2))
    kernel = kernel / kernel.sum()
    return F.conv2d(F.conv2d(x, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))


def _chroma(images: Float[Tensor, "*batch 3 h w"]) -> Float[Tensor, "*batch 2 h w"]:
    """What pictures have beside light and dark: r - g and (r + g) / 2 - b."""
    red, green, blue = images.unbind(-3)
    return torch.stack([red - green, (red + green) / 2 - blue], dim=-3)


def count_pictures(pictures: Tensor, mask: Tensor | None) -> Tensor:
    """How many of the pictures (B, T, 3, H, W) count, a scalar."""
    return torch.tensor(pictures.shape[:2].numel(), device=pictures.device) if mask is None else mask.sum()


class RenderingLoss(nn.Module):
    """Mean squared error, how different the pictures look and, on demand, the error of hue once more.

    With a `PerceptualLoss`, MSE + w · perceptual, as LVSM and LagerNVS train. Its weights are files that don't come
    with geomtx; WITHOUT one, MSE + v · (1 - SSIM) takes its place, which is another loss.

    Args:
        perceptual: None = the fallback.
        perceptual_weight: w; 0.5 for scenes, reportedly 1 for single objects.
        similarity_weight: v, of the fallback alone.
        chroma_weight: Of the squared error of r - g and (r + g) / 2 - b. Light and dark make most of the variance of
            pictures; a small model in a short training then learns nothing else, unless hue counts more.

    Raises:
        ValueError: For a weight below 0.
    """

    def __init__(
        self,
        perceptual: PerceptualLoss | None = None,
        *,
        perceptual_weight: float = 0.5,
        similarity_weight: float = 0.2,
        chroma_weight: float = 0.0,
    ) -> None:
        super().__init__()
        check_at_least("perceptual_weight", perceptual_weight, 0)
        check_at_least("similarity_weight", similarity_weight, 0)
        check_at_least("chroma_weight", chroma_weight, 0)
        self.perceptual = perceptual
        self.perceptual_weight = perceptual_weight
        self.similarity_weight = similarity_weight
        self.chroma_weight = chroma_weight

    def forward(
        self,
        predicted: Float[Tensor, "b t 3 h w"],
        true: Float[Tensor, "b t 3 h w"],
        mask: Bool[Tensor, "b t"] | None = None,
    ) -> TermLoss:
        """Compare.

        Args:
            predicted: (B, T, 3, H, W) in [0, 1].
            true: Likewise.
            mask: (B, T), True = the picture counts, for instance as its camera is known; what another one holds has no
                influence. None = all count.

        Returns:
            The total, and "mse", "psnr" of the mean error, "perceptual" or "dissimilarity", and "chroma" if that has a
            weight, scalars before weights.

        Raises:
            ValueError: For other shapes, a mask that isn't bool, pictures too small for the second part.
        """
        check_shape("predicted", predicted, ("B", "T", 3, "H", "W"))
        check_shape("true", true, tuple(predicted.shape))
        if mask is not None:
            check_mask("mask", mask, tuple(predicted.shape[:2]))
        whole = None if mask is None else mask[:, :, None, None, None]
        predicted, true = select(at_least_float32(predicted), whole), select(at_least_float32(true), whole)
        count = count_pictures(true, mask)
        number = over_batch(count)
        errors = {"mse": (predicted - true).square().mean((-3, -2, -1))}
        if self.perceptual is not None:
            name, weight = "perceptual", self.perceptual_weight
            errors[name] = self.perceptual(predicted, true)
        else:
            name, weight = "dissimilarity", self.similarity_weight
            errors[name] = 1 - gaussian_similarity(predicted, true)
        if self.chroma_weight:
            errors["chroma"] = _chroma(predicted - true).square().mean((-3, -2, -1))
        with counting(None):
            means = {part: masked_mean(error, mask) for part, error in errors.items()}
        mse = means.pop("mse")
        parts = {"mse": mse, "psnr": -10 / math.log(10) * mse.detach().clamp(min=1e-10).log(), **means}
        # All means are over the pictures.
        parts = {part: weigh(mean, count, number) for part, mean in parts.items()}
        total = parts["mse"] + weight * parts[name]
        if self.chroma_weight:
            total = total + self.chroma_weight * parts["chroma"]
        return TermLoss(total, parts)

    def extra_repr(self) -> str:
        """What goes with the error of the pixels."""
        chroma = f", chroma_weight={self.chroma_weight}" if self.chroma_weight else ""
        if self.perceptual is not None:
            return f"perceptual_weight={self.perceptual_weight}{chroma}"
        return f"similarity_weight={self.similarity_weight}{chroma}, no perceptual loss"
