"""Textured rooms, rendered by analytic ray casting on the device that trains on them, with exact ground truth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from geomtx.checks import check_positive
from geomtx.data.lit_room import LitRoom, rays_through
from geomtx.data.room_style import RoomStyle
from geomtx.data.rooms import Dice, pick_textures, place_cameras, place_lights, place_solids
from geomtx.data.solids import Solids, cast_rays, is_blocked
from geomtx.geometry.camera import invert_rigid
from geomtx.geometry.projection import project, unproject
from geomtx.types import Cameras, SceneBatch, TrackLabels

__all__ = ["MOST_TRACKS", "MOST_VIEWS", "RoomStyle", "render_scenes"]

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
        seeds: One a scene.
        num_views: Pictures of each scene, up to 24.
        image_hw: Height and width of the pictures, pixels.
        num_tracks: Points of view 0 to follow, up to 1024; visibility is exact, by another ray to each.
        supersample: Colour rays a pixel along each axis.
        style: What the rooms are like; None = `RoomStyle()`.
        device: Where to render; None = the CPU.
        dtype: Of the arithmetic and the results; float64 for a check of something else.

    Returns:
        `SceneBatch` with B = len(seeds); the world is the room's own, not the first camera's, and its unit a metre.
        Every pixel has depth.

    Raises:
        ValueError: For no seeds, a number of views or tracks outside its range, sizes that aren't positive.
    """
    if not len(seeds):
        raise ValueError("seeds must hold at least one seed, got none")
    if not 1 <= num_views <= MOST_VIEWS:
        raise ValueError(f"num_views must be in 1 … {MOST_VIEWS}, got {num_views}")
    if not 0 <= num_tracks <= MOST_TRACKS:
        raise ValueError(f"num_tracks must be in 0 … {MOST_TRACKS}, got {num_tracks}")
    for name, value in (("image_hw", min(image_hw)), ("supersample", supersample)):
        check_positive(name, value)
    style = style or RoomStyle()
    dice = Dice(seeds, torch.device(device or "cpu"), dtype)
    solids = place_solids(dice, style)
    textures = pick_textures(dice, style)
    lights = place_lights(dice, solids)
    picks = dice.roll(MOST_TRACKS, 2)
    cameras = place_cameras(dice, solids, style, num_views, image_hw)
    room = LitRoom(solids, textures, lights, style.shadows)
    images, depth = room.photograph(cameras, image_hw, supersample)
    tracks = None
    if num_tracks:
        tracks = _follow(solids, cameras, image_hw, picks[:, :num_tracks])
    points = unproject(depth, cameras.intrinsics, cameras.cam_from_world)
    return SceneBatch(images, cameras, None, depth, points, torch.ones_like(depth, dtype=torch.bool), tracks)


def _follow(solids: Solids, cameras: Cameras, image_hw: tuple[int, int], picks: Tensor) -> TrackLabels:
    """Tracks of the points that view 0 sees at `picks` (B, N, 2) in [0, 1), in all views."""
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
