"""Track-point consistency: along a track, predicted points move as the true ones do."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from geomtx.checks import check_mask, check_option, check_positive, check_shape
from geomtx.layers.precision import at_least_float32
from geomtx.losses.consistency.warp import sample_maps
from geomtx.losses.reduce import has_enough, masked_mean, select
from geomtx.types import Bool, Float, TrackLabels

__all__ = ["track_point_loss"]


def track_point_loss(
    points: Float[Tensor, "b s h w 3"],
    target: Float[Tensor, "b s h w 3"],
    labels: TrackLabels,
    mask: Bool[Tensor, "b s h w"] | None = None,
    *,
    clamp: float | None = None,
    min_samples: int = 100,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    """Compare differences of points along tracks: P(view 0) - P(view s), predicted and true, by L1.

    In a scene that stands still, both are the same point, and true differences are 0 but for the interpolation, which
    is the same for both maps. Weight among other losses: 5.

    Args:
        points: (B, S, H, W, 3), predicted points in the world, or `unproject` of predicted depth by predicted cameras.
        target: (B, S, H, W, 3), true points in the same world and unit.
        labels: True tracks. A sample counts where the track is valid and seen, in view 0 and in view s.
        mask: (B, S, H, W), True = the true point is known; a sample counts where its four pixels are. What others hold,
            in both maps, counts for nothing. None = all are.
        clamp: Largest difference that counts, a coordinate. What is above has no gradient, so None, no limit, is the
            default; 1000 is published.
        min_samples: With fewer samples in the batch, the loss is zero.
        reduction: "mean" over the samples and coordinates, or "none".

    Returns:
        A scalar, or (B, S, N) with 0 for what doesn't count; float32 or better. Without samples a zero that has a
        graph.

    Raises:
        ValueError: For shapes that don't fit, another `reduction`, and for `clamp` or `min_samples` that are not
            positive.
    """
    check_shape("points", points, ("B", "S", "H", "W", 3))
    b, s, height, width = points.shape[:4]
    check_shape("target", target, tuple(points.shape))
    n = labels.valid.shape[-1]
    check_shape("labels.coords_px", labels.coords_px, (b, s, n, 2))
    check_mask("labels.visible", labels.visible, (b, s, n))
    check_mask("labels.valid", labels.valid, (b, n))
    if mask is not None:
        check_mask("mask", mask, (b, s, height, width))
    check_option("reduction", reduction, ("mean", "none"))
    check_positive("clamp", 1.0 if clamp is None else clamp)
    check_positive("min_samples", min_samples)
    with torch.autocast(points.device.type, enabled=False):
        known = torch.ones_like(points[..., 0], dtype=torch.bool) if mask is None else mask
        points, target = (select(at_least_float32(maps), known[..., None]) for maps in (points, target))
        coords = at_least_float32(labels.coords_px).to(points.dtype)
        last = coords.new_tensor([width - 1, height - 1])
        seen = labels.visible & labels.valid[:, None] & ((coords >= 0) & (coords <= last)).all(-1)
        coords = select(coords, seen[..., None])
        # One look-up for both maps and the mask: the channels of one picture.
        maps = torch.cat([points - target, known[..., None].to(points.dtype)], dim=-1).movedim(-1, 2)
        samples = sample_maps(maps, coords[:, :, None])[:, :, :, 0].movedim(2, -1)
        seen = seen & (samples[..., 3] > 1 - 1e-4)
        valid = seen & seen[:, :1]
        valid = torch.cat([torch.zeros_like(valid[:, :1]), valid[:, 1:]], dim=1)
        error = select(samples[..., :3], seen[..., None])
        error = (error[:, :1] - error).abs()
        error = select((error if clamp is None else error.clamp(max=clamp)).mean(-1), valid)
        if reduction == "none":
            return error
        return select(masked_mean(error, valid), has_enough(valid.sum(), min_samples))
