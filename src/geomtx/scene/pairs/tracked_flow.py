"""Optical flow between frames of a video by a tracker of points."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from geomtx.checks import check_count, check_shape
from geomtx.inference.chunks import track_in_chunks
from geomtx.models.video_tracker.model import VideoTracker
from geomtx.models.video_tracker.run import check_video, video_features
from geomtx.types import Float, Int

__all__ = ["check_tracked", "track_flow"]

_SEEN = 0.5  # visibility from which a point is one that a frame sees
_QUERY_CHUNK = 1024  # points that are tracked at a time


@torch.no_grad()
def track_flow(
    tracker: VideoTracker,
    video: Float[Tensor, "s 3 h w"],
    pairs: Int[Tensor, "e 2"],
    *,
    spacing: int = 8,
) -> Float[Tensor, "e 2 h w"]:
    """Return the optical flow of pairs of frames, from points on a grid that are tracked.

    The points of each frame are tracked through the frames around it as far as its pairs reach, and flow is
    interpolated between them. Feature maps are made once.

    Args:
        tracker: Tracker in evaluation mode. It sees the frames with sides that are the nearest multiples of its patch.
        video: Frames in [0, 1], (S, 3, H, W).
        pairs: First and second frame of each pair, (E, 2).
        spacing: Number of pixels from one point of the grid to the next, at least 1.

    Returns:
        Flow in pixels, (E, 2, H, W) float32 on the CPU; NaN where the second frame doesn't see the point.

    Raises:
        ValueError: For another shape, a video too small or too long for the tracker, and a spacing below 1.
    """
    check_shape("video", video, ("S", 3, "H", "W"))
    check_shape("pairs", pairs, ("E", 2))
    check_count("spacing", spacing)
    like, size = next(tracker.parameters()), video.shape[-2:]
    own = check_tracked(tracker, (size[0], size[1]), len(video))
    images = F.interpolate(video.to(like), own, mode="bilinear", antialias=True).clamp(0, 1)
    features = video_features(tracker, images[None])
    grid_hw = tuple(math.ceil(side / spacing) for side in size)
    y, x = ((torch.arange(num) + 0.5) * side / num - 0.5 for num, side in zip(grid_hw, own, strict=True))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1).to(like.device)
    factor = grid.new_tensor([size[1] / own[1], size[0] / own[0]])
    flow = torch.full((len(pairs), 2, *size), torch.nan)
    firsts = pairs[:, 0].tolist()
    for frame in sorted(set(firsts)):
        of_frame = [index for index, first in enumerate(firsts) if first == frame]
        seconds = pairs[of_frame, 1].tolist()
        low, high = min(frame, *seconds), max(frame, *seconds)
        queries = torch.cat([torch.full_like(grid[:, :1], frame - low), grid], dim=1)
        clip = partial(tracker.track, features[:, low : high + 1])
        tracks = track_in_chunks(clip, queries[None], _QUERY_CHUNK).tracks
        for index, second in zip(of_frame, seconds, strict=True):
            way = (tracks.coords_px[0, second - low].to(grid) - grid) * factor
            seen = tracks.visibility[0, second - low] > _SEEN
            flow[index] = _interpolate(way.T.unflatten(1, grid_hw), seen.view(grid_hw), size).cpu()
    return flow


def check_tracked(tracker: VideoTracker, image_hw: tuple[int, int], num_frames: int) -> tuple[int, int]:
    """Return the size in which a tracker sees frames, and refuse those that it can't work on.

    Args:
        tracker: The tracker.
        image_hw: Height and width of the frames.
        num_frames: Number of frames.

    Raises:
        ValueError: For frames that are too small, and a video whose feature maps don't fit into memory.
    """
    patch = tracker.config.patch_size
    height, width = (max(patch, patch * round(side / patch)) for side in image_hw)
    check_video(tracker, (height, width), num_frames, next(tracker.parameters()).device)
    return height, width


def _interpolate(flow: Tensor, known: Tensor, size: torch.Size) -> Tensor:
    """Return flow (2, h, w) in all pixels, (2, H, W), by what is known of it, (h, w); NaN where most isn't."""
    weight = known.to(flow.dtype)
    both = torch.cat([torch.where(known, flow, 0.0), weight[None]])[None]
    *total, share = F.interpolate(both, size, mode="bilinear")[0]
    return torch.where(share > 0.5, torch.stack(total) / share, torch.nan)
