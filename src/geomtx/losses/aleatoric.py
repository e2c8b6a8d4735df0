"""Regression of depth maps and point maps with a learned confidence (VGGT, section 3.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from geomtx.checks import check_mask, check_option, check_positive, check_shape
from geomtx.layers.precision import at_least_float32
from geomtx.losses.reduce import counting, masked_mean, over_batch, select, weigh
from geomtx.types import Bool, Float, show_shapes

__all__ = ["AleatoricLoss", "ConfidenceWeighting", "Outliers", "aleatoric_loss", "limit_errors", "quantile_filter"]

# q·n is computed in integers: float32 can't count beyond 2^24, and not every device has float64.
QUANTILE_UNIT = 1_000_000


@show_shapes
class AleatoricLoss(NamedTuple):
    """Output of `aleatoric_loss`: two scalars, or two (…, H, W) maps without reduction.

    Attributes:
        confidence: Confidence-weighted error γ·e·c − α·log c. Negative once errors are small.
        regression: Unweighted error e, in the unit of the scene.
    """

    confidence: Tensor
    regression: Tensor


@dataclass(frozen=True)
class ConfidenceWeighting:
    """Weighting γ·e·c − α·log c of an error e by a learned confidence c (Kendall and Gal 2017).

    Attributes:
        gamma: Weight γ of the error. Defaults to 1.
        alpha: Weight α of the logarithm. Defaults to 0.2.
        unmasked_log: Whether the logarithm also counts where the mask excludes the error, as in the released training
            code of VGGT; confidence is then pushed up where there is no data. Defaults to False. Only `gradient_loss`
            uses it.
    """

    gamma: float = 1.0
    alpha: float = 0.2
    unmasked_log: bool = False

    def apply(self, error: Tensor, confidence: Tensor, mask: Tensor | None) -> Tensor:
        """Return the weighted errors.

        Args:
            error: Errors e ≥ 0, (…), 0 where the mask is False.
            confidence: Confidences c > 0, broadcastable to `error`. Masked values may be NaN.
            mask: Whether an error counts, bool, broadcastable to `error`; None counts all.

        Returns:
            γ·e·c − α·log c, (…).
        """
        if mask is not None and not self.unmasked_log:
            confidence = torch.where(mask, confidence, 1.0)
        return self.gamma * error * confidence - self.alpha * confidence.log()


@dataclass(frozen=True)
class Outliers:
    """Treatment of large and of non-finite errors in `aleatoric_loss`; by default all errors count as they are.

    Attributes:
        quantile: Quantile in (0, 1] from which on the largest values of each term are dropped, see `quantile_filter`;
            defaults to dropping none. With gradient accumulation or several processes each chunk has its own quantile.
        clamp: Ceiling (and, negated, floor) of the errors and of the weighted errors, positive; defaults to no limit.
            A clamped error has no gradient.
        nan_to_zero: Whether NaN and infinity count as 0. Defaults to False.

    Raises:
        ValueError: For a quantile outside (0, 1] or a clamp that is not positive.
    """

    quantile: float | None = None
    clamp: float | None = None
    nan_to_zero: bool = False

    def __post_init__(self) -> None:
        if self.quantile is not None:
            _check_quantile(self.quantile)
        if self.clamp is not None:
            check_positive("clamp", self.clamp)

    @classmethod
    def released(cls) -> Outliers:
        """Return the settings of the released training code: 98 % of the pixels, clamped at 100, NaN counts as 0."""
        return cls(quantile=0.98, clamp=100.0, nan_to_zero=True)


NO_OUTLIERS = Outliers()


def aleatoric_loss(
    value: Tensor,
    confidence: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    *,
    gamma: float = 1.0,
    alpha: float = 0.2,
    outliers: Outliers = NO_OUTLIERS,
    reduction: Literal["mean", "none"] = "mean",
) -> AleatoricLoss:
    """Compute γ·e·c − α·log c and the unweighted error e = ‖value − target‖ over all known pixels.

    The confidence c multiplies the error. For an error e < α/γ the loss is least at c = α / (γ·e); for larger errors
    it is least at the smallest possible confidence, which is 1 for the dense heads.

    By default the loss has no ceiling: the gradient of an over-confident error stays alive however large the error is,
    and a NaN prediction gives NaN. With `Outliers.released()`, the published settings, an error above 100 / c has no
    gradient and is never unlearned.

    Args:
        value: Predicted depth or points, (…, H, W) or (…, H, W, C), in units of the scene; any leading axes.
        confidence: Predicted confidence c > 0, (…, H, W). Its number of axes decides whether `value` has channels.
        target: True depth or points, same shape and unit as `value`.
        mask: Whether a pixel counts, (…, H, W) bool; masked pixels may be NaN. Defaults to all pixels.
        gamma: Weight γ of the error. Defaults to 1.
        alpha: Weight α of the logarithm. Defaults to 0.2.
        outliers: Treatment of large and non-finite errors; defaults to none.
        reduction: "mean" for the mean over the counted pixels of all scenes, "none" for maps. Defaults to "mean".

    Returns:
        Two scalars, or two (…, H, W) maps that are 0 where nothing counts; float32 or float64. If no pixel counts, the
        mean is a zero with a graph.

    Raises:
        ValueError: For shapes that don't match, a mask that isn't bool or an unknown reduction.

    Source: VGGT (arXiv 2503.11651), equation of section 3.4, after Kendall and Gal (2017). The unweighted term, the
    quantile and the constants are those of the released training code; the paper doesn't state them.
    """
    check_option("reduction", reduction, ("mean", "none"))
    check_shape("value", value, tuple(confidence.shape), (*confidence.shape, "C"))
    check_shape("target", target, tuple(value.shape))
    if mask is not None:
        check_mask("mask", mask, tuple(confidence.shape))
    with torch.autocast(value.device.type, enabled=False):
        error = _distance(value, target, mask, value.ndim > confidence.ndim, outliers.nan_to_zero)
        error = limit_errors(error, outliers.clamp, outliers.nan_to_zero)
        weighted = ConfidenceWeighting(gamma, alpha).apply(error, at_least_float32(confidence), mask)
        weighted = limit_errors(weighted, outliers.clamp, outliers.nan_to_zero)
        return AleatoricLoss(*(_reduce(term, mask, outliers, reduction) for term in (weighted, error)))


def _reduce(term: Tensor, mask: Tensor | None, outliers: Outliers, reduction: str) -> Tensor:
    """Return the mean of a term over the pixels that count, or the term with 0 in place of the others."""
    quantile = outliers.quantile
    kept = mask if quantile is None else quantile_filter(term, mask, quantile=quantile, ceiling=outliers.clamp)
    if reduction == "none":
        return select(term, kept)
    return masked_mean(term, kept) if quantile is None else _filtered_mean(term, mask, kept)


def _filtered_mean(values: Tensor, mask: Tensor | None, kept: Tensor | None) -> Tensor:
    """Return the mean over the values that a filter kept.

    If a batch is split into chunks, each chunk filters its own values and is weighted by their number before filtering.
    """
    number = torch.ones_like(values, dtype=torch.bool).sum() if mask is None else mask.sum()
    whole = over_batch(number)
    with counting(None):
        mean = masked_mean(values, kept)
    return weigh(mean, number, whole)


def _distance(value: Tensor, target: Tensor, mask: Tensor | None, has_channels: bool, nan_to_zero: bool) -> Tensor:
    """Return the Euclidean distance of every pixel, (…, H, W), 0 where the mask is False."""
    value, target = at_least_float32(value), at_least_float32(target)
    if not has_channels:
        return (select(value, mask) - select(target, mask)).abs()
    mask = None if mask is None else mask[..., None]
    difference = select(value, mask) - select(target, mask)
    if nan_to_zero:
        # Before the norm, whose gradient would be 0 · NaN where the result is replaced by 0.
        difference = select(difference, difference.isfinite().all(-1, keepdim=True))
    return torch.linalg.vector_norm(difference, dim=-1)


def limit_errors(errors: Tensor, limit: float | None, nan_to_zero: bool = False) -> Tensor:
    """Clamp errors to ±`limit` and, on request, replace NaN and infinity by 0; changed values have no gradient."""
    if nan_to_zero:
        errors = torch.where(errors.isfinite(), errors, 0.0)
    return errors if limit is None else errors.clamp(-limit, limit)


@torch.no_grad()
def quantile_filter(
    values: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"] | None = None,
    *,
    quantile: float,
    ceiling: float | None = None,
    min_count: int = 1000,
) -> Bool[Tensor, "*shape"]:
    """Select the values that remain when the largest are dropped.

    The threshold is the value of rank round(q·(n − 1)) among the n values of the mask, or the ceiling if that is
    lower; values strictly below it remain. NaN remains too: it is an error to find, not an outlier to drop.

    Args:
        values: Values to filter, (…).
        mask: Whether a value takes part, (…) bool. Defaults to all values.
        quantile: Quantile q in (0, 1].
        ceiling: Upper limit of the threshold. Defaults to no limit.
        min_count: Number of values of the mask up to which nothing is dropped, nor if no more than these would
            remain. Defaults to 1000.

    Returns:
        Whether a value remains, (…) bool, a subset of the mask. The host doesn't wait for the device.

    Raises:
        ValueError: For a quantile outside (0, 1].

    Source: the released training code of VGGT, which also subsamples above 10⁸ values; this function doesn't need to.
    """
    _check_quantile(quantile)
    mask = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    if values.numel() <= min_count:
        return mask
    count = mask.sum()
    ranked = torch.where(mask, values, torch.inf).flatten().sort().values
    threshold = ranked.take(_rank(quantile, count))
    if ceiling is not None:
        threshold = threshold.clamp(max=ceiling)
    kept = mask & ~(values >= threshold)
    return torch.where((count > min_count) & (kept.sum() > min_count), kept, mask)


def _check_quantile(quantile: float) -> None:
    """Require a quantile in (0, 1]."""
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile must be in (0, 1], got {quantile}")


def _rank(quantile: float, count: Tensor) -> Tensor:
    """Return round(q·(n − 1)); halves are rounded to even, as Python does."""
    product = round(quantile * QUANTILE_UNIT) * (count - 1).clamp(min=0)
    half = QUANTILE_UNIT // 2
    rank = (product + half) // QUANTILE_UNIT
    return torch.where((product % QUANTILE_UNIT == half) & (rank % 2 == 1), rank - 1, rank)
