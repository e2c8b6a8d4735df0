"""Evaluation with few views: pose accuracy and mutual consistency of depth maps by number of views."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.losses.consistency.depth import DepthConsistencySettings, depth_consistency_loss
from geomtx.losses.consistency.warp import ViewPairs, warp_pixels
from geomtx.metrics.evaluate import measure_poses
from geomtx.types import Cameras, Predictions, SceneBatch

__all__ = ["SparseViewScores", "sparse_view_report"]

EVERY_PIXEL = DepthConsistencySettings(min_pixels=1)


class SparseViewScores(NamedTuple):
    """Means over the scenes with one number of views.

    Attributes:
        pose_auc_30: Area under the curve of pairwise pose errors up to 30 degrees, in [0, 1]; NaN without known
            cameras.
        depth_inconsistency: `depth_consistency_loss` of predicted depth with predicted cameras over all pairs of
            views; 0 if the maps describe one surface. Differences large enough to be occlusions don't count.
        fragmentation: Share, among the pixels inside another view, of those whose depth agrees with no other view's
            depth map to within 5 %: duplicated surfaces.
        scenes: Number of scenes.
    """

    pose_auc_30: float
    depth_inconsistency: float
    fragmentation: float
    scenes: int


@torch.no_grad()
def sparse_view_report(
    predict: Callable[[SceneBatch], Predictions], scenes: Mapping[int, Iterable[SceneBatch]]
) -> dict[int, SparseViewScores]:
    """Evaluate a model that predicts cameras and depth with several numbers of views, for instance 2, 3, 4 and 8.

    Args:
        predict: Function from a batch of scenes to predictions, for instance `lambda batch: model(batch.images)`.
        scenes: Batches of scenes, with or without known cameras, for every number of views, at least 2.

    Returns:
        `SparseViewScores` for every number of views.

    Raises:
        ValueError: For a scene with another number of views, a number below 2, no scenes, or predictions without
            cameras or depth.
    """
    return {num_views: _score(predict, num_views, batches) for num_views, batches in scenes.items()}


def _score(
    predict: Callable[[SceneBatch], Predictions], num_views: int, batches: Iterable[SceneBatch]
) -> SparseViewScores:
    """Return the mean scores of all scenes with `num_views` views."""
    if num_views < 2:
        raise ValueError(f"scenes must have at least 2 views, got {num_views}")
    # Row i holds all views but view i.
    others = torch.arange(num_views).expand(num_views, -1)[~torch.eye(num_views, dtype=torch.bool)]
    pairs = ViewPairs(others.unflatten(0, (num_views, num_views - 1)))
    columns: list[Tensor] = []
    for batch in batches:
        if batch.images.shape[1] != num_views:
            raise ValueError(f"scenes must have {num_views} views, got {batch.images.shape[1]}")
        columns.append(_measure(predict(batch), batch, pairs))
    if not columns:
        raise ValueError(f"scenes must not be empty, got none with {num_views} views")
    table = torch.cat(columns, dim=1)
    auc, inconsistency, fragmentation = table.nanmean(1).tolist()
    return SparseViewScores(auc, inconsistency, fragmentation, table.shape[1])


def _measure(predictions: Predictions, batch: SceneBatch, pairs: ViewPairs) -> Tensor:
    """Return the scores of every scene, (3, B), NaN where one is undefined."""
    if predictions.cameras is None or predictions.depth is None:
        raise ValueError("predictions must have cameras and depth, got none of one")
    depth = predictions.depth.value
    nothing = torch.full((depth.shape[0],), torch.nan, dtype=torch.float64)
    auc = measure_poses(predictions, batch).get("auc_30", nothing)
    inconsistency = [
        depth_consistency_loss(
            depth[one], Cameras(*(part[one] for part in predictions.cameras)), pairs, settings=EVERY_PIXEL
        )
        for one in (slice(i, i + 1) for i in range(depth.shape[0]))
    ]
    warp = warp_pixels(depth, predictions.cameras, pairs, max_error=1.0)
    agrees = (warp.valid & ((warp.depth_ratio - 1).abs() <= 0.05)).any(2).flatten(1)
    seen = warp.valid.any(2).flatten(1)
    fragments = (seen & ~agrees).sum(-1).double() / seen.sum(-1)
    return torch.stack([column.detach().cpu().double() for column in (auc, torch.stack(inconsistency), fragments)])
