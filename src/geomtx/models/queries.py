"""What query points, and images for them, have to be."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from geomtx.checks import check_shape
from geomtx.heads.track import TrackHead

__all__ = ["batch_queries", "check_queries", "check_track_images"]


def batch_queries(query_points: Tensor, num_scenes: int, *widths: int) -> Tensor:
    """With the B axis; ValueError for what is no tensor (B, N, one of `widths`), or (N, …) for one scene."""
    if not isinstance(query_points, Tensor):
        raise ValueError(f"query_points must be a tensor, got {type(query_points).__name__}; torch.tensor(…) makes one")
    batched = query_points[None] if query_points.ndim == 2 else query_points
    check_shape("query_points", batched, *((num_scenes, "N", width) for width in widths))
    return batched


def check_queries(query_points: Tensor, images: Tensor) -> None:
    """Require query points (B, N, 2 or 3) to lie in the views of `images`; only where looking costs nothing."""
    if type(query_points) is not Tensor or not query_points.is_cpu or torch.compiler.is_compiling():
        return
    num_views, height, width = images.shape[1], images.shape[-2], images.shape[-1]
    view, x, y = torch.cat([torch.zeros_like(query_points[..., :1]), query_points], dim=-1)[..., -3:].unbind(-1)
    inside = (view >= 0) & (view < num_views) & (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
    for fits, demand in (
        (view == view.floor(), "name views by whole numbers, as (view, x, y)"),
        (inside, f"lie in one of {num_views} views of {width}x{height} pixels"),
    ):
        if not fits.all():
            raise ValueError(f"query_points must {demand}, got {query_points[~fits][0].tolist()}")


def check_track_images(images: Tensor, heads: Iterable[nn.Module]) -> None:
    """Require images that are large enough for heads of tracks, before the encoder's work is done in vain."""
    for head in heads:
        side = head.tracker.min_image_side if isinstance(head, TrackHead) else 0
        if min(images.shape[-2:]) < side:
            got = tuple(images.shape[-2:])
            raise ValueError(f"images must have at least {side} pixels a side for tracks, got {got}")
