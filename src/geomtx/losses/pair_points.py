"""Losses of the point maps of pairs (DUSt3R, Wang et al. 2024; MASt3R, Leroy et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from geomtx.checks import check_finite_positive, check_mask, check_option, check_shape
from geomtx.layers.precision import float32_island
from geomtx.losses.aleatoric import ConfidenceWeighting
from geomtx.losses.reduce import masked_mean
from geomtx.types import Bool, Float, show_shapes

__all__ = [
    "CloudScale",
    "PairErrors",
    "PairPointSettings",
    "cloud_scale",
    "fit_cloud_scale",
    "pair_confidence_loss",
    "pair_point_errors",
]

CloudScale = Literal["avg_dis", "avg_log1p", "avg_warp-log1p", "median_dis", "sqrt_dis"]
"""What points are divided by, under its published name, of their distances d from the camera: their mean; the mean of
log(1 + d); the same, of points whose distance becomes log(1 + d); the median, without a gradient; (mean of √d)²."""

_SMALL = 1e-8
_SCALES = (1e-3, 1e3)  # of predicted clouds with `PairPointSettings.scale`
_SKY_ERROR = 2.0


@dataclass(frozen=True)
class PairPointSettings:
    """How predicted point maps of pairs are compared with true ones.

    Attributes:
        norm: Measure of size by which predicted and true points are divided, each by their own; None for none.
        true_scale: Whether the truth is not divided, which asks for its scale.
        shift: Whether the median z of each cloud is subtracted, after the division.
        scale: Whether each cloud is divided by its median distance from its median point, after these; with
            `true_scale` the prediction is multiplied to the truth's.
        log: Whether distances d from the camera become log(1 + d): "after" of both clouds at last, "before" of the
            truth alone at first; None for neither.
        max_metric_scale: Distance from the first camera from which on a valid point of a scene, of either view, unmakes
            that its lengths are in metres; None for no limit.
    """

    norm: CloudScale | None = "avg_dis"
    true_scale: bool = False
    shift: bool = False
    scale: bool = False
    log: Literal["before", "after"] | None = None
    max_metric_scale: float | None = None


@show_shapes
class PairErrors(NamedTuple):
    """Distances between predicted and true points of both images of pairs.

    Attributes:
        first: Distances in the first images, (B, H, W).
        second: Distances in the second images, (B, H', W').
        masks: Pixels of the first and of the second images that count, bool.
    """

    first: Tensor
    second: Tensor
    masks: tuple[Tensor, Tensor]

    def means(self) -> tuple[Tensor, Tensor]:
        """Return the mean over the pixels of each view that count, scalars."""
        return masked_mean(self.first, self.masks[0]), masked_mean(self.second, self.masks[1])


class _Clouds(NamedTuple):
    """Points of both views of B scenes, (B, N, 3), whatever their view, and which count, (B, N)."""

    points: Tensor
    mask: Tensor

    def divided(self, factor: Tensor) -> _Clouds:
        return self._replace(points=self.points / factor[:, None, None])


@float32_island
def pair_point_errors(
    predicted: tuple[Float[Tensor, "b h w 3"], Float[Tensor, "b h2 w2 3"]],
    truth: tuple[Float[Tensor, "b h w 3"], Float[Tensor, "b h2 w2 3"]],
    valid: tuple[Bool[Tensor, "b h w"], Bool[Tensor, "b h2 w2"]],
    settings: PairPointSettings | None = None,
    *,
    metric: Bool[Tensor, " b"] | None = None,
    sky: tuple[Bool[Tensor, "b h w"], Bool[Tensor, "b h2 w2"]] | None = None,
) -> PairErrors:
    """Return the distances of predicted points from true ones, after both clouds of a scene are normalised.

    Args:
        predicted: Predicted points of the first and of the second images, in the first cameras.
        truth: True points of both, in the first cameras too; anything, NaN included, where they are not valid.
        valid: Pixels with true points.
        settings: Settings of the comparison; defaults to the mean distances, DUSt3R's.
        metric: Scenes whose lengths are in metres, (B,) bool: both clouds are divided by the truth's factor, or, with
            `true_scale`, neither. Defaults to none.
        sky: Pixels of the sky; those without true points count with the error 2, a constant that teaches confidence
            alone. Defaults to none.

    Raises:
        ValueError: For shapes that don't fit each other, and unknown options.
    """
    settings = settings or PairPointSettings()
    _check(predicted, truth, valid, settings)
    wanted = _join(truth, valid)
    if settings.log == "before":
        wanted = wanted._replace(points=shorten(wanted.points))
    found = _join(predicted, valid)
    metric = torch.zeros_like(valid[0][:, 0, 0]) if metric is None else metric
    if settings.max_metric_scale is not None:
        metric = metric & ~reaches(wanted.points, wanted.mask, settings.max_metric_scale)
    found, wanted = _normalize(found, wanted, settings, metric)
    if settings.shift:
        found, wanted = _shift(found), _shift(wanted)
    if settings.scale:
        own, other = _spread(found).clamp(*_SCALES), _spread(wanted)
        found = found.divided(own / other if settings.true_scale else own)
        wanted = wanted if settings.true_scale else wanted.divided(other)
    a, b = found.points, wanted.points
    if settings.log == "after":
        a, b = shorten(a), shorten(b)
    counts = [mask[0].numel() for mask in valid]
    errors = (a - b).norm(dim=-1).split(counts, dim=1)
    first, second = (each.view_as(mask) for each, mask in zip(errors, valid, strict=True))
    if sky is None:
        return PairErrors(first, second, valid)
    shown = [above & ~mask for above, mask in zip(sky, valid, strict=True)]
    first, second = (torch.where(each, _SKY_ERROR, error) for each, error in zip(shown, (first, second), strict=True))
    return PairErrors(first, second, (valid[0] | shown[0], valid[1] | shown[1]))


@float32_island
def pair_confidence_loss(
    errors: PairErrors, confidence: tuple[Tensor, Tensor], *, alpha: float = 0.2
) -> Float[Tensor, ""]:
    """Return the sum over both views of the mean of c · error - α log c (DUSt3R's confidence-aware loss).

    Args:
        errors: Errors of the points of B pairs.
        confidence: Predicted confidence c of both views, (B, H, W), above 0.
        alpha: Weight α of the logarithm, which keeps c from falling. Defaults to the published one.
    """
    weighting = ConfidenceWeighting(alpha=alpha)
    terms = (
        masked_mean(weighting.apply(error, each, mask), mask)
        for error, each, mask in zip((errors.first, errors.second), confidence, errors.masks, strict=True)
    )
    return sum(terms, errors.first.new_zeros(()))


def reaches(points: Tensor, mask: Tensor, distance: float) -> Bool[Tensor, " b"]:
    """Return which scenes have a point that counts at least a distance away, (B,), of points (B, N, 3)."""
    return ((points.norm(dim=-1) >= distance) & mask).any(1)


def shorten(points: Tensor) -> Tensor:
    """Return points at the distance log(1 + d) in place of d from the origin, in the same direction, (..., 3)."""
    length = points.norm(dim=-1, keepdim=True)
    return points * length.log1p() / length.clamp(min=_SMALL)


def cloud_scale(points: Tensor, mask: Tensor, norm: CloudScale) -> Float[Tensor, " b"]:
    """Return what the points of each scene are divided by, (B,), at least 1e-8.

    Args:
        points: Points, (B, N, 3).
        mask: Points that count, (B, N) bool.
        norm: Name of the factor; "avg_warp-log1p" is that of points that `shorten` has moved.
    """
    length = points.norm(dim=-1)
    if norm == "median_dis":
        return length.detach().masked_fill(~mask, torch.nan).nanmedian(1).values.nan_to_num(1.0).clamp(min=_SMALL)
    if norm == "avg_log1p":
        length = length.log1p()
    if norm == "sqrt_dis":
        length = length.sqrt()
    mean = torch.where(mask, length, 0.0).sum(1) / (mask.sum(1) + _SMALL)
    return (mean.square() if norm == "sqrt_dis" else mean).clamp(min=_SMALL)


def fit_cloud_scale(
    found: Tensor, truth: Tensor, mask: Tensor, kind: Literal["avg", "median", "weiszfeld"] = "weiszfeld"
) -> Float[Tensor, " b"]:
    """Return the factor s by which the true points of each scene come nearest to the predicted ones, (B,).

    Args:
        found: Predicted points, (B, N, 3).
        truth: True points, (B, N, 3).
        mask: Points that count, (B, N) bool.
        kind: "avg" for the least squares, "median" for the median of each point's own factor, "weiszfeld" for the least
            sum of distances, in ten rounds from the least squares. At least 0.001, also where nothing counts.

    Raises:
        ValueError: For another kind.
    """
    check_option("kind", kind, ("avg", "median", "weiszfeld"))
    found, truth = (torch.where(mask[..., None], each, 0.0) for each in (found, truth))
    across, along = ((found * truth).sum(-1), truth.square().sum(-1))
    if kind == "median":
        return _median(across / along, mask).clamp(min=_SCALES[0])
    scale = across.sum(1) / along.sum(1).clamp(min=torch.finfo(along.dtype).tiny)
    for _ in range(10 if kind == "weiszfeld" else 0):
        distance = (found - scale[:, None, None] * truth).norm(dim=-1).clamp(min=_SMALL)
        scale = (across / distance).sum(1) / (along / distance).sum(1).clamp(min=torch.finfo(along.dtype).tiny)
    return scale.clamp(min=_SCALES[0])


def _normalize(found: _Clouds, wanted: _Clouds, settings: PairPointSettings, metric: Tensor) -> tuple[_Clouds, _Clouds]:
    norm = settings.norm
    if norm is None:
        return found, wanted
    if norm == "avg_warp-log1p":
        found = found._replace(points=shorten(found.points))
        wanted = wanted if settings.true_scale else wanted._replace(points=shorten(wanted.points))
    own, other = cloud_scale(*found, norm), cloud_scale(*wanted, norm)
    if settings.true_scale:
        return found.divided(torch.where(metric, 1.0, own)), wanted
    return found.divided(torch.where(metric, other, own)), wanted.divided(other)


def _join(points: tuple[Tensor, Tensor], masks: tuple[Tensor, Tensor]) -> _Clouds:
    """Return the points of both views as one cloud a scene; (1, 1, 1) where there are none, which keeps gradients."""
    mask = torch.cat([each.flatten(1) for each in masks], dim=1)
    cloud = torch.cat([each.flatten(1, 2) for each in points], dim=1)
    return _Clouds(torch.where(mask[..., None], cloud, 1.0), mask)


def _median(values: Tensor, mask: Tensor) -> Tensor:
    """Return the lower median over axis 1 of what counts; 0 where nothing does."""
    return values.masked_fill(~mask, torch.nan).nanmedian(1).values.nan_to_num(0.0)


def _shift(clouds: _Clouds) -> _Clouds:
    x, y, z = clouds.points.unbind(-1)
    return clouds._replace(points=torch.stack([x, y, z - _median(z, clouds.mask)[:, None]], dim=-1))


def _spread(clouds: _Clouds) -> Tensor:
    """Return the median distance from the median point, (B,)."""
    center = _median(clouds.points, clouds.mask[..., None].expand_as(clouds.points))
    spread = _median((clouds.points - center[:, None]).norm(dim=-1), clouds.mask)
    return torch.where(spread > 0, spread, 1.0)


def _check(
    predicted: tuple[Tensor, Tensor],
    truth: tuple[Tensor, Tensor],
    valid: tuple[Tensor, Tensor],
    settings: PairPointSettings,
) -> None:
    for index, mask in enumerate(valid):
        check_mask(f"valid[{index}]", mask, ("B", "H", "W"))
        check_shape(f"predicted[{index}]", predicted[index], (*mask.shape, 3))
        check_shape(f"truth[{index}]", truth[index], (*mask.shape, 3))
    check_option("norm", settings.norm, (None, *get_args(CloudScale)))
    check_option("log", settings.log, (None, "before", "after"))
    if settings.max_metric_scale is not None:
        check_finite_positive("max_metric_scale", settings.max_metric_scale)
