"""Point clouds from point maps."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from geomtx.checks import check_range
from geomtx.types import Bool, Float, Int, UInt8, show_shapes

__all__ = ["NoPointsError", "PointCloud", "check_percentile", "confidence_threshold", "sample_indices", "select_points"]


class NoPointsError(ValueError):
    """An error that says why no pixel gives a point."""


@show_shapes
class PointCloud(NamedTuple):
    """Coloured points, up to scale, in the first camera's frame (OpenCV axes: x right, y down, z forward).

    Attributes:
        xyz: Coordinates (M, 3) float32 in units of the scene.
        rgb: Colours (M, 3) uint8.
        confidence: Confidence (M,) float32, which ranks the points of a scene and is not a probability.
        view: Index (M,) int64 of the view that a point comes from.
    """

    xyz: Float[Tensor, "m 3"]
    rgb: UInt8[Tensor, "m 3"]
    confidence: Float[Tensor, " m"]
    view: Int[Tensor, " m"]


def check_percentile(percentile: float) -> None:
    """Require a percentile from 0 to 100.

    Raises:
        ValueError: If it is outside.
    """
    check_range("percentile", percentile, 0, 100)


def confidence_threshold(confidence: Float[Tensor, " n"], percentile: float) -> float:
    """Return the confidence at a percentile, which is one of the values, so that at least one is kept.

    A percentile and not a fixed value, because the range of confidences differs from model to model.

    Raises:
        ValueError: If the percentile is outside [0, 100].
    """
    check_percentile(percentile)
    return float(np.percentile(confidence.numpy(), percentile, method="lower"))


def sample_indices(count: int, most: int) -> Int[Tensor, " m"]:
    """Return the indices of at most `most` of `count` values in rising order, at random but the same in every call."""
    if count <= most:
        return torch.arange(count)
    return torch.from_numpy(np.sort(np.random.default_rng(0).permutation(count)[:most]))


def select_points(
    points: Float[Tensor, "s h w 3"],
    confidence: Float[Tensor, "s h w"],
    images: UInt8[Tensor, "s 3 h w"],
    valid: Bool[Tensor, "s h w"],
    *,
    percentile: float = 20.0,
    max_points: int | None = None,
) -> PointCloud:
    """Return the confident pixels of point maps as a point cloud.

    Args:
        points: Points (S, H, W, 3).
        confidence: Confidences (S, H, W).
        images: Images (S, 3, H, W) that give the colours.
        valid: Boolean mask of the pixels that may be kept, (S, H, W). Pixels that are not finite never are.
        percentile: Keep valid pixels with a confidence at or above this percentile of all valid pixels' confidences.
            Ties are kept, so at least one is.
        max_points: Largest number of points, chosen at random but the same in every call; defaults to no limit.

    Raises:
        NoPointsError: If no pixel is valid or no valid pixel is finite; a ValueError.
        ValueError: If the percentile is outside [0, 100], or max_points below 1.
    """
    if max_points is not None and max_points < 1:
        raise ValueError(f"max_points must be at least 1, got {max_points}")
    if not valid.any():
        raise NoPointsError("no points: masks and padding leave no pixel")
    valid = valid & points.isfinite().all(dim=-1) & confidence.isfinite()
    if not valid.any():
        raise NoPointsError("no finite points: the predictions are not finite")
    keep = valid & (confidence >= confidence_threshold(confidence[valid], percentile))
    index = keep.flatten().nonzero()[:, 0]
    if max_points is not None:
        index = index[sample_indices(len(index), max_points)]
    return PointCloud(
        xyz=points.reshape(-1, 3)[index].float(),
        rgb=images.movedim(1, -1).reshape(-1, 3)[index],
        confidence=confidence.flatten()[index].float(),
        view=index // confidence[0].numel(),
    )
