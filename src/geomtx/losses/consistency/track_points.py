"""Track-point consistency: predicted points move along a track as the true points do."""

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
    """Compare differences of points along tracks, P(view 0) - P(view s), predicted and true, by L1.

    In a static scene both views see the same point, and the true differences are 0 up to interpolation, which is the
    same for both maps. Suggested weight among other losses: 5.

    Args:
        points: Predicted points in the world, (B, S, H, W, 3), or predicted depth unprojected with predicted cameras.
        target: True points in the same world frame and unit, (B, S, H, W, 3).
        labels: True tracks. A sample counts where the track is valid and visible in view 0 and in view s.
        mask: Whether the true point is known, (B, S, H, W) bool. A sample counts where its four pixels are known;
            masked pixels of both maps have no influence. Defaults to all pixels.
        clamp: Largest difference of a coordinate that counts, positive, in units of the scene; larger ones have no
            gradient. The published value is 1000. Defaults to no limit.
        min_samples: Number of samples in the batch below which the loss is 0, positive. Defaults to 100.
        reduction: "mean" for the mean over samples and coordinates, "none" for one value a sample. Defaults to "mean".

    Returns:
        A scalar, or (B, S, N) with 0 for what doesn't count; float32 or float64. Without samples, a zero with a graph.

    Raises:
        ValueError: For shapes that don't match, another `reduction`, or a `clamp` or `min_samples` that is not
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
        # Both maps and the mask are channels of one image, so that one lookup serves all.
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
