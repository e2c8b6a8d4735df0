"""Errors of depth maps, after the scale that a scene's prediction leaves open."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from geomtx.checks import check_mask, check_option, check_shape
from geomtx.losses.reduce import masked_median
from geomtx.types import Float, show_shapes

__all__ = ["DepthAlignment", "DepthScores", "depth_scores", "median_scale"]

DepthAlignment = Literal["median", "least_squares", "none"]


@show_shapes
class DepthScores(NamedTuple):
    """Of every scene, over all known pixels of its views; d predicted and aligned, g true.

    Attributes:
        abs_rel: (...), mean of |d - g| / g.
        rmse: (...), root of the mean of (d - g)², in the unit of the truth.
        delta_1: (...), share with max(d / g, g / d) < 1.25.
        delta_2: (...), share below 1.25².
        delta_3: (...), share below 1.25³.
        inlier_103: (...), share below 1.03.
        scale: (...), what the prediction was multiplied by.
    """

    abs_rel: Float[Tensor, "*batch"]
    rmse: Float[Tensor, "*batch"]
    delta_1: Float[Tensor, "*batch"]
    delta_2: Float[Tensor, "*batch"]
    delta_3: Float[Tensor, "*batch"]
    inlier_103: Float[Tensor, "*batch"]
    scale: Float[Tensor, "*batch"]


def depth_scores(
    predicted: Float[Tensor, "*batch s h w"],
    true: Float[Tensor, "*batch s h w"],
    mask: Tensor | None = None,
    *,
    align: DepthAlignment = "median",
) -> DepthScores:
    """Compare depth maps, with one scale a scene (all its S views together).

    Args:
        predicted: (..., S, H, W), z-depth. On known pixels, a value that is not finite counts as outside all shares
            and makes `abs_rel` and `rmse` NaN; one that is not positive is outside all shares, and the alignment is
            made without it.
        true: (..., S, H, W). Pixels that are not finite or not positive are not known.
        mask: (..., S, H, W) bool, True = the truth is known; None = wherever it is finite and positive.
        align: "median" multiplies the prediction by median(g) / median(d); "least_squares" by the s of least
            Σ (s d - g)², both over the positive predictions; "none" compares lengths as they are.

    Returns:
        `DepthScores` in float64. All NaN for a scene without a known pixel. Where no prediction is positive there is no
        scale to align by: `scale`, `abs_rel` and `rmse` are NaN, and the shares 0.

    Raises:
        ValueError: For other shapes, or another `align`.
    """
    check_shape("predicted", predicted, ("...", "S", "H", "W"))
    check_shape("true", true, tuple(predicted.shape))
    check_option("align", align, ("median", "least_squares", "none"))
    known = true.isfinite() & (true > 0)
    if mask is not None:
        check_mask("mask", mask, tuple(predicted.shape))
        known = known & mask
    # One row a scene. Truth that is not known becomes 1, prediction 1: no quotient is ever 0 / 0.
    known, predicted, true = (x.flatten(-3) for x in (known, predicted.double(), true.double()))
    predicted, true = torch.where(known, predicted, 1.0), torch.where(known, true, 1.0)
    # Asked of the prediction as it came: a negative scale would bring what is behind the camera before it.
    is_positive = predicted > 0
    scale = _alignment_scale(predicted, true, known & predicted.isfinite(), align)
    predicted = predicted * scale[..., None]

    difference = predicted - true
    # A prediction that is not positive has no ratio.
    positive = torch.where(is_positive, predicted, torch.nan)
    ratio = torch.maximum(positive / true, true / positive)
    delta_1, delta_2, delta_3, inlier = (_mean((ratio < t).double(), known) for t in (1.25, 1.25**2, 1.25**3, 1.03))
    abs_rel = _mean(difference.abs() / true, known)
    return DepthScores(abs_rel, _mean(difference.square(), known).sqrt(), delta_1, delta_2, delta_3, inlier, scale)


def median_scale(predicted: Tensor, true: Tensor, mask: Tensor) -> Tensor:
    """median(true) / median(predicted) over the last axis, where `mask` is True and the prediction positive.

    NaN where that is nowhere: a scale that is not positive would turn depth behind the camera into depth before it.

    Args:
        predicted: (..., N), depth.
        true: (..., N).
        mask: (..., N) bool.

    Returns:
        (...).
    """
    mask = mask & (predicted > 0)
    return masked_median(true, mask) / masked_median(predicted, mask)


def _alignment_scale(predicted: Tensor, true: Tensor, mask: Tensor, align: DepthAlignment) -> Tensor:
    if align == "median":
        return median_scale(predicted, true, mask)
    if align == "none":
        return torch.where(mask.any(-1), 1.0, torch.full_like(true[..., 0], torch.nan))
    mask = mask & (predicted > 0)
    predicted, true = torch.where(mask, predicted, 0.0), torch.where(mask, true, 0.0)
    return (predicted * true).sum(-1) / predicted.square().sum(-1)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Over the last axis where `mask` is True; NaN of none."""
    return torch.where(mask, values, 0.0).sum(-1) / mask.sum(-1)
