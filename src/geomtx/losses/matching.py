"""Losses of descriptors by which pixels of two images are matched (MASt3R, Leroy et al. 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from geomtx.checks import check_finite_positive, check_mask, check_option, check_range, check_shape
from geomtx.layers.precision import float32_island
from geomtx.losses.reduce import masked_mean
from geomtx.types import Bool, DenseMap, Float, Int

__all__ = ["MatchingSettings", "matching_loss", "matching_precision"]

_LEAST = math.log(1e-8)  # of the logarithm of a ratio


@dataclass(frozen=True)
class MatchingSettings:
    """Settings of `matching_loss`; the defaults are those of MASt3R's training.

    Attributes:
        temperature: Number that similarities are divided by.
        kind: "proper": the matching pixel of either image among those of the other, added; "dual": the logarithm of the
            product of both; "all": a pair of matching pixels among all pairs.
        alpha: Weight α of the logarithm of the confidence.
        confidence: Rule by which two matching pixels' confidences become one: "mean" or "prod"; None for a loss without
            confidence.
        negatives: Quantile, 0 … 1, of the losses of matches that is the loss of pixels without a match, which teaches
            their confidence alone; None to leave these out.
    """

    temperature: float = 0.05
    kind: Literal["proper", "dual", "all"] = "proper"
    alpha: float = 10.0
    confidence: Literal["mean", "prod"] | None = "mean"
    negatives: float | None = None


@float32_island
def matching_loss(
    first: DenseMap,
    second: DenseMap,
    matches: tuple[Int[Tensor, "b n 2"], Int[Tensor, "b n 2"]],
    valid: Bool[Tensor, "b n"],
    settings: MatchingSettings | None = None,
) -> Float[Tensor, ""]:
    """Return the InfoNCE loss of descriptors over matching pixels, weighted by their confidence.

    Args:
        first: Descriptors (B, H, W, D) and confidence (B, H, W) of the first images.
        second: Descriptors and confidence of the second images, (B, H', W', D) and (B, H', W').
        matches: Pixels (x, y) of the first and of the second images that match, (B, N, 2) each.
        valid: Mask of those that match; others are negatives, pixels that match none, (B, N) bool.
        settings: Settings; defaults to MASt3R's.

    Returns:
        Loss, a scalar in float32 or better: the mean over all matches.

    Raises:
        ValueError: For shapes that don't fit each other, and settings that are out of range.
    """
    settings = settings or MatchingSettings()
    _check(matches, valid, settings)
    (a, p), (b, q) = (
        (_take(each.value, coords), _take(each.confidence, coords))
        for each, coords in zip((first, second), matches, strict=True)
    )
    losses = _ratios(a @ b.mT / settings.temperature, settings.kind)
    if settings.confidence is None:
        return masked_mean(losses, valid)
    together = (p + q) / 2 if settings.confidence == "mean" else p * q
    loss = masked_mean(together * losses - settings.alpha * together.log(), valid)
    if settings.negatives is None:
        return loss
    level = losses.detach()[valid].quantile(settings.negatives) if valid.any() else losses.new_zeros(())
    single = torch.stack([p, q])
    return loss + masked_mean(single * level - settings.alpha * single.log(), ~valid.expand_as(single))


@float32_island
def matching_precision(
    first: Float[Tensor, "b h w d"],
    second: Float[Tensor, "b h2 w2 d"],
    matches: tuple[Int[Tensor, "b n 2"], Int[Tensor, "b n 2"]],
    valid: Bool[Tensor, "b n"],
    *,
    num_others: int = 0,
) -> Float[Tensor, ""]:
    """Return the mean average precision of matches: 1 / rank of the true match among candidates.

    Args:
        first: Descriptors of the first images.
        second: Descriptors of the second images.
        matches: Pixels (x, y) of both images that match, (B, N, 2) each. All N of the second images are candidates.
        valid: Mask of the pairs of pixels that match, (B, N) bool.
        num_others: Number of other pixels of the second images that are candidates too, the first ones row by row.
    """
    a, b = _take(first, matches[0]), _take(second, matches[1])
    scores = a @ b.mT  # (B, N, N)
    rank = (scores > scores.diagonal(dim1=1, dim2=2)[..., None]).sum(-1)
    if num_others:
        chosen = torch.zeros(second.shape[:3], dtype=torch.bool, device=second.device)
        x, y = matches[1].unbind(-1)
        chosen[torch.arange(len(x), device=x.device)[:, None], y, x] = True
        others = chosen.flatten(1).to(torch.uint8).argsort(dim=1, stable=True)[:, :num_others]
        candidates = second.flatten(1, 2).gather(1, others[..., None].expand(-1, -1, second.shape[-1]))
        count = (~chosen.flatten(1)).sum(1)[:, None, None]
        real = torch.arange(others.shape[1], device=x.device) < count
        more = (a @ candidates.mT > scores.diagonal(dim1=1, dim2=2)[..., None]) & real
        rank = rank + more.sum(-1)
    return masked_mean(1 / (1 + rank).to(a.dtype), valid)


def _ratios(similarity: Tensor, kind: str) -> Tensor:
    """Return the loss of each match, (B, N), from the similarities of all, (B, N, N), divided by the temperature."""
    if kind == "all":
        together = F.log_softmax(similarity.flatten(1), dim=1).view_as(similarity)
        return -together.diagonal(dim1=1, dim2=2).clamp(min=_LEAST)
    rows, columns = (F.log_softmax(similarity, dim=axis).diagonal(dim1=1, dim2=2) for axis in (2, 1))
    if kind == "dual":
        return -(rows + columns).clamp(min=_LEAST)
    return -rows.clamp(min=_LEAST) - columns.clamp(min=_LEAST)


def _take(maps: Tensor, coords: Tensor) -> Tensor:
    """Return the values of maps (B, H, W, ...) at whole pixels (x, y), (B, N, 2), as (B, N, ...)."""
    x, y = coords.unbind(-1)
    return maps[torch.arange(len(maps), device=maps.device)[:, None], y, x]


def _check(matches: tuple[Tensor, Tensor], valid: Tensor, settings: MatchingSettings) -> None:
    check_mask("valid", valid, ("B", "N"))
    for index, each in enumerate(matches):
        check_shape(f"matches[{index}]", each, (*valid.shape, 2))
    check_finite_positive("temperature", settings.temperature)
    check_option("kind", settings.kind, ("proper", "dual", "all"))
    check_option("confidence", settings.confidence, (None, "mean", "prod"))
    if settings.negatives is not None:
        check_range("negatives", settings.negatives, 0, 1)
