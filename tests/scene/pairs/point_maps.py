"""Point maps of pairs of a made-up scene: a curved wall, seen by cameras of known poses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.geometry import invert_rigid, quat_to_matrix, transform_points, unproject
from geomtx.inference import PairMaps

FOCAL = 20.0


class Truth(NamedTuple):
    """Poses (S, 3, 4), and depth and points in the world of each image."""

    cam_from_world: Tensor
    depth: list[Tensor]
    points: list[Tensor]


def make_truth(sizes: Sequence[tuple[int, int]], dtype: torch.dtype = torch.float64) -> Truth:
    """Cameras beside one another that look at a scene of hills."""
    num = len(sizes)
    turn = torch.cat([0.1 * torch.randn(num, 3, dtype=dtype), torch.ones(num, 1, dtype=dtype)], dim=1)
    center = torch.randn(num, 3, dtype=dtype) * torch.tensor([1.0, 0.3, 0.3], dtype=dtype)
    pose = invert_rigid(torch.cat([quat_to_matrix(turn), center[..., None]], dim=-1))
    depth, points = [], []
    for index, (height, width) in enumerate(sizes):
        y, x = torch.meshgrid(torch.arange(height, dtype=dtype), torch.arange(width, dtype=dtype), indexing="ij")
        depth.append(4 + torch.sin(0.7 * x + index) * torch.cos(0.6 * y))
        intrinsics = torch.tensor([[FOCAL, 0, width / 2], [0, FOCAL, height / 2], [0, 0, 1]], dtype=dtype)
        points.append(unproject(depth[-1], intrinsics, pose[index]))
    return Truth(pose, depth, points)


def make_maps(
    truth: Truth, pairs: Sequence[tuple[int, int]], *, noise: float = 0.0, dtype: torch.dtype = torch.float64
) -> PairMaps:
    """What a model would predict of pairs: each in the first camera's frame, at a scale of its own."""
    maps: tuple[list[Tensor], ...] = ([], [], [], [])
    for i, j in pairs:
        scale = 0.5 + torch.rand(())
        for side, image in enumerate((i, j)):
            points = transform_points(truth.cam_from_world[i], truth.points[image].flatten(0, 1))
            points = points.unflatten(0, truth.depth[image].shape)
            maps[side].append((scale * (points + noise * torch.randn_like(points))).to(dtype))
            maps[2 + side].append((2 + 8 * torch.rand(truth.depth[image].shape)).to(dtype))
    return PairMaps(torch.tensor(pairs), *(tuple(each) for each in maps))


def both_ways(num: int) -> list[tuple[int, int]]:
    """All pairs of images in both directions."""
    return [(i, j) for i in range(num) for j in range(num) if i != j]
