"""Point maps of pairs of a made-up scene: a curved wall, seen by cameras of known poses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.geometry import invert_rigid, quat_to_matrix, transform_points, unproject
from geomtx.inference import PairMaps

FOCAL, LONG_FOCAL = 20.0, 30.0


class Truth(NamedTuple):
    """Poses (S, 3, 4), and depth and points in the world of each image."""

    cam_from_world: Tensor
    depth: list[Tensor]
    points: list[Tensor]


def make_truth(
    sizes: Sequence[tuple[int, int]], dtype: torch.dtype = torch.float64, *, same_place: bool = False
) -> Truth:
    """Cameras beside one another that look at a scene of hills; or the first two in one place."""
    num = len(sizes)
    turn = torch.cat([0.1 * torch.randn(num, 3, dtype=dtype), torch.ones(num, 1, dtype=dtype)], dim=1)
    center = torch.randn(num, 3, dtype=dtype) * torch.tensor([1.0, 0.3, 0.3], dtype=dtype)
    if same_place:
        center[1] = center[0]
    pose = invert_rigid(torch.cat([quat_to_matrix(turn), center[..., None]], dim=-1))
    depth, points = [], []
    for index, (height, width) in enumerate(sizes):
        y, x = torch.meshgrid(torch.arange(height, dtype=dtype), torch.arange(width, dtype=dtype), indexing="ij")
        depth.append(4 + torch.sin(0.7 * x + index) * torch.cos(0.6 * y))
        intrinsics = torch.tensor([[FOCAL, 0, width / 2], [0, FOCAL, height / 2], [0, 0, 1]], dtype=dtype)
        points.append(unproject(depth[-1], intrinsics, pose[index]))
    return Truth(pose, depth, points)


def make_maps(
    truth: Truth,
    pairs: Sequence[tuple[int, int]],
    *,
    noise: float = 0.0,
    spread: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> PairMaps:
    """What a model would predict of pairs: each in the first camera's frame, at a scale of its own."""
    maps: tuple[list[Tensor], ...] = ([], [], [], [])
    for i, j in pairs:
        scale = 1 + spread * (torch.rand(()) - 0.5)
        for side, image in enumerate((i, j)):
            points = transform_points(truth.cam_from_world[i], truth.points[image].flatten(0, 1))
            points = points.unflatten(0, truth.depth[image].shape)
            maps[side].append((scale * (points + noise * torch.randn_like(points))).to(dtype))
            maps[2 + side].append((2 + 8 * torch.rand(truth.depth[image].shape)).to(dtype))
    return PairMaps(torch.tensor(pairs), *(tuple(each) for each in maps))


def both_ways(num: int) -> list[tuple[int, int]]:
    """All pairs of images in both directions."""
    return [(i, j) for i in range(num) for j in range(num) if i != j]


def make_surface_truth(num: int, size: tuple[int, int]) -> Truth:
    """Cameras that look at one surface, z = 4 + 0.3 sin x cos y of the world."""
    turn = torch.cat([0.05 * torch.randn(num, 3).double(), torch.ones(num, 1).double()], dim=1)
    center = torch.randn(num, 3).double() * torch.tensor([0.5, 0.3, 0.1])
    world_from_cam = torch.cat([quat_to_matrix(turn), center[..., None]], dim=-1)
    height, width = size
    intrinsics = torch.tensor([[LONG_FOCAL, 0, width / 2], [0, LONG_FOCAL, height / 2], [0, 0, 1]]).double()
    rays = unproject(torch.ones(num, *size).double(), intrinsics.expand(num, 3, 3), invert_rigid(world_from_cam))
    rays = rays - center[:, None, None]
    depth = torch.full((num, *size), 4.0).double()
    for _ in range(50):
        points = center[:, None, None] + depth[..., None] * rays
        gap = 4 + 0.3 * torch.sin(points[..., 0]) * torch.cos(points[..., 1]) - points[..., 2]
        depth = depth + 0.8 * gap / rays[..., 2]
    return Truth(invert_rigid(world_from_cam), list(depth), list(center[:, None, None] + depth[..., None] * rays))


def true_matches(truth: Truth, pair: tuple[int, int], count: int) -> tuple[Tensor, Tensor]:
    """Pixels (x, y) of two images that see the same, to half a pixel, (K, 2) each."""
    first, second = pair
    height, width = truth.depth[first].shape
    seen = transform_points(truth.cam_from_world[second], truth.points[first].flatten(0, 1))
    coords = (LONG_FOCAL * seen[:, :2] / seen[:, 2:] + torch.tensor([width / 2, height / 2])).round().long()
    inside = (coords >= 0).all(1) & (coords < torch.tensor([width, height])).all(1)
    index = inside.nonzero()[:, 0]
    index = index[torch.randperm(len(index))[:count]]
    return torch.stack([index % width, index // width], dim=1), coords[index]
