"""Running a `VideoTracker` without gradients: feature maps of some frames at a time, and what memory that takes."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from geomtx.inference.chunks import map_chunks
from geomtx.inference.plan import free_bytes
from geomtx.models.video_tracker.model import VGGTFeatures, VideoTracker
from geomtx.tracking.image_features import ImageFeatures
from geomtx.types import Float, Tokens

__all__ = ["check_video", "video_features"]

_FRAMES = 8  # that are decoded to maps at a time
_COPIES = 10 / 3  # of the feature maps that tracking holds: as they come, normed, and a pyramid of 1 + 1/4 + …


def check_video(model: VideoTracker, image_hw: tuple[int, int], num_frames: int, device: torch.device) -> None:
    """Refuse a video that a tracker can't work on, or whose feature maps can't fit into what is free on a device.

    Args:
        model: The tracker.
        image_hw: Height and width of the frames in pixels.
        num_frames: Number of frames.
        device: Device that the model runs on.

    Raises:
        ValueError: For a single frame, frames that are too small, and too little memory.
    """
    side = model.tracker.min_image_side
    if num_frames < 2:
        raise ValueError(f"video must have at least 2 frames to track in, got {num_frames}")
    if min(image_hw) < side:
        raise ValueError(f"video must have at least {side} pixels a side, got {image_hw}")
    pixels = math.prod(length // model.config.stride for length in image_hw)
    needed, free = num_frames * pixels * model.config.vggt.track_features * 4 * _COPIES, free_bytes(device)
    if free is not None and needed > free:
        raise ValueError(
            f"video must be short enough for memory, got {num_frames} frames of {image_hw[1]}x{image_hw[0]} pixels: "
            f"their feature maps need {needed / 2**30:.3g} GiB on {device}, and {free / 2**30:.3g} GiB are free; take "
            "fewer frames (--fps, --max-views) or a smaller size (--size)"
        )


def video_features(model: VideoTracker, video: Float[Tensor, "b s 3 h w"]) -> Float[Tensor, "b s c h2 w2"]:
    """Return `model.features(video)`, of which no more than some frames are decoded at a time.

    VGGT's encoder sees as many frames at a time as the model's configuration says.
    """
    source = model.features
    if isinstance(source, ImageFeatures):  # of each frame alone
        return torch.cat([source(part) for part in video.split(_FRAMES, dim=1)], dim=1)
    if not isinstance(source, VGGTFeatures):
        maps: Tensor = source(video)
        return maps
    clips = []
    for clip in video.split(source.encoder_frames or video.shape[1], dim=1):
        tokens = source.vggt.encoder(clip, taps=source.decoder.taps)
        clips.append(map_chunks(partial(_decode, source, tokens), clip.shape[1], _FRAMES, dim=1))
    return torch.cat(clips, dim=1)


def _decode(source: VGGTFeatures, tokens: Tokens, frames: slice) -> Tensor:
    return source.pool_maps(tokens.take_views(frames))
