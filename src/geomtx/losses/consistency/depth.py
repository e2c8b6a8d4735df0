"""Depth consistency: a point that one view sees is where another view's depth map has it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from geomtx.checks import check_option, check_positive
from geomtx.losses.consistency.pairs import ViewPairs, mean_over_pairs
from geomtx.losses.consistency.warp import relative_error, warp_pixels
from geomtx.losses.reduce import select
from geomtx.types import Bool, Cameras, Float

__all__ = ["depth_consistency_loss"]


def depth_consistency_loss(
    depth: Float[Tensor, "b s h w"],
    cameras: Cameras,
    pairs: ViewPairs,
    *,
    mask: Bool[Tensor, "b s h w"] | None = None,
    camera_mask: Bool[Tensor, "b s"] | None = None,
    kind: Literal["l1", "huber"] = "l1",
    delta: float = 0.05,
    max_error: float = 0.2,
    min_pixels: int = 100,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    """Compare the depth maps of views with each other.

    The error of a pixel is |z - D| / (z + D), with z the depth of its point in the other view and D what that view's
    map has there. It has no unit. The inverse of D is interpolated, which is exact on planes. Weight among other
    losses: 0.1.

    Args:
        depth: (B, S, H, W), z-depth in scene units.
        cameras: (B, S, 3, 4) and (B, S, 3, 3), see `choose_cameras`; the gradient reaches them and depth.
        pairs: See `draw_pairs`. In `frozen` ones, D gets no gradient.
        mask: (B, S, H, W), True = the pixel takes part, in whichever role; what others hold counts for nothing. None =
            all do.
        camera_mask: (B, S), True = the camera is known. None = all are.
        kind: "l1" or "huber".
        delta: Where "huber" turns from squared to linear.
        max_error: A larger error is taken for an occlusion and doesn't count.
        min_pixels: Pairs with fewer valid pixels are left out.
        reduction: "mean" over the pairs of the mean over each one's pixels, or "none".

    Returns:
        A scalar, or (B, S, K, H, W) with 0 for pixels that don't count; float32 or better. Without any a zero that has
        a graph.

    Raises:
        ValueError: For shapes that don't fit, other options, and for `delta`, `max_error` or `min_pixels` that are not
            positive.
    """
    check_option("kind", kind, ("l1", "huber"))
    check_option("reduction", reduction, ("mean", "none"))
    for name, value in (("delta", delta), ("max_error", max_error), ("min_pixels", min_pixels)):
        check_positive(name, value)
    with torch.autocast(depth.device.type, enabled=False):
        warp = warp_pixels(depth, cameras, pairs, mask=mask, camera_mask=camera_mask, max_error=max_error)
        valid = warp.valid & (warp.valid.sum((-2, -1), keepdim=True) >= min_pixels)
        error = relative_error(torch.where(valid, warp.depth_ratio, 1.0))
        if kind == "huber":
            error = F.huber_loss(error, torch.zeros_like(error), reduction="none", delta=delta)
        error = select(error, valid)
        return error if reduction == "none" else mean_over_pairs(error.flatten(3), valid.flatten(3), min_pixels)
