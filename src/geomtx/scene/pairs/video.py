"""Alignment of a video in which things move: which pixels these are, and the cameras by what stands still."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.geometry.camera import invert_rigid
from geomtx.inference.pair_maps import PairMaps
from geomtx.models.video_tracker import VideoTracker
from geomtx.scene.pairs.confidence import leave_out_pixels
from geomtx.scene.pairs.global_alignment import AlignmentOptions, KnownOfImages, PairAlignment, align_pairs
from geomtx.scene.pairs.motion import MotionTerms, camera_flow, check_both_directions, check_motion, moving_pixels
from geomtx.scene.pairs.pair_graph import check_pairs, score_pairs
from geomtx.scene.pairs.tracked_flow import check_tracked, track_flow
from geomtx.types import Bool, Float, Int, show_shapes

__all__ = [
    "VIDEO_ALIGNMENT",
    "VideoAlignment",
    "align_video",
    "check_video_of_pairs",
    "find_moving",
    "motion_terms",
]

VIDEO_ALIGNMENT = AlignmentOptions(shared_focal=True, steps=100)
"""Options for the frames of one camera: least squares, then fewer steps than from the start that is published."""


_PUBLISHED_SIDE = 512


@show_shapes
class VideoAlignment(NamedTuple):
    """Cameras and depth of the S frames of a video, and what moves in them.

    Attributes:
        alignment: Cameras and depth of each frame, of moving pixels too.
        moving: Pixels that move by themselves, (S, H, W) bool; None where no optical flow was there to find them.
    """

    alignment: PairAlignment
    moving: Tensor | None


def align_video(
    maps: PairMaps,
    terms: MotionTerms,
    options: AlignmentOptions = VIDEO_ALIGNMENT,
    *,
    known: KnownOfImages = KnownOfImages(),  # noqa: B008  (immutable)
    device: torch.device | None = None,
) -> VideoAlignment:
    """Return cameras and depth of the frames of a video, and the pixels that move by themselves.

    Moving pixels are found by the cameras of each pair alone, and don't count in the flow's term of the alignment; with
    its cameras, which are better ones, they are found again, by the rule "median" of `moving_pixels`.

    Args:
        maps: Point maps of pairs that come in both directions, of frames of one size in the order of time.
        terms: Terms of the alignment. Their flow is that of each pair, (E, 2, H, W), NaN where it isn't known, from
            `track_flow` or elsewhere; None for smooth cameras alone. Of a flow forwards and back, the first is read, as
            pairs come in both directions. Their moving pixels, where they are given, stay.
        options: Options of the alignment; by default one focal length for all, and 100 steps after least squares.
        known: Known values of the frames; flow doesn't count in pixels that take no part.
        device: Device to compute on; defaults to the device of the points.

    Raises:
        ValueError: If pairs lack their reverse, flow has another shape, and as `align_pairs`.

    Source: Zhang et al. 2024 (MonST3R), section 3.3; that moving pixels are found again is ours.
    """
    num_frames = 1 + max(maps.pairs.flatten().tolist(), default=0)
    sizes = check_pairs(maps, num_frames)
    check_motion(terms, maps.pairs, sizes)
    check_both_directions(maps.pairs)
    moving = terms.moving
    # Of pairs that come in both directions, the flow back is that of other pairs.
    flow = terms.flow if terms.flow is None or isinstance(terms.flow, Tensor) else terms.flow[0]
    if flow is not None:
        flow = flow.float()
        if known.masks is not None:
            seen = torch.stack([each.to(flow.device) for each in known.masks])
            flow = torch.where(seen[maps.pairs[:, 0].to(flow.device)][:, None], flow, torch.nan)
        if moving is None:
            moving = find_moving(maps, flow, known=known)
    found = align_pairs(
        maps, num_frames, options, known=known, motion=terms._replace(flow=flow, moving=moving), device=device
    )
    if flow is not None and terms.moving is None:
        induced = _induced_flow(maps.pairs.cpu(), found).to(flow.device)
        moving = moving_pixels(maps.pairs.to(flow.device), induced, flow, num_frames, rule="median")
    return VideoAlignment(found, moving)


def find_moving(
    maps: PairMaps,
    flow: Float[Tensor, "e 2 h w"],
    *,
    known: KnownOfImages = KnownOfImages(),  # noqa: B008  (immutable)
) -> Bool[Tensor, "s h w"]:
    """Return the pixels of each frame whose flow isn't that of the cameras of its pairs, (S, H, W) bool.

    Cameras and depth are those of each pair by itself, from its point maps in both directions.

    Args:
        maps: Point maps of pairs that come in both directions, of frames of one size.
        flow: Optical flow of each pair, (E, 2, H, W), NaN where it isn't known.
        known: Known values of the frames; of these, focal lengths and masks are heeded.

    Raises:
        ValueError: If pairs lack their reverse, or a pair has no confident pixels.
    """
    check_both_directions(maps.pairs)
    maps = leave_out_pixels(maps, known.masks)
    score_pairs(maps)  # which names the pairs that alignment of two images would call 0 and 1
    pairs: list[tuple[int, int]] = [(first, second) for first, second in maps.pairs.tolist()]
    index = {pair: number for number, pair in enumerate(pairs)}
    induced = torch.empty_like(flow)
    for pair in pairs:
        if pair[0] < pair[1]:
            there_and_back = [index[pair], index[pair[::-1]]]
            both = maps.take(there_and_back)._replace(pairs=torch.tensor([[0, 1], [1, 0]]))
            focals = None if known.focals is None else known.focals[list(pair)]
            found = align_pairs(both, 2, known=KnownOfImages(focals))
            induced[there_and_back] = _induced_flow(both.pairs, found).to(flow)
    return moving_pixels(maps.pairs.to(flow.device), induced, flow, 1 + max(max(pair) for pair in pairs))


def check_video_of_pairs(
    motion: object, alignment: object, pairs: Int[Tensor, "e 2"], sizes: Sequence[tuple[int, int]]
) -> AlignmentOptions:
    """Return the options of the alignment of a video, and refuse what can't be aligned so before a model runs.

    Args:
        motion: Terms of the alignment, or the tracker that finds the flow for them.
        alignment: Options that were asked for; None for those of a video.
        pairs: Two frames each, (E, 2).
        sizes: Height and width of each frame.

    Raises:
        ValueError: For options of matches, a single frame, and terms that don't fit.
    """
    if not isinstance(motion, MotionTerms | VideoTracker):
        raise ValueError(f"motion must be MotionTerms or a VideoTracker, got {motion!r:.60}")
    if not isinstance(alignment, AlignmentOptions | None):
        raise ValueError(f"alignment must be AlignmentOptions with motion, got {alignment!r:.60}")
    if len(sizes) < 2:
        raise ValueError(f"motion must be of at least two frames, got {len(sizes)}")
    check_both_directions(pairs)
    check_motion(motion if isinstance(motion, MotionTerms) else MotionTerms(), pairs, sizes)
    if isinstance(motion, VideoTracker):
        check_tracked(motion, sizes[0], len(sizes))
    return alignment or VIDEO_ALIGNMENT


def motion_terms(
    motion: MotionTerms | VideoTracker, frames: Sequence[Float[Tensor, "3 h w"]], pairs: Int[Tensor, "e 2"]
) -> MotionTerms:
    """Return terms as they are, or those with the flow of a tracker.

    The flow's weight is the published one at a longer side of 512 pixels, and grows as images get smaller.

    Args:
        motion: Terms of the alignment, or a tracker.
        frames: Frames of the video, in [0, 1].
        pairs: Two frames each, (E, 2).

    Raises:
        ValueError: As `track_flow`.
    """
    if isinstance(motion, MotionTerms):
        return motion
    terms = MotionTerms(track_flow(motion, torch.stack(list(frames)), pairs))
    return terms._replace(flow_weight=terms.flow_weight * _PUBLISHED_SIDE / max(frames[0].shape[-2:]))


def _induced_flow(pairs: Int[Tensor, "e 2"], found: PairAlignment) -> Float[Tensor, "e 2 h w"]:
    """Return the flow that cameras give what stands still, pair by pair."""
    cameras = invert_rigid(found.cameras.cam_from_world), found.cameras.intrinsics
    flows = []
    for pair in pairs.split(1):
        first, second = (tuple(each[index] for each in cameras) for index in pair.unbind(1))
        flows.append(camera_flow(found.depth[int(pair[0, 0])][None], (first[0], first[1]), (second[0], second[1])))
    return torch.cat(flows)
