"""What query points, and images for them, have to be."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from geomtx.heads.track import TrackHead

__all__ = ["check_queries", "check_track_images"]


def check_queries(query_points: Tensor, images: Tensor) -> None:
    """Require query points (B, N, 2 or 3) to lie in the views of `images`; only where looking costs nothing."""
    if type(query_points) is not Tensor or not query_points.is_cpu or torch.compiler.is_compiling():
        return
    num_views, height, width = images.shape[1], images.shape[-2], images.shape[-1]
    view, x, y = torch.cat([torch.zeros_like(query_points[..., :1]), query_points], dim=-1)[..., -3:].unbind(-1)
    inside = (view >= 0) & (view < num_views) & (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
    if not inside.all():
        first = query_points[~inside][0].tolist()
        raise ValueError(f"query_points must lie in one of {num_views} views of {width}x{height} pixels, got {first}")


def check_track_images(images: Tensor, heads: Iterable[nn.Module]) -> None:
    """Require images that are large enough for heads of tracks, before the encoder's work is done in vain."""
    side = max((head.tracker.min_image_side for head in heads if isinstance(head, TrackHead)), default=0)
    if min(images.shape[-2:]) < side:
        raise ValueError(f"images must have at least {side} pixels a side for tracks, got {tuple(images.shape[-2:])}")
