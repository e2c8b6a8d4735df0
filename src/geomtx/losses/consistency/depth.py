"""Depth consistency: depth maps of different views describe the same surface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from geomtx.checks import check_option, check_positive
from geomtx.losses.consistency.warp import ViewPairs, mean_over_pairs, relative_error, warp_pixels
from geomtx.losses.reduce import select
from geomtx.types import Bool, Cameras, Float

__all__ = ["DepthConsistencySettings", "depth_consistency_loss"]


@dataclass(frozen=True)
class DepthConsistencySettings:
    """Settings of `depth_consistency_loss`.

    Attributes:
        kind: "l1" or "huber". Defaults to "l1".
        delta: Relative error at which "huber" turns from squared to linear, positive. Defaults to 0.05.
        max_error: Relative error above which a point is considered occluded and doesn't count, positive. Defaults to
            0.2.
        min_pixels: Number of valid pixels below which a pair of views is left out, positive. Defaults to 100.

    Raises:
        ValueError: For another `kind`, or a number that is not positive.
    """

    kind: Literal["l1", "huber"] = "l1"
    delta: float = 0.05
    max_error: float = 0.2
    min_pixels: int = 100

    def __post_init__(self) -> None:
        check_option("kind", self.kind, ("l1", "huber"))
        for name in ("delta", "max_error", "min_pixels"):
            check_positive(name, getattr(self, name))


SETTINGS = DepthConsistencySettings()


def depth_consistency_loss(
    depth: Float[Tensor, "b s h w"],
    cameras: Cameras,
    pairs: ViewPairs,
    *,
    mask: Bool[Tensor, "b s h w"] | None = None,
    camera_mask: Bool[Tensor, "b s"] | None = None,
    settings: DepthConsistencySettings = SETTINGS,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    """Compare the depth maps of views with each other.

    The error of a pixel is |z - D| / (z + D), with z the depth of its point in the other view and D the depth of that
    view's map there. It has no unit. The inverse of D is interpolated, which is exact on planes. Suggested weight among
    other losses: 0.1.

    Args:
        depth: Predicted z-depth, (B, S, H, W), in units of the scene.
        cameras: Cameras of the views, (B, S, 3, 4) and (B, S, 3, 3), see `choose_cameras`. Gradients flow to cameras
            and depth.
        pairs: Pairs of views, see `draw_pairs`. In `frozen` pairs D gets no gradient.
        mask: Whether a pixel takes part in either role, (B, S, H, W) bool; masked pixels have no influence. Defaults to
            all pixels.
        camera_mask: Whether a camera is known, (B, S) bool. Defaults to all cameras.
        settings: Error function and limits.
        reduction: "mean" for the mean over the pairs of the mean over the pixels of each, "none" for maps. Defaults to
            "mean".

    Returns:
        A scalar, or (B, S, K, H, W) with 0 for pixels that don't count; float32 or float64. If none counts, a zero with
        a graph.

    Raises:
        ValueError: For shapes that don't match, or another `reduction`.
    """
    check_option("reduction", reduction, ("mean", "none"))
    kind, delta, max_error, min_pixels = settings.kind, settings.delta, settings.max_error, settings.min_pixels
    with torch.autocast(depth.device.type, enabled=False):
        warp = warp_pixels(depth, cameras, pairs, mask=mask, camera_mask=camera_mask, max_error=max_error)
        valid = warp.valid & (warp.valid.sum((-2, -1), keepdim=True) >= min_pixels)
        error = relative_error(torch.where(valid, warp.depth_ratio, 1.0))
        if kind == "huber":
            error = F.huber_loss(error, torch.zeros_like(error), reduction="none", delta=delta)
        error = select(error, valid)
        return error if reduction == "none" else mean_over_pairs(error.flatten(3), valid.flatten(3), min_pixels)
