"""Errors of depth maps after alignment of their scale."""

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
    """Scores of every scene over all known pixels of its views, with d the aligned prediction and g the truth; (…)
    each.

    Attributes:
        abs_rel: Mean of |d - g| / g.
        rmse: Root of the mean of (d - g)², in the unit of the truth.
        delta_1: Share of pixels with max(d / g, g / d) < 1.25, in [0, 1].
        delta_2: Share of pixels with max(d / g, g / d) < 1.25².
        delta_3: Share of pixels with max(d / g, g / d) < 1.25³.
        inlier_103: Share of pixels with max(d / g, g / d) < 1.03.
        scale: Factor by which the prediction was multiplied.
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
    """Compare depth maps with the truth, with one scale for all S views of a scene.

    Args:
        predicted: Predicted z-depth, (…, S, H, W). On known pixels, a value that isn't finite counts against all shares
            and makes `abs_rel` and `rmse` NaN; a value that isn't positive counts against all shares and is left out of
            the alignment.
        true: True z-depth, (…, S, H, W). Pixels that are not finite or not positive are unknown.
        mask: Whether the truth is known, (…, S, H, W) bool. Defaults to wherever it is finite and positive.
        align: "median" multiplies the prediction by median(g) / median(d), "least_squares" by the s that minimises
            Σ (s d - g)², both over the positive predictions; "none" doesn't align. Defaults to "median".

    Returns:
        `DepthScores` in float64. All are NaN for a scene without a known pixel. Where no prediction is positive, the
        scale is undefined: `scale`, `abs_rel` and `rmse` are NaN and the shares are 0.

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
    # One row for each scene. Unknown pixels become 1 in both maps, so that no quotient is 0 / 0.
    known, predicted, true = (x.flatten(-3) for x in (known, predicted.double(), true.double()))
    predicted, true = torch.where(known, predicted, 1.0), torch.where(known, true, 1.0)
    # Determined before alignment, since a negative scale would move depth from behind the camera to the front.
    is_positive = predicted > 0
    scale = _alignment_scale(predicted, true, known & predicted.isfinite(), align)
    predicted = predicted * scale[..., None]

    difference = predicted - true
    # The ratio is undefined where the prediction is not positive.
    positive = torch.where(is_positive, predicted, torch.nan)
    ratio = torch.maximum(positive / true, true / positive)
    delta_1, delta_2, delta_3, inlier = (_mean((ratio < t).double(), known) for t in (1.25, 1.25**2, 1.25**3, 1.03))
    abs_rel = _mean(difference.abs() / true, known)
    return DepthScores(abs_rel, _mean(difference.square(), known).sqrt(), delta_1, delta_2, delta_3, inlier, scale)


def median_scale(predicted: Tensor, true: Tensor, mask: Tensor) -> Tensor:
    """Compute median(true) / median(predicted) over the last axis, where `mask` is True and the prediction positive.

    Predictions that aren't positive are left out, as they could give a negative scale, which would move depth from
    behind the camera to the front.

    Args:
        predicted: Predicted depth, (…, N).
        true: True depth, (…, N).
        mask: Whether a value takes part, (…, N) bool.

    Returns:
        Scale, (…); NaN where no value takes part.
    """
    mask = mask & (predicted > 0)
    return masked_median(true, mask) / masked_median(predicted, mask)


def _alignment_scale(predicted: Tensor, true: Tensor, mask: Tensor, align: DepthAlignment) -> Tensor:
    """Return the factor that aligns the prediction with the truth over the last axis, (…)."""
    if align == "median":
        return median_scale(predicted, true, mask)
    if align == "none":
        return torch.where(mask.any(-1), 1.0, torch.full_like(true[..., 0], torch.nan))
    mask = mask & (predicted > 0)
    predicted, true = torch.where(mask, predicted, 0.0), torch.where(mask, true, 0.0)
    return (predicted * true).sum(-1) / predicted.square().sum(-1)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over the last axis where `mask` is True; NaN if it nowhere is."""
    return torch.where(mask, values, 0.0).sum(-1) / mask.sum(-1)
