"""Losses of rendered images."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from geomtx.checks import check_at_least, check_floating, check_mask, check_shape
from geomtx.layers.precision import at_least_float32
from geomtx.losses.perceptual import PerceptualLoss
from geomtx.losses.reduce import counting, masked_mean, over_batch, select, weigh
from geomtx.losses.terms import TermLoss
from geomtx.types import Bool, Float

__all__ = ["RenderingLoss", "gaussian_similarity"]

WINDOW = 11


def gaussian_similarity(
    predicted: Float[Tensor, "*batch c h w"], true: Float[Tensor, "*batch c h w"]
) -> Float[Tensor, "*batch"]:
    """Compute the SSIM with Gaussian windows of 11×11 pixels and σ = 1.5 (Wang et al. 2004); differentiable.

    The result is the mean over channels and over the windows inside the image. `geomtx.metrics.ssim` computes it in
    float64.

    Args:
        predicted: Predicted images in [0, 1], (…, C, H, W), at least 11 pixels high and wide.
        true: True images, same shape.

    Returns:
        SSIM of every image, (…), in [-1, 1], float32 or float64.

    Raises:
        ValueError: For other shapes, smaller or integer images.
    """
    check_shape("predicted", predicted, ("...", "C", "H", "W"))
    check_shape("true", true, tuple(predicted.shape))
    check_floating("true", true)
    if min(predicted.shape[-2:]) < WINDOW:
        raise ValueError(f"predicted must have at least {WINDOW} pixels a side, got {tuple(predicted.shape[-2:])}")
    # Imported here, as kornia takes about two seconds to import.
    from kornia.metrics import ssim

    batch = predicted.shape[:-3]
    with torch.autocast(predicted.device.type, enabled=False):
        a, b = (at_least_float32(x).reshape(-1, 1, *x.shape[-2:]) for x in (predicted, true))
        return ssim(a, b, WINDOW, eps=0.0, padding="valid").reshape(*batch, -1).mean(-1)


def _chroma(images: Float[Tensor, "*batch 3 h w"]) -> Float[Tensor, "*batch 2 h w"]:
    """Return the chroma of RGB images, r - g and (r + g) / 2 - b."""
    red, green, blue = images.unbind(-3)
    return torch.stack([red - green, (red + green) / 2 - blue], dim=-3)


def count_pictures(pictures: Tensor, mask: Tensor | None) -> Tensor:
    """Return the number of images (B, T, 3, H, W) that count, a scalar."""
    return torch.tensor(pictures.shape[:2].numel(), device=pictures.device) if mask is None else mask.sum()


class RenderingLoss(nn.Module):
    """Sum of mean squared error, perceptual or structural dissimilarity and, optionally, chroma error.

    With a `PerceptualLoss` the loss is MSE + w · perceptual, as in LVSM and LagerNVS. The weights of its network are
    not part of geomtx; without them the loss is MSE + v · (1 - SSIM), which is a different loss.

    Args:
        perceptual: Perceptual loss. Defaults to None: the structural dissimilarity 1 - SSIM takes its place.
        perceptual_weight: Weight w ≥ 0 of the perceptual loss; 0.5 for scenes, reportedly 1 for single objects.
            Defaults to 0.5.
        similarity_weight: Weight v ≥ 0 of the structural dissimilarity, used without a perceptual loss only. Defaults
            to 0.2.
        chroma_weight: Weight ≥ 0 of the squared error of the chroma r - g and (r + g) / 2 - b. Luminance has most of
            the variance of images, so that a small model in a short training learns no colours without this term.
            Defaults to 0.

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
        """Compare rendered images with the true ones.

        Args:
            predicted: Rendered images in [0, 1], (B, T, 3, H, W).
            true: True images, same shape.
            mask: Whether an image counts, (B, T) bool, for instance because its camera is known; masked images have no
                influence. Defaults to all images.

        Returns:
            The total, and scalars before weights: "mse", "psnr" (of the mean squared error), "perceptual" or
            "dissimilarity", and "chroma" if it has a weight.

        Raises:
            ValueError: For other shapes, a mask that isn't bool, or images too small for the perceptual or structural
                dissimilarity.
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
        # All means are over images.
        parts = {part: weigh(mean, count, number) for part, mean in parts.items()}
        total = parts["mse"] + weight * parts[name]
        if self.chroma_weight:
            total = total + self.chroma_weight * parts["chroma"]
        return TermLoss(total, parts)

    def extra_repr(self) -> str:
        """Return the weights of the terms beside the mean squared error."""
        chroma = f", chroma_weight={self.chroma_weight}" if self.chroma_weight else ""
        if self.perceptual is not None:
            return f"perceptual_weight={self.perceptual_weight}{chroma}"
        return f"similarity_weight={self.similarity_weight}{chroma}, no perceptual loss"
