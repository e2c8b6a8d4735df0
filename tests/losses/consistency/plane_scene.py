"""Textured planes, seen by ray casting: exact depth, cameras, pictures and visibility, in float64."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geometry.random_cameras import rodrigues
from geomtx import invert_rigid, unproject
from geomtx.types import Cameras

HEIGHT, WIDTH, FOCAL = 32, 40, 40.0


class Plane(NamedTuple):
    """The points X with normal · X = offset, and |x|, |y| ≤ half_size."""

    normal: tuple[float, float, float]
    offset: float
    half_size: float = float("inf")


class PlaneScene(NamedTuple):
    images: Tensor
    depth: Tensor
    cameras: Cameras


WALL = Plane((0.0, 0.0, 1.0), 4.0)
SLANTED = Plane((0.3, -0.2, 1.0), 4.0)
BOARD = Plane((0.0, 0.0, 1.0), 1.5, 0.25)


def texture(points: Tensor) -> Tensor:
    """A smooth colour in [0, 1] for every point of space, (..., 3) → (..., 3)."""
    waves = torch.tensor([[1.1, 0.4, 0.3], [-0.5, 0.9, 0.4], [0.7, -0.8, 1.2]], dtype=torch.float64)
    return 0.5 + 0.4 * torch.sin(points @ waves.T + torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64))


def intrinsics(*shape: int) -> Tensor:
    matrix = torch.tensor([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]], dtype=torch.float64)
    return matrix.expand(*shape, 3, 3).clone()


def moved_camera(translation: tuple[float, float, float], axis: tuple[float, float, float], angle: float) -> Tensor:
    rotation = rodrigues(torch.tensor(axis), angle)
    return torch.cat([rotation, torch.tensor(translation, dtype=torch.float64)[:, None]], dim=1)


def distances(origins: Tensor, directions: Tensor, planes: tuple[Plane, ...]) -> Tensor:
    """How many directions it takes from the origins to the first plane, (...,)."""
    nearest = torch.full(directions.shape[:-1], float("inf"), dtype=torch.float64)
    for plane in planes:
        normal = torch.tensor(plane.normal, dtype=torch.float64)
        steps = (plane.offset - origins @ normal) / (directions @ normal)
        points = origins + steps[..., None] * directions
        hit = (steps > 0) & (points[..., :2].abs() <= plane.half_size).all(-1)
        nearest = torch.where(hit & (steps < nearest), steps, nearest)
    return nearest


def render(cam_from_world: Tensor, planes: tuple[Plane, ...]) -> PlaneScene:
    """One scene of (S, 3, 4) cameras; the values have a batch of one."""
    k = intrinsics(len(cam_from_world))
    on_unit_depth = unproject(torch.ones(len(k), HEIGHT, WIDTH, dtype=torch.float64), k, cam_from_world)
    origins = invert_rigid(cam_from_world)[:, None, None, :, 3]
    depth = distances(origins, on_unit_depth - origins, planes)
    images = texture(unproject(depth, k, cam_from_world)).movedim(-1, 1)
    return PlaneScene(images[None], depth[None], Cameras(cam_from_world[None], k[None]))


def shifted_views(planes: tuple[Plane, ...] = (WALL,)) -> PlaneScene:
    """Three cameras side by side: pictures of the wall at depth 4 move by whole pixels, -5 and 5."""
    shifts = [(0.0, 0.0, 0.0), (-0.5, 0.0, 0.0), (0.5, 0.0, 0.0)]
    return render(torch.stack([moved_camera(t, (0.0, 0.0, 1.0), 0.0) for t in shifts]), planes)


def turned_views(planes: tuple[Plane, ...] = (SLANTED,)) -> PlaneScene:
    """Three cameras that move and turn."""
    cameras = [
        moved_camera((0.0, 0.0, 0.0), (0.0, 0.0, 1.0), 0.0),
        moved_camera((-0.4, 0.1, 0.2), (0.2, 1.0, 0.1), 0.08),
        moved_camera((0.3, -0.25, -0.1), (1.0, -0.3, 0.4), -0.1),
    ]
    return render(torch.stack(cameras), planes)
