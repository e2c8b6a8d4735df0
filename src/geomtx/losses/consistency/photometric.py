"""Photometric consistency: a view equals other views warped by its depth (Monodepth2, Godard et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from geomtx.checks import check_floating, check_mask, check_option, check_positive, check_shape
from geomtx.layers.precision import at_least_float32
from geomtx.losses.consistency.warp import MIN_DEPTH, ViewPairs, mean_over_pairs, sample_maps, warp_pixels
from geomtx.losses.reduce import masked_mean, select
from geomtx.types import Bool, Cameras, Float

__all__ = ["PhotometricSettings", "photometric_loss", "smoothness_loss", "structural_similarity"]


@dataclass(frozen=True)
class PhotometricSettings:
    """Settings of `photometric_loss`; the defaults are those of Monodepth2.

    Attributes:
        similarity_weight: Weight w of the structural dissimilarity against L1, in [0, 1]. Defaults to 0.85.
        auto_mask: Whether pixels are left out that fit another view better without warping, such as those of objects
            that move with the camera. Defaults to True.
        max_depth_error: Relative difference |z - D| / (z + D) between the depth z of a point and the other view's depth
            D above which the point is considered occluded, positive. Defaults to 0.2.
        min_pixels: Number of valid pixels below which a pair of views is left out, positive. Defaults to 100.

    Raises:
        ValueError: For a `similarity_weight` outside [0, 1], or another number that is not positive.
    """

    similarity_weight: float = 0.85
    auto_mask: bool = True
    max_depth_error: float = 0.2
    min_pixels: int = 100

    def __post_init__(self) -> None:
        check_positive("max_depth_error", self.max_depth_error)
        check_positive("min_pixels", self.min_pixels)
        if not 0 <= self.similarity_weight <= 1:
            raise ValueError(f"similarity_weight must be in [0, 1], got {self.similarity_weight}")


SETTINGS = PhotometricSettings()


def photometric_loss(
    images: Float[Tensor, "b s 3 h w"],
    depth: Float[Tensor, "b s h w"],
    cameras: Cameras,
    pairs: ViewPairs,
    *,
    mask: Bool[Tensor, "b s h w"] | None = None,
    camera_mask: Bool[Tensor, "b s"] | None = None,
    settings: PhotometricSettings = SETTINGS,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    """Compare every view with other views warped into it.

    The error of a pixel is w · (1 - SSIM) / 2 + (1 - w) · L1, taken from the view that fits best. A pixel counts where
    its 3×3 neighbourhood is visible in both views: in front of the other camera, at least one pixel inside its image
    and not occluded. Suggested weight among other losses: 0.1.

    Args:
        images: Images in [0, 1], (B, S, 3, H, W), before colour augmentation, which breaks colour constancy.
        depth: Predicted z-depth, (B, S, H, W), in units of the scene.
        cameras: Cameras of the views, (B, S, 3, 4) and (B, S, 3, 3), see `choose_cameras`. Gradients flow to cameras
            and depth.
        pairs: Pairs of views, see `draw_pairs`.
        mask: Whether a pixel takes part in either role, (B, S, H, W) bool; depth and colour of masked pixels have no
            influence. Defaults to all pixels.
        camera_mask: Whether a camera is known, (B, S) bool. Defaults to all cameras.
        settings: Weights and limits.
        reduction: "mean" for the mean over the views of the mean over the pixels of each, "none" for maps. Defaults to
            "mean".

    Returns:
        A scalar, or (B, S, H, W) with 0 for pixels that don't count; float32 or float64. If none counts, a zero with a
        graph.

    Raises:
        ValueError: For shapes that don't match, integer images, or another `reduction`.
    """
    check_shape("depth", depth, ("B", "S", "H", "W"))
    check_shape("images", images, (*depth.shape[:2], 3, *depth.shape[2:]))
    check_floating("images", images)
    check_option("reduction", reduction, ("mean", "none"))
    similarity_weight, max_error = settings.similarity_weight, settings.max_depth_error
    with torch.autocast(images.device.type, enabled=False):
        images = select(at_least_float32(images), None if mask is None else mask[:, :, None])
        warp = warp_pixels(depth, cameras, pairs, mask=mask, camera_mask=camera_mask, max_error=max_error)
        others, target = images[:, pairs.sources], images[:, :, None]
        valid = _erode(warp.valid)
        valid = valid & (valid.sum((-2, -1), keepdim=True) >= settings.min_pixels)
        # Pixels without a valid warp are replaced by the view itself, which keeps all SSIM windows finite.
        warped = torch.where(warp.valid[:, :, :, None], sample_maps(others, warp.coords_px), target)
        best = _smallest(_difference(warped, target, similarity_weight), valid)
        counts = valid.any(2)
        if settings.auto_mask:
            both = None if mask is None else _erode(mask[:, pairs.sources] & mask[:, :, None])
            unwarped = _smallest(_difference(others, target, similarity_weight), both)
            counts = counts & (best <= unwarped).detach()
        error = select(best, counts)
        return error if reduction == "none" else mean_over_pairs(error.flatten(2), counts.flatten(2), 1)


def _smallest(errors: Tensor, valid: Tensor | None) -> Tensor:
    """Return the smallest valid error over K, (B, S, K, H, W) → (B, S, H, W); infinite if none is valid."""
    infinite = errors.new_full((*errors.shape[:2], 1, *errors.shape[3:]), float("inf"))
    errors = errors if valid is None else torch.where(valid, errors, infinite)
    return torch.cat([errors, infinite], dim=2).amin(2)


def _difference(a: Tensor, b: Tensor, similarity_weight: float) -> Tensor:
    """Return the weighted sum of dissimilarity and L1 of images (…, 3, H, W), averaged over channels: (…, H, W)."""
    b = b.expand_as(a)
    dissimilarity = ((1 - structural_similarity(a, b)) / 2).clamp(0, 1)
    return (similarity_weight * dissimilarity + (1 - similarity_weight) * (a - b).abs()).mean(-3)


def structural_similarity(
    a: Float[Tensor, "*batch h w"], b: Float[Tensor, "*batch h w"]
) -> Float[Tensor, "*batch h w"]:
    """Compute the SSIM of images in [0, 1] over windows of 3×3 pixels (Wang et al. 2004) at every pixel.

    Args:
        a: First image, (…, H, W).
        b: Second image, (…, H, W).

    Returns:
        SSIM, (…, H, W), 1 where the windows are equal; float32 or float64. At the border, windows contain only pixels
        inside the image.

    Raises:
        ValueError: For shapes that differ, or integer images.
    """
    check_shape("a", a, ("...", "H", "W"))
    check_shape("b", b, tuple(a.shape))
    for name, image in (("a", a), ("b", b)):
        check_floating(name, image)
    with torch.autocast(a.device.type, enabled=False):
        a, b = at_least_float32(a), at_least_float32(b)
        mean_a, mean_b = _window_mean(a), _window_mean(b)
        variance = _window_mean(a.square()) + _window_mean(b.square()) - mean_a.square() - mean_b.square()
        covariance = _window_mean(a * b) - mean_a * mean_b
        luminance = (2 * mean_a * mean_b + 0.01**2) / (mean_a.square() + mean_b.square() + 0.01**2)
        return luminance * (2 * covariance + 0.03**2) / (variance + 0.03**2)


def _window_mean(x: Tensor) -> Tensor:
    """Return the means of (…, H, W) over 3×3 windows, at the border over the pixels inside the image."""
    flat = x.reshape(-1, 1, *x.shape[-2:])
    return F.avg_pool2d(flat, 3, stride=1, padding=1, count_include_pad=False).reshape(x.shape)


def _erode(mask: Tensor) -> Tensor:
    """Return whether all of the 3×3 neighbourhood is True and inside the image, (…, H, W) bool."""
    rows = F.pad(mask, (1, 1, 1, 1), value=False)
    rows = rows[..., :-2, :] & rows[..., 1:-1, :] & rows[..., 2:, :]
    return rows[..., :-2] & rows[..., 1:-1] & rows[..., 2:]


def smoothness_loss(
    depth: Float[Tensor, "*batch h w"],
    images: Float[Tensor, "*batch 3 h w"],
    mask: Bool[Tensor, "*batch h w"] | None = None,
) -> Float[Tensor, ""]:
    """Compute the edge-aware smoothness of the inverse depth (Godard et al. 2017).

    The loss is the mean over neighbouring pixels of |∂d| · exp(-|∂I|), along rows plus along columns, with d the
    inverse depth divided by its mean in the view. It regularises `photometric_loss`; suggested weight among other
    losses: 1e-3 · 0.1.

    Args:
        depth: Predicted z-depth, (…, H, W), in units of the scene.
        images: Images in [0, 1], (…, 3, H, W).
        mask: Whether a pixel takes part, (…, H, W) bool. Pixels with a depth of at most 1e-3 never do. Defaults to all
            pixels.

    Returns:
        A scalar, float32 or float64. If no pair of neighbours counts, a zero with a graph.

    Raises:
        ValueError: For shapes that don't match, or integer images.
    """
    check_shape("depth", depth, ("...", "H", "W"))
    check_shape("images", images, (*depth.shape[:-2], 3, *depth.shape[-2:]))
    check_floating("images", images)
    if mask is not None:
        check_mask("mask", mask, tuple(depth.shape))
    with torch.autocast(depth.device.type, enabled=False):
        depth = at_least_float32(depth)
        counts = depth > MIN_DEPTH if mask is None else (depth > MIN_DEPTH) & mask
        images = select(at_least_float32(images), counts[..., None, :, :])
        inverse = select(1 / torch.where(counts, depth, 1.0), counts)
        pixels = counts.sum((-2, -1), keepdim=True).clamp(min=1)
        total = inverse.sum((-2, -1), keepdim=True)
        inverse = inverse * pixels / torch.where(total > 0, total, 1.0)
        means = []
        for dim in (-2, -1):
            edges = torch.exp(-images.diff(dim=dim).abs().mean(-3))
            length = counts.shape[dim] - 1
            both = counts.narrow(dim, 0, length) & counts.narrow(dim, 1, length)
            means.append(masked_mean(inverse.diff(dim=dim).abs() * edges, both))
        return means[0] + means[1]
