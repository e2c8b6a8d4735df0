"""Point clouds from point maps: which pixels count, which are kept."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from geomtx.checks import check_range
from geomtx.types import Bool, Float, Int, UInt8, show_shapes

__all__ = ["NoPointsError", "PointCloud", "check_percentile", "confidence_threshold", "select_points"]


class NoPointsError(ValueError):
    """No pixel gives a point; the message names the cause."""


@show_shapes
class PointCloud(NamedTuple):
    """Coloured points, up to scale, in the first camera's frame (OpenCV axes: x right, y down, z forward).

    Attributes:
        xyz: (M, 3) float32, scene units.
        rgb: (M, 3) uint8.
        confidence: (M,) float32, larger is surer; compare ranks within a scene.
        view: (M,) int64, the index of the view that a point comes from.
    """

    xyz: Float[Tensor, "m 3"]
    rgb: UInt8[Tensor, "m 3"]
    confidence: Float[Tensor, " m"]
    view: Int[Tensor, " m"]


def check_percentile(percentile: float) -> None:
    """Require one, from 0 to 100.

    Raises:
        ValueError: Otherwise.
    """
    check_range("percentile", percentile, 0, 100)


def confidence_threshold(confidence: Float[Tensor, " n"], percentile: float) -> float:
    """The confidence at a percentile: one of the values, so that the values at or above it are never none.

    A percentile and not a fixed value, because the range of confidences differs from model to model.

    Raises:
        ValueError: For a percentile outside [0, 100].
    """
    check_percentile(percentile)
    return float(np.percentile(confidence.numpy(), percentile, method="lower"))


def select_points(
    points: Float[Tensor, "s h w 3"],
    confidence: Float[Tensor, "s h w"],
    images: UInt8[Tensor, "s 3 h w"],
    valid: Bool[Tensor, "s h w"],
    *,
    percentile: float = 20.0,
    max_points: int | None = None,
) -> PointCloud:
    """Keep the sure pixels of point maps.

    Args:
        points: (S, H, W, 3).
        confidence: (S, H, W).
        images: (S, 3, H, W), the colours.
        valid: (S, H, W), True = may be kept. Pixels that aren't finite never are.
        percentile: Keep valid pixels with a confidence at or above this percentile of all valid pixels' confidences.
            Ties are kept, so at least one is.
        max_points: At most so many; which ones is random, but the same in every call. None = all.

    Raises:
        NoPointsError: A ValueError, if no pixel is valid or no valid pixel is finite.
        ValueError: For a percentile outside [0, 100], or max_points below 1.
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
    if max_points is not None and len(index) > max_points:
        chosen = np.random.default_rng(0).permutation(len(index))[:max_points]
        index = index[torch.from_numpy(np.sort(chosen))]
    return PointCloud(
        xyz=points.reshape(-1, 3)[index].float(),
        rgb=images.movedim(1, -1).reshape(-1, 3)[index],
        confidence=confidence.flatten()[index].float(),
        view=index // confidence[0].numel(),
    )
