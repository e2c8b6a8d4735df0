"""Two images, whose cameras and depth their two pairs give without any optimisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from geomtx.geometry.camera import invert_rigid, transform_points
from geomtx.inference.pair_maps import PairMaps
from geomtx.scene.pairs.start import find_camera, focal_of_pair
from geomtx.types import Cameras

__all__ = ["has_both_directions", "place_two_images"]

_SAMPLES = 100


def has_both_directions(maps: PairMaps) -> bool:
    """Return whether the pairs are (0, 1) and (1, 0), in either order."""
    return sorted(map(tuple, maps.pairs.tolist())) == [(0, 1), (1, 0)]


def place_two_images(
    maps: PairMaps, scores: Sequence[float], masks: Sequence[Tensor], focals: Tensor
) -> tuple[Cameras, tuple[Tensor, ...]]:
    """Return cameras and depth of two images, in the world of the first image of the pair with the larger score.

    The depth of that image is that of its own points; the other image's is the depth of its points of the same pair in
    the camera that these points give. Computed in float64 on the host.

    Args:
        maps: Point maps of the pairs (0, 1) and (1, 0).
        scores: Score of each pair.
        masks: Confident pixels of each image, (H, W) bool each: those that the camera comes from.
        focals: Known focal lengths in pixels, (2,) float64; NaN where they aren't known.
    """
    by_first = {first: index for index, (first, _) in enumerate(maps.pairs.tolist())}
    world = 0 if scores[by_first[0]] > scores[by_first[1]] else 1
    index, other = by_first[world], 1 - world
    focals = torch.stack(
        [focal_of_pair(maps, by_first[image]) if focals[image].isnan() else focals[image] for image in range(2)]
    )
    seen = maps.points2[index].cpu().double()
    pose, _ = find_camera(seen, masks[other].cpu(), focals[other], num_samples=_SAMPLES)
    cam_from_world = torch.eye(3, 4, dtype=torch.float64).repeat(2, 1, 1)
    cam_from_world[other] = invert_rigid(pose)
    local = transform_points(cam_from_world[other], seen.flatten(0, 1)).unflatten(0, seen.shape[:2])
    depth = {world: maps.points1[index].cpu().double()[..., 2], other: local[..., 2]}
    intrinsics = intrinsics_of(focals, focals.new_zeros(2, 2), [depth[i].shape for i in range(2)])
    return Cameras(cam_from_world, intrinsics), (depth[0], depth[1])


def intrinsics_of(focals: Tensor, principal: Tensor, sizes: Sequence[Sequence[int]]) -> Tensor:
    """Return intrinsics (S, 3, 3) of focal lengths (S,) and principal points less the middle of the image (S, 2)."""
    intrinsics = torch.eye(3, dtype=focals.dtype, device=focals.device).repeat(len(focals), 1, 1)
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = focals
    middle = focals.new_tensor([[width / 2, height / 2] for height, width in sizes])
    intrinsics[:, :2, 2] = middle + principal
    return intrinsics
