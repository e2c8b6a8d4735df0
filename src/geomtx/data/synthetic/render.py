"""Photos and videos of textured rooms, rendered by analytic ray casting with exact ground truth, and the seeds of
training and held-out scenes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geomtx.checks import check_positive, check_range
from geomtx.data.synthetic.lighting import LitRoom, rays_through
from geomtx.data.synthetic.motion import (
    MOST_FRAMES,
    MotionStyle,
    carry_solids,
    carry_textures,
    move_camera,
    move_solids,
)
from geomtx.data.synthetic.rooms import (
    Dice,
    Lights,
    RoomStyle,
    pick_textures,
    place_cameras,
    place_lights,
    place_solids,
)
from geomtx.data.synthetic.solids import Solids, Textures, cast_rays, is_blocked
from geomtx.geometry.camera import invert_rigid, transform_points
from geomtx.geometry.projection import project, unproject
from geomtx.types import Cameras, SceneBatch, TrackLabels, show_shapes

__all__ = [
    "FIRST_HELD_OUT_SEED",
    "HELD_OUT_SCENES",
    "MOST_TRACKS",
    "MOST_VIEWS",
    "MovingRoom",
    "VideoStyle",
    "draw_video",
    "held_out_seed",
    "is_held_out",
    "render_scenes",
    "render_videos",
    "training_seed",
]

FIRST_HELD_OUT_SEED = 2**31
"""First seed of held-out scenes, for validation and benchmarks; training draws seeds below."""
# It cannot be higher, because torch's generator on the CPU uses only the lower 32 bits of a seed.

HELD_OUT_SCENES: dict[str, range] = {
    "validation": range(1_000_000),
    "nano": range(1_000_000, 2_000_000),
    "constant guess": range(2_000_000, 3_000_000),
    "ablations": range(4_000_000, 5_000_000),
    "demo": range(5_000_000, 6_000_000),
    "exactness": range(6_000_000, 7_000_000),
    "novel views": range(7_000_000, 8_000_000),
    "videos": range(8_000_000, 9_000_000),
    "rooms beside videos": range(9_000_000, 10_000_000),
    "tests": range(10_000_000, 11_000_000),
    "refinement": range(11_000_000, 12_000_000),
    "pairs": range(12_000_000, 13_000_000),
    "moving things": range(13_000_000, 14_000_000),
}
"""Who draws which held-out scenes: indices for `held_out_seed`, no two ranges with a scene in common."""


def training_seed(stream: int, step: int, index: int) -> int:
    """Return the seed of a training scene, in 0 … 2³¹ - 1.

    Args:
        stream: Seed of the run.
        step: Step of the run.
        index: Index of the scene among those of the step, over all processes.
    """
    digest = hashlib.blake2b(f"{stream} {step} {index}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % FIRST_HELD_OUT_SEED


def held_out_seed(index: int) -> int:
    """Return the seed of a scene that is never trained on, 2³¹ + `index`.

    Raises:
        ValueError: For an index outside 0 … 2³¹ - 1.
    """
    if not 0 <= index < FIRST_HELD_OUT_SEED:
        raise ValueError(f"index must be in 0 … {FIRST_HELD_OUT_SEED - 1}, got {index}")
    return FIRST_HELD_OUT_SEED + index


def is_held_out(seed: int) -> bool:
    """Return whether training never draws `seed`."""
    return seed >= FIRST_HELD_OUT_SEED


MOST_TRACKS = 1024
MOST_VIEWS = 24


def render_scenes(
    seeds: Sequence[int],
    num_views: int,
    image_hw: tuple[int, int],
    *,
    num_tracks: int = 0,
    supersample: int = 1,
    style: RoomStyle | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> SceneBatch:
    """Render random rooms.

    A seed gives the same scene in every batch, whatever the number of views, tracks and pixels; pixel centres are at
    integers, the principal point at (W/2, H/2).

    Args:
        seeds: Seed of each scene.
        num_views: Number of pictures of each scene, up to 24.
        image_hw: Height and width of the pictures in pixels.
        num_tracks: Number of points of view 0 to follow, up to 1024; visibility is exact, by another ray to each
            point. Defaults to 0.
        supersample: Number of colour rays per pixel along each axis; defaults to 1.
        style: Ranges of the rooms' properties; defaults to `RoomStyle()`.
        device: Device to render on; defaults to the CPU.
        dtype: Precision of the arithmetic and the results; defaults to float32.

    Returns:
        `SceneBatch` with B = len(seeds); the world frame is the room's, not the first camera's, in metres.
        Every pixel has depth.

    Raises:
        ValueError: For no seeds, a number of views or tracks outside its range, sizes that aren't positive.
    """
    check_range("num_views", num_views, 1, MOST_VIEWS)
    _check_arguments(seeds, image_hw, num_tracks, supersample)
    style = style or RoomStyle()
    dice = Dice(seeds, torch.device(device or "cpu"), dtype)
    solids, textures, lights, picks = _draw_room(dice, style)
    cameras = place_cameras(dice, solids, style, num_views, image_hw)
    room = LitRoom(solids, textures, lights, style.shadows)
    images, depth = room.photograph(cameras, image_hw, supersample)
    tracks = None
    if num_tracks:
        tracks = _follow(solids, cameras, image_hw, picks[:, :num_tracks])
    points = unproject(depth, cameras.intrinsics, cameras.cam_from_world)
    return SceneBatch(images, cameras, None, depth, points, torch.ones_like(depth, dtype=torch.bool), tracks)


def _check_arguments(seeds: Sequence[int], image_hw: tuple[int, int], num_tracks: int, supersample: int) -> None:
    if not len(seeds):
        raise ValueError("seeds must hold at least one seed, got none")
    check_range("num_tracks", num_tracks, 0, MOST_TRACKS)
    for name, value in (("image_hw", min(image_hw)), ("supersample", supersample)):
        check_positive(name, value)


def _draw_room(dice: Dice, style: RoomStyle) -> tuple[Solids, Textures, Lights, Tensor]:
    """Draw what is in the rooms, and the positions (B, MOST_TRACKS, 2) in [0, 1) where tracks start in a picture."""
    solids = place_solids(dice, style)
    return solids, pick_textures(dice, style), place_lights(dice, solids), dice.roll(MOST_TRACKS, 2)


def _follow(solids: Solids, cameras: Cameras, image_hw: tuple[int, int], picks: Tensor) -> TrackLabels:
    """Track the points that view 0 sees at `picks`, (B, N, 2) in [0, 1), through all views."""
    height, width = image_hw
    num_views = cameras.intrinsics.shape[1]
    start_px = picks * picks.new_tensor([width - 1, height - 1])
    first = Cameras(*(t[:, :1] for t in cameras))
    eyes = invert_rigid(cameras.cam_from_world)[..., 3]
    directions = rays_through(first, start_px[:, None])
    points = eyes[:, :1, None] + cast_rays(solids, eyes[:, :1], directions).distance[..., None] * directions
    points = points.expand(-1, num_views, -1, -1)
    coords, depth = project(points, cameras.intrinsics, cameras.cam_from_world)
    coords = torch.cat([start_px[:, None], coords[:, 1:]], dim=1)
    inside = (coords >= -0.5).all(-1) & (coords[..., 0] < width - 0.5) & (coords[..., 1] < height - 0.5)
    visible = inside & ~is_blocked(solids, eyes, points) & (depth > 0)
    visible[:, 0] = True
    return TrackLabels(coords, visible, torch.ones_like(visible[:, 0]))


class VideoStyle(NamedTuple):
    """Style of rendered videos.

    Attributes:
        room: Ranges of the rooms' properties; defaults to `RoomStyle()`.
        motion: Ranges of the motions; defaults to `MotionStyle()`.
    """

    room: RoomStyle = RoomStyle()
    motion: MotionStyle = MotionStyle()


_NUM_SIDES = 6  # the sides of a room are its first surfaces
_CHUNK_RAYS = 1 << 15  # rays at a time, so that intermediate results stay in a CPU's cache


def render_videos(
    seeds: Sequence[int],
    num_frames: int,
    image_hw: tuple[int, int],
    *,
    num_tracks: int = 0,
    supersample: int = 1,
    style: VideoStyle | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> SceneBatch:
    """Render the rooms of `render_scenes` as videos: a camera on a smooth path, and solids that move rigidly.

    A seed gives the same video in every batch, whatever the number of tracks and pixels; a shorter video is the
    beginning of a longer one. Conventions are those of `render_scenes`; without motion every frame is its view 0.

    Args:
        seeds: Seed of each video.
        num_frames: Number of frames of each video, up to 64.
        image_hw: Height and width of the frames in pixels.
        num_tracks: Number of points to follow, up to 1024. They are visible at random pixels of random frames, equally
            many per frame, and move with their solid or stay with the room. Defaults to 0.
        supersample: Number of colour rays per pixel along each axis; defaults to 1.
        style: Ranges of the properties of rooms and motions; defaults to `VideoStyle()`.
        device: Device to render on; defaults to the CPU.
        dtype: Precision of the arithmetic and the results; defaults to float32.

    Returns:
        `SceneBatch` with B = len(seeds), S = num_frames. Depth, points and cameras are exact in every frame; the world
        is the room's, in metres. Tracks are all valid, and seen in at least one frame; visibility is exact, by another
        ray to each point where everything is in that frame. Which frame a track is drawn from is not recorded: any
        frame in which it is visible can be its query's.

    Raises:
        ValueError: For no seeds, a number of frames or tracks outside its range, sizes that aren't positive.
    """
    check_range("num_frames", num_frames, 1, MOST_FRAMES)
    _check_arguments(seeds, image_hw, num_tracks, supersample)
    style = style or VideoStyle()
    dice = Dice(seeds, torch.device(device or "cpu"), dtype, amount=8192)
    video, textures, lights, picks = draw_video(dice, num_frames, image_hw, style)
    order = dice.roll(MOST_TRACKS + MOST_FRAMES)
    frames, cameras = video.frames, video.cameras
    paint = carry_textures(textures, video.world_from_rest)
    lights = Lights(*(t.repeat_interleave(num_frames, dim=0) for t in lights))
    images, depth = _film(frames, paint, lights, cameras, image_hw, supersample, style.room.shadows)
    tracks = None
    if num_tracks:
        points = _draw_points(frames, cameras, image_hw, picks, order, num_tracks)
        tracks = _follow_moving(points, frames, video.world_from_rest, cameras, image_hw)
    world = unproject(depth, cameras.intrinsics, cameras.cam_from_world)
    return SceneBatch(images, cameras, None, depth, world, torch.ones_like(depth, dtype=torch.bool), tracks)


@show_shapes
class MovingRoom(NamedTuple):
    """What is where in each of S frames of B videos.

    Attributes:
        frames: Solids of B·S scenes, one per frame.
        cameras: Cameras, (B, S, …).
        world_from_rest: Motion of each surface, the six sides of the room first, (B, S, U, 3, 4); the identity for
            those that stand still.
    """

    frames: Solids
    cameras: Cameras
    world_from_rest: Tensor


def draw_video(
    dice: Dice, num_frames: int, image_hw: tuple[int, int], style: VideoStyle
) -> tuple[MovingRoom, Textures, Lights, Tensor]:
    """Draw rooms and all motions in them; returns also textures at rest, lights, and the positions of tracks."""
    solids, textures, lights, picks = _draw_room(dice, style.room)
    camera = place_cameras(dice, solids, style.room, 1, image_hw)
    cam_from_world = move_camera(dice, solids, camera.cam_from_world[:, 0], style.motion)
    solids, moves = move_solids(dice, solids, invert_rigid(cam_from_world)[..., 3], style.motion)
    moves = moves[:, :num_frames]
    cameras = Cameras(
        cam_from_world[:, :num_frames].contiguous(), camera.intrinsics.expand(-1, num_frames, -1, -1).contiguous()
    )
    sides = torch.eye(3, 4).to(moves).expand(len(moves), num_frames, _NUM_SIDES, 3, 4)
    video = MovingRoom(carry_solids(solids, moves), cameras, torch.cat([sides, moves], dim=2))
    return video, textures, lights, picks


def _film(
    solids: Solids,
    textures: Textures,
    lights: Lights,
    cameras: Cameras,
    image_hw: tuple[int, int],
    supersample: int,
    shadows: bool,
) -> tuple[Tensor, Tensor]:
    """Render pictures and depth (B, S, …) of B·S scenes, one per frame."""
    num_videos, num_frames = cameras.intrinsics.shape[:2]
    singles = Cameras(*(t.flatten(0, 1)[:, None] for t in cameras))
    num_rays = _CHUNK_RAYS if cameras.intrinsics.device.type == "cpu" else 32 * _CHUNK_RAYS
    size = max(1, num_rays // (image_hw[0] * image_hw[1]))
    chunks = []
    for start in range(0, num_videos * num_frames, size):
        part = slice(start, start + size)
        room = LitRoom(_take(solids, part), _take(textures, part), _take(lights, part), shadows)
        chunks.append(room.photograph(_take(singles, part), image_hw, supersample))
    images, depth = (torch.cat(parts).squeeze(1) for parts in zip(*chunks, strict=True))
    return images.unflatten(0, (num_videos, num_frames)), depth.unflatten(0, (num_videos, num_frames))


def _take(value: Any, part: slice) -> Any:
    """Take some scenes of a named tuple of tensors."""
    return type(value)(*(tensor[part] for tensor in value))


class _Points(NamedTuple):
    """N points of each video: world points (B, N, 3) in the frame where they are drawn, surfaces (B, N), frames (B, N)
    and pixels (B, N, 2).
    """

    world: Tensor
    surface: Tensor
    frame: Tensor
    start_px: Tensor


def _draw_points(
    solids: Solids, cameras: Cameras, image_hw: tuple[int, int], picks: Tensor, order: Tensor, num_tracks: int
) -> _Points:
    """Draw the points that are visible at `picks`, (B, MOST_TRACKS, 2) in [0, 1), of frames in random `order`."""
    num_videos, num_frames = cameras.intrinsics.shape[:2]
    # Each round takes a point from every frame, in an order of its own; the last one may end early.
    num_rounds = -(-num_tracks // num_frames)
    amount = num_rounds * num_frames
    frame = order[:, :amount].unflatten(1, (num_rounds, num_frames)).argsort(dim=-1).flatten(1)
    picks = torch.nn.functional.pad(picks, (0, 0, 0, MOST_FRAMES))[:, :amount]
    start_px = picks * picks.new_tensor([image_hw[1] - 1, image_hw[0] - 1])
    # To each frame its own points, for one cast of rays, and back.
    by_frame = frame.argsort(dim=-1, stable=True)
    coords = start_px.gather(1, by_frame[..., None].expand(-1, -1, 2)).unflatten(1, (num_frames, num_rounds))
    eyes = invert_rigid(cameras.cam_from_world)[..., 3]
    directions = rays_through(cameras, coords)
    hits = cast_rays(solids, eyes.flatten(0, 1)[:, None], directions.flatten(0, 1)[:, None])
    world = eyes[:, :, None] + hits.distance.view(*directions.shape[:3], 1) * directions
    back = by_frame.argsort(dim=-1)[:, :num_tracks]
    return _Points(
        world.flatten(1, 2).gather(1, back[..., None].expand(-1, -1, 3)),
        hits.surface.view(num_videos, -1).gather(1, back),
        frame[:, :num_tracks],
        start_px[:, :num_tracks],
    )


def _follow_moving(
    points: _Points, solids: Solids, world_from_rest: Tensor, cameras: Cameras, image_hw: tuple[int, int]
) -> TrackLabels:
    """Track points that move with their surfaces by `world_from_rest` (B, S, U, 3, 4)."""
    num_frames = cameras.intrinsics.shape[1]
    batch = torch.arange(len(points.frame), device=points.frame.device)[:, None]
    moves = world_from_rest.transpose(1, 2)[batch, points.surface]  # (B, N, S, 3, 4)
    at_start = world_from_rest[batch, points.frame, points.surface]
    rest = transform_points(invert_rigid(at_start), points.world[:, :, None])
    world = transform_points(moves, rest[:, :, None])[..., 0, :].transpose(1, 2)
    coords, depth = project(world, cameras.intrinsics, cameras.cam_from_world)
    is_start = points.frame[:, None] == torch.arange(num_frames, device=depth.device)[:, None]
    coords = torch.where(is_start[..., None], points.start_px[:, None], coords)
    limit = coords.new_tensor([image_hw[1] - 0.5, image_hw[0] - 0.5])
    inside = ((coords >= -0.5) & (coords < limit)).all(-1)
    eyes = invert_rigid(cameras.cam_from_world)[..., 3]
    blocked = is_blocked(solids, eyes.flatten(0, 1)[:, None], world.flatten(0, 1)[:, None]).view_as(inside)
    visible = inside & ~blocked & (depth > 0) | is_start
    return TrackLabels(coords, visible, torch.ones_like(points.frame, dtype=torch.bool))
