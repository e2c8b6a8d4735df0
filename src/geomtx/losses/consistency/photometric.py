"""Photometric consistency: a view looks like the others, warped by its depth (Godard et al. 2019, Monodepth2)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from geomtx.checks import check_floating, check_mask, check_option, check_positive, check_shape
from geomtx.layers.precision import at_least_float32
from geomtx.losses.consistency.pairs import ViewPairs, mean_over_pairs
from geomtx.losses.consistency.warp import MIN_DEPTH, sample_maps, warp_pixels
from geomtx.losses.reduce import masked_mean, select
from geomtx.types import Bool, Cameras, Float

__all__ = ["photometric_loss", "smoothness_loss", "structural_similarity"]


def photometric_loss(
    images: Float[Tensor, "b s 3 h w"],
    depth: Float[Tensor, "b s h w"],
    cameras: Cameras,
    pairs: ViewPairs,
    *,
    mask: Bool[Tensor, "b s h w"] | None = None,
    camera_mask: Bool[Tensor, "b s"] | None = None,
    similarity_weight: float = 0.85,
    auto_mask: bool = True,
    max_depth_error: float = 0.2,
    min_pixels: int = 100,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    """Compare every view with others that are warped into it.

    A pixel's error is w · (1 - SSIM) / 2 + (1 - w) · L1, of the view that fits best. It counts where its 3x3
    neighbourhood is seen in both views: in front, one pixel inside, not hidden. Weight among other losses: 0.1.

    Args:
        images: (B, S, 3, H, W) in [0, 1], before any change of colour, which would break constancy.
        depth: (B, S, H, W), z-depth in scene units.
        cameras: (B, S, 3, 4) and (B, S, 3, 3), see `choose_cameras`; the gradient reaches them and depth.
        pairs: See `draw_pairs`.
        mask: (B, S, H, W), True = the pixel takes part, in whichever role; what others hold, in depth and image,
            counts for nothing. None = all do.
        camera_mask: (B, S), True = the camera is known. None = all are.
        similarity_weight: w, in [0, 1].
        auto_mask: Leave out pixels that fit another view better without warping: nothing is learned of them.
        max_depth_error: Largest |z - D| / (z + D) of the point's depth z and that of the other view, D, above which
            the point is taken for hidden.
        min_pixels: Pairs with fewer valid pixels are left out.
        reduction: "mean" over the views of the mean over each one's pixels, or "none".

    Returns:
        A scalar, or (B, S, H, W) with 0 for pixels that don't count; float32 or better. Without any a zero that has a
        graph.

    Raises:
        ValueError: For shapes that don't fit, integer images, other options, a `similarity_weight` outside [0, 1], and
            for `max_depth_error` or `min_pixels` that are not positive.
    """
    check_shape("depth", depth, ("B", "S", "H", "W"))
    check_shape("images", images, (*depth.shape[:2], 3, *depth.shape[2:]))
    check_floating("images", images)
    check_option("reduction", reduction, ("mean", "none"))
    check_positive("max_depth_error", max_depth_error)
    check_positive("min_pixels", min_pixels)
    if not 0 <= similarity_weight <= 1:
        raise ValueError(f"similarity_weight must be in [0, 1], got {similarity_weight}")
    with torch.autocast(images.device.type, enabled=False):
        images = select(at_least_float32(images), None if mask is None else mask[:, :, None])
        warp = warp_pixels(depth, cameras, pairs, mask=mask, camera_mask=camera_mask, max_error=max_depth_error)
        others, target = images[:, pairs.sources], images[:, :, None]
        valid = _erode(warp.valid)
        valid = valid & (valid.sum((-2, -1), keepdim=True) >= min_pixels)
        # Where there is nothing to compare, the view itself: windows stay finite.
        warped = torch.where(warp.valid[:, :, :, None], sample_maps(others, warp.coords_px), target)
        best = _smallest(_difference(warped, target, similarity_weight), valid)
        counts = valid.any(2)
        if auto_mask:
            both = None if mask is None else _erode(mask[:, pairs.sources] & mask[:, :, None])
            unwarped = _smallest(_difference(others, target, similarity_weight), both)
            counts = counts & (best <= unwarped).detach()
        error = select(best, counts)
        return error if reduction == "none" else mean_over_pairs(error.flatten(2), counts.flatten(2), 1)


def _smallest(errors: Tensor, valid: Tensor | None) -> Tensor:
    """The smallest valid error over K, (B, S, K, H, W) → (B, S, H, W); infinite without one."""
    infinite = errors.new_full((*errors.shape[:2], 1, *errors.shape[3:]), float("inf"))
    errors = errors if valid is None else torch.where(valid, errors, infinite)
    return torch.cat([errors, infinite], dim=2).amin(2)


def _difference(a: Tensor, b: Tensor, similarity_weight: float) -> Tensor:
    """Dissimilarity and L1 of (..., 3, H, W) together, means over the channels: (..., H, W)."""
    b = b.expand_as(a)
    dissimilarity = ((1 - structural_similarity(a, b)) / 2).clamp(0, 1)
    return (similarity_weight * dissimilarity + (1 - similarity_weight) * (a - b).abs()).mean(-3)


def structural_similarity(
    a: Float[Tensor, "*batch h w"], b: Float[Tensor, "*batch h w"]
) -> Float[Tensor, "*batch h w"]:
    """SSIM of images in [0, 1] over windows of 3x3 pixels (Wang et al. 2004), at every pixel.

    Args:
        a: (..., H, W).
        b: (..., H, W).

    Returns:
        (..., H, W), 1 where the windows are equal; float32 or better. At the border, windows hold only pixels of the
        image.

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
    flat = x.reshape(-1, 1, *x.shape[-2:])
    return F.avg_pool2d(flat, 3, stride=1, padding=1, count_include_pad=False).reshape(x.shape)


def _erode(mask: Tensor) -> Tensor:
    """True where all of the 3x3 neighbourhood is, none of it outside; (..., H, W) bool."""
    rows = F.pad(mask, (1, 1, 1, 1), value=False)
    rows = rows[..., :-2, :] & rows[..., 1:-1, :] & rows[..., 2:, :]
    return rows[..., :-2] & rows[..., 1:-1] & rows[..., 2:]


def smoothness_loss(
    depth: Float[Tensor, "*batch h w"],
    images: Float[Tensor, "*batch 3 h w"],
    mask: Bool[Tensor, "*batch h w"] | None = None,
) -> Float[Tensor, ""]:
    """Inverse depth changes where the picture does, and little elsewhere (Godard et al. 2017).

    Mean over neighbouring pixels of |∂d| · exp(-|∂I|), along rows and along columns, with d the inverse depth over its
    mean in the view. Regularises `photometric_loss`; weight among other losses: 1e-3 · 0.1.

    Args:
        depth: (..., H, W), z-depth.
        images: (..., 3, H, W) in [0, 1].
        mask: (..., H, W), True = the pixel takes part. Depth that isn't above a thousandth of the scene's unit never
            does. None = all do.

    Returns:
        A scalar, float32 or better; without neighbours that count a zero that has a graph.

    Raises:
        ValueError: For shapes that don't fit, or integer images.
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
