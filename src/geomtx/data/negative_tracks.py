"""Tracks that follow no point, for a tracker to learn that a point is not there (VGGT, released data pipeline)."""

from __future__ import annotations

import torch
from torch import Tensor

from geomtx.geometry.epipolar import fundamental_matrix, sampson_distance
from geomtx.geometry.projection import project
from geomtx.types import Float

__all__ = ["draw_negatives"]

_MIN_DISTANCE_PX = 4.0


def draw_negatives(
    intrinsics: Float[Tensor, "s 3 3"],
    cam_from_first: Float[Tensor, "s 3 4"],
    image_hw: tuple[int, int] | torch.Size,
    num_tracks: int,
    *,
    border: int,
    generator: torch.Generator | None,
) -> Float[Tensor, "s n 2"]:
    """At most `num_tracks` random tracks that are over 4 px from epipolar geometry in every view but the first.

    They start at random pixels of view 0 and jump by up to half the image in each other view. Between two views from
    one place there is no epipolar line but a point, and the distance is the one to it.
    """
    if num_tracks == 0 or len(intrinsics) < 2:
        return intrinsics.new_zeros(len(intrinsics), 0, 2)
    height, width = image_hw
    num_drawn = 4 * num_tracks
    device = intrinsics.device if generator is None else generator.device
    draws = torch.rand(len(intrinsics), num_drawn, 2, generator=generator, device=device, dtype=intrinsics.dtype)
    draws = draws.to(intrinsics.device)
    extent = intrinsics.new_tensor([width - 1 - 2 * border, height - 1 - 2 * border]).clamp(min=0)
    start = (border + draws[0] * extent).round()
    others = start + (draws[1:] - 0.5) * intrinsics.new_tensor([width, height])
    far = (_epipolar_distance(start, others, intrinsics, cam_from_first) > _MIN_DISTANCE_PX).all(0)
    coords_px = torch.cat([start[None], others])
    return coords_px[:, far.nonzero()[:num_tracks, 0]]


def _epipolar_distance(start: Tensor, others: Tensor, intrinsics: Tensor, cam_from_first: Tensor) -> Tensor:
    """Pixels, (S - 1, M)."""
    rotation, translation = cam_from_first[1:, :, :3], cam_from_first[1:, :, 3:]
    length = translation.norm(dim=1, keepdim=True)
    same_place = length <= 1e-6
    direction = torch.where(same_place, torch.ones_like(translation), translation / length.clamp(min=1e-12))
    b_from_a = torch.cat([rotation, direction], dim=-1)
    fundamental = fundamental_matrix(intrinsics[:1].expand_as(intrinsics[1:]), intrinsics[1:], b_from_a)
    distance = sampson_distance(start.expand_as(others), others, fundamental)
    rays = _cast_rays(start, intrinsics[0])
    match, depth = project(rays @ rotation.transpose(-1, -2), intrinsics[1:])
    apart = torch.where(depth > 0, (others - match).norm(dim=-1), torch.inf)
    return torch.where(same_place[..., 0], apart, distance)


def _cast_rays(coords_px: Float[Tensor, "n 2"], intrinsics: Float[Tensor, "3 3"]) -> Float[Tensor, "n 3"]:
    """Rays of depth 1 through pixels, in the camera's frame."""
    homogeneous = torch.cat([coords_px, torch.ones_like(coords_px[:, :1])], dim=-1)
    return homogeneous @ intrinsics.inverse().T
