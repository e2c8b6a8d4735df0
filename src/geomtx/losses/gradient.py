"""Losses on how predictions change from pixel to pixel: differences and normals, at several scales."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from geomtx.checks import check_mask, check_option, check_positive, check_shape
from geomtx.layers.precision import at_least_float32
from geomtx.losses.aleatoric import bound
from geomtx.losses.reduce import over_batch, select
from geomtx.types import Bool, Float

__all__ = ["gradient_loss", "normal_loss"]

Reduction = Literal["mean", "none"]
# A scale with fewer normals than this says nothing.
MIN_NORMALS = 10
# Offsets whose directions differ by less (a sine) lie in line but for rounding.
MIN_SINE = 1e-6


def gradient_loss(
    value: Tensor,
    target: Tensor,
    mask: Tensor,
    confidence: Tensor | None = None,
    *,
    num_scales: int = 4,
    gamma: float = 1.0,
    alpha: float = 0.2,
    clamp: float | None = None,
    legacy_unmasked_log: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """How much the error changes between neighbouring pixels.

    With r = value − target and c the confidence of the right (lower) of two neighbours, a scale's loss is the sum of
    |Δr| over pairs of known neighbours, or of γ·|Δr|·c − α·log c, divided by the number of known values (pixels times
    channels, not pairs). Scale i takes every 2^i-th pixel; the loss is the mean of all scales.

    Args:
        value: Prediction, (…, H, W) or (…, H, W, C), scene units; any leading axes.
        target: As `value`.
        mask: (…, H, W) bool, True = known; its number of axes tells whether `value` has channels. What it hides may be
            NaN.
        confidence: c > 0, (…, H, W); None = no weighting.
        num_scales: Strides 1, 2, … 2^(num_scales − 1).
        gamma: Weight of the differences, if there is a confidence.
        alpha: Weight of its logarithm.
        clamp: Ceiling of |Δr|; None = none. Above a ceiling there is no gradient. Published: 100.
        legacy_unmasked_log: Take the logarithm of pairs that the mask hides too, as published: confidence is then
            pushed up where there is no data.
        reduction: "mean" = over all maps as one; "none" = each map by itself.

    Returns:
        A scalar, or (…); float32 or better. Of no known pixel, a zero with a graph.

    Raises:
        ValueError: For shapes that don't match, a mask that isn't bool, no scale, a clamp that is not positive or an
            unknown reduction.

    Source: VGGT (arXiv 2503.11651), section 3.4: the paper weights it by confidence, the released configuration does
    not.
    """
    _check("value", value, target, mask, confidence, num_scales, reduction)
    if clamp is not None:
        check_positive("clamp", clamp)
    channels = value.shape[-1] if value.ndim > mask.ndim else 1

    def one_scale(value: Tensor, target: Tensor, mask: Tensor, confidence: Tensor | None) -> Tensor:
        residual = select(value, mask[..., None]) - select(target, mask[..., None])
        total = value.new_zeros(())
        for axis in (-1, -2):
            size = mask.shape[axis]
            pair = mask.narrow(axis, 1, size - 1) & mask.narrow(axis, 0, size - 1)
            step = residual.diff(dim=axis - 1).abs()
            step = bound(torch.where(pair[..., None], step, 0.0), clamp, False)
            if confidence is not None:
                surety = confidence.narrow(axis, 1, size - 1)[..., None]
                surety = surety if legacy_unmasked_log else torch.where(pair[..., None], surety, 1.0)
                step = gamma * step * surety - alpha * surety.log()
            total = total + step.sum((-1, -2, -3))
        return _quotient(total, mask.sum((-1, -2)) * channels, reduction)

    return _mean_of_scales(one_scale, value, target, mask, confidence, num_scales)


def normal_loss(
    points: Float[Tensor, "*batch h w 3"],
    target: Float[Tensor, "*batch h w 3"],
    mask: Bool[Tensor, "*batch h w"],
    confidence: Float[Tensor, "*batch h w"] | None = None,
    *,
    num_scales: int = 3,
    gamma: float = 1.0,
    alpha: float = 0.2,
    reduction: Reduction = "mean",
) -> Tensor:
    """Angle between surface normals: 1 − cos, or γ·(1 − cos)·c − α·log c.

    A pixel has four normals: cross products of the offsets to neighbours up and left, left and down, down and right,
    right and up. One counts where the pixel and both neighbours are known. Scale i takes every 2^i-th pixel; the loss
    is the mean over normals, then over scales. A scale with fewer than 10 normals counts as zero.

    Args:
        points: Prediction, (…, H, W, 3); any leading axes and any unit.
        target: As `points`. Where its points lie in line or coincide there is no normal.
        mask: (…, H, W) bool, True = known. What it hides may be NaN.
        confidence: c > 0, (…, H, W), of the pixel in the middle; None = no weighting.
        num_scales: Strides 1, 2, … 2^(num_scales − 1).
        gamma: Weight of the angle, if there is a confidence.
        alpha: Weight of its logarithm.
        reduction: "mean" = over all maps as one; "none" = each map by itself.

    Returns:
        A scalar in [0, 2] (without confidence), or (…); float32 or better. Of no normal, a zero with a graph.
        Predicted points that coincide have 1 − cos = 1, without a gradient from there.

    Raises:
        ValueError: For shapes that don't match, a mask that isn't bool, no scale or an unknown reduction.

    Source: the released training code; not in the paper.
    """
    check_shape("points", points, ("...", "H", "W", 3))
    _check("points", points, target, mask, confidence, num_scales, reduction)

    def one_scale(points: Tensor, target: Tensor, mask: Tensor, confidence: Tensor | None) -> Tensor:
        normal = _normals(select(points, mask[..., None]))
        true_normal = _normals(select(target, mask[..., None]))
        # A normal is of length 1 or, where there is none, 0.
        known = _corners(mask) & (true_normal != 0).any(-1)
        loss = 1 - (normal * true_normal).sum(-1)
        if confidence is not None:
            surety = torch.where(known, confidence, 1.0)
            loss = gamma * loss * surety - alpha * surety.log()
        count = known.sum((0, -1, -2))
        total = select(loss, known).sum((0, -1, -2))
        return _quotient(total, count, reduction, least=MIN_NORMALS)

    return _mean_of_scales(one_scale, points, target, mask, confidence, num_scales)


def _check(
    name: str,
    value: Tensor,
    target: Tensor,
    mask: Tensor,
    confidence: Tensor | None,
    num_scales: int,
    reduction: Reduction,
) -> None:
    check_option("reduction", reduction, ("mean", "none"))
    check_positive("num_scales", num_scales)
    check_mask("mask", mask, ("...", "H", "W"))
    check_shape(name, value, tuple(mask.shape), (*mask.shape, "C"))
    check_shape("target", target, tuple(value.shape))
    if confidence is not None:
        check_shape("confidence", confidence, tuple(mask.shape))


def _mean_of_scales(
    one_scale: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor],
    value: Tensor,
    target: Tensor,
    mask: Tensor,
    confidence: Tensor | None,
    num_scales: int,
) -> Tensor:
    """Mean of a loss over plain subsamplings by 1, 2, 4, …, in float32 or better, with a channel axis."""
    if value.ndim == mask.ndim:
        value, target = value[..., None], target[..., None]
    with torch.autocast(value.device.type, enabled=False):
        value, target = at_least_float32(value), at_least_float32(target)
        confidence = None if confidence is None else at_least_float32(confidence)
        losses = []
        for stride in (2**i for i in range(num_scales)):
            steps = slice(None, None, stride)
            maps = (value[..., steps, steps, :], target[..., steps, steps, :], mask[..., steps, steps])
            losses.append(one_scale(*maps, None if confidence is None else confidence[..., steps, steps]))
        return torch.stack(losses).mean(0)


def _quotient(total: Tensor, count: Tensor, reduction: Reduction, least: int = 1) -> Tensor:
    """Sums over maps divided by counts, of all maps together or of each; 0 where fewer than `least` are counted."""
    if reduction == "mean":
        total, count = total.sum(), over_batch(count.sum())
    return torch.where(count >= least, total / count.clamp(min=1), total * 0)


def _neighbours(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The pixels up, left, down and right of each, zero beyond the border; (…, H, W, C) each."""
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    height, width = x.shape[-3:-1]
    starts = ((0, 1), (1, 0), (2, 1), (1, 2))
    up, left, down, right = (padded.narrow(-3, row, height).narrow(-2, column, width) for row, column in starts)
    return up, left, down, right


def _normals(points: Tensor) -> Tensor:
    """Unit normals of the four corners around each pixel, (4, …, H, W, 3); zero where the corner is degenerate."""
    # Directions, not offsets: their products depend on no unit, and are neither too small to divide by nor infinite.
    up, left, down, right = (_unit(neighbour - points) for neighbour in _neighbours(points))
    first, second = torch.stack([up, left, down, right]), torch.stack([left, down, right, up])
    return _unit(torch.linalg.cross(first, second), MIN_SINE)


def _unit(vectors: Tensor, least: float = 0.0) -> Tensor:
    """Vectors of length 1; 0, without a gradient, where they are no longer than `least`."""
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    # Selected before the division, whose gradient is not finite there.
    is_long = length > least
    return torch.where(is_long, vectors, 0.0) / torch.where(is_long, length, 1.0)


def _corners(mask: Tensor) -> Tensor:
    """Where a pixel and both neighbours of a corner are known, (4, …, H, W)."""
    up, left, down, right = (n[..., 0] for n in _neighbours(mask[..., None]))
    return mask & torch.stack([up & left, left & down, down & right, right & up])
