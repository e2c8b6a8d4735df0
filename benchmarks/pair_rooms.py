"""Point maps of pairs with known truth: rendered rooms, with noise, outliers and a wrong scale of each pair."""

from __future__ import annotations

import math

import roma
import torch
from torch import Tensor

from geomtx.data.synthetic.render import HELD_OUT_SCENES, held_out_seed, render_scenes
from geomtx.geometry import transform_points
from geomtx.inference import PairMaps
from geomtx.types import SceneBatch

OUTLIERS, FACTOR, NOISE, BEND, SCALE = 0.05, 2.5, 0.01, 0.03, 0.5


def room_pairs(
    index: int, num_views: int, image_hw: tuple[int, int], *, offsets: int | None = None
) -> tuple[SceneBatch, PairMaps]:
    """Render a room, and make what a network would predict of its pairs.

    Of each pair, points have noise of 1 % of their distance, a smooth error of the distance of 3 %, and a scale between
    half and twice; one of twenty pixels is up to 2.5 times nearer or farther, and half as confident as it might be.

    Args:
        index: Number of the room.
        num_views: Number of photos.
        image_hw: Their size.
        offsets: Largest difference between the photos of a pair; defaults to the complete graph.
    """
    room = render_scenes([held_out_seed(HELD_OUT_SCENES["pairs"][index])], num_views, image_hw)
    assert room.cameras is not None
    assert room.points is not None
    pairs = [
        (i, j)
        for i in range(num_views)
        for j in range(num_views)
        if i != j and (offsets is None or abs(i - j) <= offsets)
    ]
    return room, noisy_maps(room.cameras.cam_from_world[0], room.points[0], torch.tensor(pairs), index)


def noisy_maps(cam_from_world: Tensor, points: Tensor, pairs: Tensor, seed: int, *, turn: float = 0.0) -> PairMaps:
    """Make what a network would predict of pairs.

    Args:
        cam_from_world: Poses of S images, (S, 3, 4).
        points: Point in the world of each pixel, (S, H, W, 3).
        pairs: Two images each, (E, 2).
        seed: Seed of the errors.
        turn: Standard deviation of a rotation of the second image's points about their middle, in degrees about each
            axis.
    """
    image_hw = (points.shape[1], points.shape[2])
    dice = torch.Generator().manual_seed(seed)
    maps: tuple[list[Tensor], ...] = ([], [], [], [])
    for i, j in pairs.tolist():
        scale = float(torch.empty(()).uniform_(1 - SCALE, 1 / (1 - SCALE), generator=dice))
        for side, image in enumerate((i, j)):
            own = transform_points(cam_from_world[i], points[image].flatten(0, 1)).unflatten(0, image_hw)
            bend = torch.randn(1, 1, 3, 4, generator=dice)
            bend = torch.nn.functional.interpolate(bend, image_hw, mode="bicubic", align_corners=True)[0, 0]
            noise = NOISE * own.norm(dim=-1, keepdim=True) * torch.randn(*image_hw, 3, generator=dice)
            wrong = torch.rand(image_hw, generator=dice) < OUTLIERS
            factor = torch.where(wrong, FACTOR ** (2 * torch.rand(image_hw, generator=dice) - 1), 1.0)
            confidence = 1 + 10 * torch.rand(image_hw, generator=dice)
            confidence = torch.where(wrong, 1 + (confidence - 1) / 2, confidence)
            if side and turn:
                angles = math.radians(turn) * torch.randn(3, generator=dice)
                middle = own.mean((0, 1))
                own = (own - middle) @ roma.rotvec_to_rotmat(angles).T + middle
            maps[side].append(scale * (own * (factor * (1 + BEND * bend))[..., None] + noise))
            maps[2 + side].append(confidence)
    return PairMaps(pairs, *(tuple(each) for each in maps))
