"""Exact optical flow of rendered videos, and which of their pixels move by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.checks import check_range, check_shape
from geomtx.data.synthetic.lighting import pixel_rays
from geomtx.data.synthetic.motion import MOST_FRAMES
from geomtx.data.synthetic.render import VideoStyle, draw_video
from geomtx.data.synthetic.rooms import Dice
from geomtx.data.synthetic.solids import cast_rays, is_blocked
from geomtx.geometry.camera import invert_rigid, transform_points
from geomtx.geometry.projection import project
from geomtx.types import Cameras, Int, show_shapes

__all__ = ["VideoFlow", "trace_flow"]


@show_shapes
class VideoFlow(NamedTuple):
    """Optical flow of E pairs of the S frames of a video.

    Attributes:
        flow: Flow in pixels from the first to the second frame of each pair, (E, 2, H, W), also of what leaves the
            picture or is hidden there.
        visible: Pixels whose point the second frame sees, (E, H, W) bool.
        moving: Pixels of each frame on a solid that moves, (S, H, W) bool.
    """

    flow: Tensor
    visible: Tensor
    moving: Tensor


def trace_flow(
    seed: int,
    num_frames: int,
    image_hw: tuple[int, int],
    pairs: Int[Tensor, "e 2"] | Sequence[tuple[int, int]],
    *,
    style: VideoStyle | None = None,
    dtype: torch.dtype = torch.float32,
) -> VideoFlow:
    """Return the optical flow of the video of `render_videos` with the same seed, sizes and style, on the CPU.

    Args:
        seed: Seed of the video.
        num_frames: Number of its frames, up to 64.
        image_hw: Height and width of the frames in pixels.
        pairs: First and second frame of each pair, (E, 2).
        style: Style of the video; defaults to `VideoStyle()`.
        dtype: Precision of the arithmetic and the results; defaults to float32.

    Raises:
        ValueError: For a number of frames outside its range, or pairs of frames that there aren't.
    """
    check_range("num_frames", num_frames, 1, MOST_FRAMES)
    pairs = torch.as_tensor(pairs)
    check_shape("pairs", pairs, ("E", 2))
    for each in pairs.flatten().tolist():
        check_range("frame of a pair", each, 0, num_frames - 1)
    dice = Dice([seed], torch.device("cpu"), dtype, amount=8192)
    video, *_ = draw_video(dice, num_frames, image_hw, style or VideoStyle())
    cameras = Cameras(*(each[0] for each in video.cameras))
    eyes = invert_rigid(cameras.cam_from_world)[..., 3]
    directions = pixel_rays(video.cameras, image_hw)[0]
    hits = cast_rays(video.frames, eyes[:, None], directions[:, None])
    world = eyes[:, None] + hits.distance[:, 0, :, None] * directions
    surface, motions = hits.surface[:, 0], video.world_from_rest[0]
    moves = (motions != torch.eye(3, 4).to(motions)).flatten(2).any(-1).any(0)
    flow, visible = [], []
    for one, two in pairs.tolist():
        own, there = (motions[frame, surface[one]] for frame in (one, two))
        moved = transform_points(there, transform_points(invert_rigid(own), world[one, :, None]))[:, 0]
        ends = [
            project(points, cameras.intrinsics[frame], cameras.cam_from_world[frame])
            for points, frame in ((world[one], one), (moved, two))
        ]
        coords, depth = ends[1]
        inside = ((coords > -0.5) & (coords < coords.new_tensor(image_hw[::-1]) - 0.5)).all(-1) & (depth > 0)
        solids = type(video.frames)(*(each[two : two + 1] for each in video.frames))
        hidden = is_blocked(solids, eyes[None, two : two + 1], moved[None, None])[0, 0]
        flow.append((coords - ends[0][0]).T.unflatten(-1, image_hw))
        visible.append((inside & ~hidden).unflatten(-1, image_hw))
    return VideoFlow(torch.stack(flow), torch.stack(visible), moves[surface].unflatten(-1, image_hw))
