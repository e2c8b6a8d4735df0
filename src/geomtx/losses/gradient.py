"""Losses on differences between neighbouring pixels and on surface normals, at several scales."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from geomtx.checks import check_mask, check_option, check_positive, check_shape
from geomtx.layers.precision import at_least_float32
from geomtx.losses.aleatoric import ConfidenceWeighting, limit_errors
from geomtx.losses.reduce import over_batch, select
from geomtx.types import Bool, Float

__all__ = ["gradient_loss", "normal_loss"]

Reduction = Literal["mean", "none"]
# A scale with fewer normals than this counts as zero.
MIN_NORMALS = 10
# Offsets whose directions have a smaller sine are parallel up to rounding and have no normal.
MIN_SINE = 1e-6
WEIGHTING = ConfidenceWeighting()


def gradient_loss(
    value: Tensor,
    target: Tensor,
    mask: Tensor,
    confidence: Tensor | None = None,
    *,
    num_scales: int = 4,
    weighting: ConfidenceWeighting = WEIGHTING,
    clamp: float | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute how much the error changes between neighbouring pixels.

    With r = value − target and c the confidence of the right (lower) of two neighbours, the loss of a scale is the sum
    of |Δr| over pairs of known neighbours, or of γ·|Δr|·c − α·log c, divided by the number of known values (pixels
    times channels, not pairs). Scale i takes every 2^i-th pixel; the loss is the mean over all scales.

    Args:
        value: Predicted depth or points, (…, H, W) or (…, H, W, C), in units of the scene; any leading axes.
        target: True depth or points, same shape and unit as `value`.
        mask: Whether a pixel is known, (…, H, W) bool; masked pixels may be NaN. Its number of axes decides whether
            `value` has channels.
        confidence: Predicted confidence c > 0, (…, H, W). Defaults to no weighting.
        num_scales: Number of scales, with strides 1, 2, … 2^(num_scales − 1). Defaults to 4.
        weighting: Constants γ and α of the weighting, used with a confidence only. Default to γ = 1 and α = 0.2.
        clamp: Ceiling of |Δr|, above which there is no gradient; 100 in the released code. Defaults to no ceiling.
        reduction: "mean" for the loss of all maps together, "none" for one value a map. Defaults to "mean".

    Returns:
        A scalar, or (…); float32 or float64. Without a known pixel, a zero with a graph.

    Raises:
        ValueError: For shapes that don't match, a mask that isn't bool, no scale, a clamp that is not positive or an
            unknown reduction.

    Source: VGGT (arXiv 2503.11651), section 3.4. The paper weights this loss by confidence, the released configuration
    does not.
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
            pair = (mask.narrow(axis, 1, size - 1) & mask.narrow(axis, 0, size - 1))[..., None]
            step = limit_errors(torch.where(pair, residual.diff(dim=axis - 1).abs(), 0.0), clamp)
            if confidence is not None:
                step = weighting.apply(step, confidence.narrow(axis, 1, size - 1)[..., None], pair)
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
    """Compute the angle between surface normals as 1 − cos, or γ·(1 − cos)·c − α·log c.

    A pixel has four normals: the cross products of its offsets to the neighbours up and left, left and down, down and
    right, right and up. A normal counts where the pixel and both neighbours are known. Scale i takes every 2^i-th
    pixel; the loss is the mean over normals, then over scales. A scale with fewer than 10 normals counts as zero.

    Args:
        points: Predicted points, (…, H, W, 3); any leading axes and any unit.
        target: True points, same shape. Where they are collinear or coincide there is no normal.
        mask: Whether a pixel is known, (…, H, W) bool; masked points may be NaN.
        confidence: Predicted confidence c > 0 of the central pixel, (…, H, W). Defaults to no weighting.
        num_scales: Number of scales, with strides 1, 2, … 2^(num_scales − 1). Defaults to 3.
        gamma: Weight γ of the angle, used with a confidence only. Defaults to 1.
        alpha: Weight α of the logarithm of the confidence. Defaults to 0.2.
        reduction: "mean" for the loss of all maps together, "none" for one value a map. Defaults to "mean".

    Returns:
        A scalar, in [0, 2] without confidence, or (…); float32 or float64. Without a normal, a zero with a graph.
        Predicted points that coincide have 1 − cos = 1 and no gradient.

    Raises:
        ValueError: For shapes that don't match, a mask that isn't bool, no scale or an unknown reduction.

    Source: the released training code of VGGT; the paper doesn't have this loss.
    """
    check_shape("points", points, ("...", "H", "W", 3))
    _check("points", points, target, mask, confidence, num_scales, reduction)
    weighting = ConfidenceWeighting(gamma, alpha)

    def one_scale(points: Tensor, target: Tensor, mask: Tensor, confidence: Tensor | None) -> Tensor:
        normal = _normals(select(points, mask[..., None]))
        true_normal = _normals(select(target, mask[..., None]))
        # A normal has length 1, or 0 where there is none.
        known = _corners(mask) & (true_normal != 0).any(-1)
        loss = 1 - (normal * true_normal).sum(-1)
        if confidence is not None:
            loss = weighting.apply(loss, confidence, known)
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
    """Check the shapes of the inputs and the options; `name` is the name of the prediction in messages."""
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
    """Return the mean of a loss over maps subsampled by 1, 2, 4, …, in float32 or float64, with a channel axis."""
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
    """Return sums over maps divided by counts, over all maps or for each; 0 where a count is below `least`."""
    if reduction == "mean":
        total, count = total.sum(), over_batch(count.sum())
    return torch.where(count >= least, total / count.clamp(min=1), total * 0)


def _neighbours(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the upper, left, lower and right neighbour of every pixel, 0 outside the image; (…, H, W, C) each."""
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    height, width = x.shape[-3:-1]
    starts = ((0, 1), (1, 0), (2, 1), (1, 2))
    up, left, down, right = (padded.narrow(-3, row, height).narrow(-2, column, width) for row, column in starts)
    return up, left, down, right


def _normals(points: Tensor) -> Tensor:
    """Return unit normals of the four corners around each pixel, (4, …, H, W, 3), or 0 for degenerate corners."""
    # Cross products of directions don't depend on the unit and neither underflow nor overflow, unlike those of offsets.
    up, left, down, right = (_unit(neighbour - points) for neighbour in _neighbours(points))
    first, second = torch.stack([up, left, down, right]), torch.stack([left, down, right, up])
    return _unit(torch.linalg.cross(first, second), MIN_SINE)


def _unit(vectors: Tensor, least: float = 0.0) -> Tensor:
    """Return vectors of length 1, or 0 without a gradient where their length is at most `least`."""
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    # Selecting before the division keeps its gradient finite.
    is_long = length > least
    return torch.where(is_long, vectors, 0.0) / torch.where(is_long, length, 1.0)


def _corners(mask: Tensor) -> Tensor:
    """Return whether a pixel and both neighbours of a corner are known, (4, …, H, W) bool."""
    up, left, down, right = (n[..., 0] for n in _neighbours(mask[..., None]))
    return mask & torch.stack([up & left, left & down, down & right, right & up])
