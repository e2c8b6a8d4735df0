"""One map for many: what stands for a pixel of all scenes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["DEPTH_WAYS", "POINT_WAYS", "map_views"]


def map_views(way: Callable[[Tensor], Tensor], values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """`way` of the first views and of all others, each (N, …); NaN is left out, and 1 stands where nothing is left."""
    first = torch.cat([value[:, 0] for value in values])
    others = torch.cat([value[:, 1:].flatten(0, 1) for value in values])
    maps = [way(part).nan_to_num(1.0) for part in (first, others if len(others) else first)]
    return maps[0], maps[1]


def _mean(values: Tensor) -> Tensor:
    return values.nanmean(0)


def _median(values: Tensor) -> Tensor:
    return values.nanmedian(0).values


def _geometric_mean(values: Tensor) -> Tensor:
    return values.log().nanmean(0).exp()


def _plane(values: Tensor) -> Tensor:
    return torch.full_like(values[0], float(values.nanmedian()))


def _relative_median(values: Tensor) -> Tensor:
    """The c of least Σ |c - g| / g: the median of g with weights 1 / g."""
    ordered = values.sort(0).values  # NaN comes last
    weights = torch.where(ordered.isnan(), 0.0, 1 / ordered).cumsum(0)
    index = (weights >= weights[-1:] / 2).int().argmax(0, keepdim=True)
    return ordered.gather(0, index)[0]


DEPTH_WAYS = (_mean, _median, _geometric_mean, _relative_median, _plane)
POINT_WAYS = (_mean, _median)
