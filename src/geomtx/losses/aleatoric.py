"""Regression of depth and points with a learned confidence (VGGT, section 3.4)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from geomtx.checks import check_mask, check_option, check_positive, check_shape
from geomtx.layers.precision import at_least_float32
from geomtx.losses.reduce import counting, masked_mean, over_batch, select, weigh
from geomtx.types import Bool, Float, show_shapes

__all__ = ["AleatoricLoss", "aleatoric_loss", "bound", "quantile_filter"]

# q·n is computed in integers: float32 can't count beyond 2^24, and not every device has float64.
QUANTILE_UNIT = 1_000_000


@show_shapes
class AleatoricLoss(NamedTuple):
    """The two terms of `aleatoric_loss`.

    Attributes:
        confidence: γ·e·c − α·log c. Negative once errors are small.
        regression: e, the plain error.
    """

    confidence: Tensor
    regression: Tensor


def aleatoric_loss(
    value: Tensor,
    confidence: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    *,
    gamma: float = 1.0,
    alpha: float = 0.2,
    quantile: float | None = None,
    clamp: float | None = None,
    nan_to_zero: bool = False,
    reduction: Literal["mean", "none"] = "mean",
) -> AleatoricLoss:
    """γ·e·c − α·log c, and the plain error e = ‖value − target‖, of every known pixel.

    The confidence c multiplies the error. For an error e < α/γ the loss is least at c = α / (γ·e); above that, at
    the least confidence there is, which for the dense heads is 1.

    As it comes, the loss has no ceiling: the gradient on an over-confident error is alive however large it is, and a
    prediction that is NaN gives NaN. `clamp=100` with `nan_to_zero=True` is what was published; there an error above
    100 / c has no gradient and is never unlearned.

    Args:
        value: Prediction, (…, H, W) or (…, H, W, C), scene units; any leading axes.
        confidence: c > 0, (…, H, W); its number of axes tells whether `value` has channels.
        target: As `value`.
        mask: (…, H, W) bool, True = counts. What it hides may be NaN. None = everything.
        gamma: Weight of the error.
        alpha: Weight of the logarithm.
        quantile: Drop the largest values of each term from this quantile on, see `quantile_filter`; None = keep all.
            In training with accumulation or on several processes, the quantile is that of each chunk.
        clamp: Ceiling (and, negated, floor) of errors and of the first term; None = none.
        nan_to_zero: Take NaN and infinity for 0.
        reduction: "mean" over the pixels of all scenes that count; "none" = a map.

    Returns:
        Two scalars, or two (…, H, W) with 0 where nothing counts; float32 or better. Of no pixel the mean is a zero
        with a graph.

    Raises:
        ValueError: For shapes that don't match, a mask that isn't bool, a quantile outside (0, 1], a clamp that is not
            positive or an unknown reduction.

    Source: VGGT (arXiv 2503.11651), equation of section 3.4, after Kendall and Gal (2017). The second term, the filter
    and the numbers are those of the released training code; the paper has none of them.
    """
    check_option("reduction", reduction, ("mean", "none"))
    check_shape("value", value, tuple(confidence.shape), (*confidence.shape, "C"))
    check_shape("target", target, tuple(value.shape))
    if mask is not None:
        check_mask("mask", mask, tuple(confidence.shape))
    if clamp is not None:
        check_positive("clamp", clamp)
    with torch.autocast(value.device.type, enabled=False):
        error = _distance(
            at_least_float32(value), at_least_float32(target), mask, value.ndim > confidence.ndim, nan_to_zero
        )
        error = bound(error, clamp, nan_to_zero)
        surety = at_least_float32(confidence)
        surety = surety if mask is None else torch.where(mask, surety, 1.0)
        weighted = bound(gamma * error * surety - alpha * surety.log(), clamp, nan_to_zero)
        terms = []
        for term in (weighted, error):
            kept = mask if quantile is None else quantile_filter(term, mask, quantile=quantile, ceiling=clamp)
            if reduction == "none":
                terms.append(select(term, kept))
            elif quantile is None:
                terms.append(masked_mean(term, kept))
            else:
                terms.append(_filtered_mean(term, mask, kept))
    return AleatoricLoss(*terms)


def _filtered_mean(values: Tensor, mask: Tensor | None, kept: Tensor | None) -> Tensor:
    """Mean over what a filter kept of the values under a mask.

    Of several chunks of a batch, each filters by itself and counts by the values that it had before.
    """
    number = torch.ones_like(values, dtype=torch.bool).sum() if mask is None else mask.sum()
    whole = over_batch(number)
    with counting(None):
        mean = masked_mean(values, kept)
    return weigh(mean, number, whole)


def _distance(value: Tensor, target: Tensor, mask: Tensor | None, has_channels: bool, nan_to_zero: bool) -> Tensor:
    if not has_channels:
        return (select(value, mask) - select(target, mask)).abs()
    mask = None if mask is None else mask[..., None]
    difference = select(value, mask) - select(target, mask)
    if nan_to_zero:
        # Before the norm: its gradient would be 0 · NaN where the result is taken for 0.
        difference = select(difference, difference.isfinite().all(-1, keepdim=True))
    return torch.linalg.vector_norm(difference, dim=-1)


def bound(x: Tensor, limit: float | None, nan_to_zero: bool) -> Tensor:
    """`x` within ±`limit`, with 0 for NaN and infinity on request; there, no gradient is left."""
    if nan_to_zero:
        x = torch.where(x.isfinite(), x, 0.0)
    return x if limit is None else x.clamp(-limit, limit)


@torch.no_grad()
def quantile_filter(
    values: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"] | None = None,
    *,
    quantile: float,
    ceiling: float | None = None,
    min_count: int = 1000,
) -> Bool[Tensor, "*shape"]:
    """Where the values are that remain when the largest are dropped.

    The threshold is the value of rank round(q·(n − 1)) among the n values of the mask, or the ceiling, if that is
    lower; values strictly below it remain. NaN remains too: it is a bug to find, not an outlier to drop.

    Args:
        values: (…).
        mask: (…) bool, True = counts. None = everything.
        quantile: q in (0, 1].
        ceiling: The threshold is at most this; None = no ceiling.
        min_count: With no more values than this, nothing is dropped; nor if no more than this would remain.

    Returns:
        (…) bool, within the mask. Nothing waits for the device.

    Raises:
        ValueError: For a quantile outside (0, 1].

    Source: the released training code, except that it thins out above 10⁸ values, which this has no need to.
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile must be in (0, 1], got {quantile}")
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


def _rank(quantile: float, count: Tensor) -> Tensor:
    """round(q·(n − 1)), halves to even as Python rounds them."""
    product = round(quantile * QUANTILE_UNIT) * (count - 1).clamp(min=0)
    half = QUANTILE_UNIT // 2
    rank = (product + half) // QUANTILE_UNIT
    return torch.where((product % QUANTILE_UNIT == half) & (rank % 2 == 1), rank - 1, rank)
