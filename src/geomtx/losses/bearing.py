"""Loss on the directions of predicted points from the first camera, independent of their distance."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from geomtx.checks import check_mask, check_option, check_shape
from geomtx.layers.precision import at_least_float32
from geomtx.losses.reduce import masked_mean, select
from geomtx.types import Bool, Float

__all__ = ["bearing_loss"]

MIN_LENGTH = 1e-3  # units of the scene; nearer points have no stable direction


def bearing_loss(
    points: Float[Tensor, "*batch h w 3"],
    target: Float[Tensor, "*batch h w 3"],
    mask: Bool[Tensor, "*batch h w"] | None = None,
    *,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    """Compute ‖p/‖p‖ − t/‖t‖‖ of points in the first camera's frame: 2 sin(θ/2) for an angle θ between directions.

    The direction of a pixel's point from the first camera is the position at which that camera sees it: a dense
    correspondence without the depth, whose errors dominate the loss of the points. It helps models that are trained
    from random weights.

    Args:
        points: Predicted points, (…, H, W, 3), in the frame of the first view's camera; any leading axes, any unit.
        target: True points, same shape and frame. Points within 1e-3 of the first camera have no direction and don't
            count.
        mask: Whether the true point is known, (…, H, W) bool; masked points may be NaN. Defaults to all points.
        reduction: "mean" for the mean over the points that count, "none" for a map. Defaults to "mean".

    Returns:
        A scalar in [0, 2], or (…, H, W) with 0 where nothing counts; float32 or float64. If no point counts, a zero
        with a graph. A prediction at the origin has error 1 and a gradient.

    Raises:
        ValueError: For shapes that don't match, a mask that isn't bool or an unknown reduction.
    """
    check_shape("points", points, ("...", "H", "W", 3))
    check_shape("target", target, tuple(points.shape))
    check_option("reduction", reduction, ("mean", "none"))
    if mask is not None:
        check_mask("mask", mask, tuple(points.shape[:-1]))
    with torch.autocast(points.device.type, enabled=False):
        known = None if mask is None else mask[..., None]
        points, target = (select(at_least_float32(maps), known) for maps in (points, target))
        counts = target.norm(dim=-1) > MIN_LENGTH
        difference = _direction(points) - _direction(target)
        error = select(torch.linalg.vector_norm(difference, dim=-1), counts)
        return masked_mean(error, counts) if reduction == "mean" else error


def _direction(points: Tensor) -> Tensor:
    """Return points over their distance from the origin, or over the least length where they are nearer."""
    # The least length bounds the gradient of a prediction near the origin.
    return points / torch.linalg.vector_norm(points, dim=-1, keepdim=True).clamp(min=MIN_LENGTH)
