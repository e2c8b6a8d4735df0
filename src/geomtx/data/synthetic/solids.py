"""Rays against convex solids and the room around them, for a batch of scenes at once.

A solid is what a quadric and some half-spaces have in common: {x : (x - c)ᵀ A (x - c) ≤ 1 and n_j · x ≤ d_j for all j}.
With A = 0 the quadric is all of space and the solid a polytope; with A of rank two it is a cylinder. A ray is inside a
convex solid for one interval, the intersection of the intervals of its parts; so one formula renders spheres, domes,
boxes, prisms and pyramids alike, and everything a ray needs of a plane is a matrix product.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.types import show_shapes

__all__ = ["Hits", "Solids", "cast_rays", "clearance", "is_blocked"]

_NEVER = 1e9  # distance of what isn't hit


@show_shapes
class Solids(NamedTuple):
    """K convex solids a scene, within a room.

    Attributes:
        quadrics: (B, K, 3, 3), A, positive semidefinite.
        centers: (B, K, 3), c.
        normals: (B, K, F, 3), n of length 1, outwards.
        offsets: (B, K, F), d. An unused half-space has a large d.
        exists: (B, K) bool; False = the slot is empty.
        room_low: (B, 3), the room's corner of least coordinates.
        room_high: (B, 3), the opposite corner.
        reach: (B, K), radius of a ball about the centre that holds the solid.
    """

    quadrics: Tensor
    centers: Tensor
    normals: Tensor
    offsets: Tensor
    exists: Tensor
    room_low: Tensor
    room_high: Tensor
    reach: Tensor


@show_shapes
class Hits(NamedTuple):
    """Where rays first meet a surface.

    Attributes:
        distance: (B, V, R), in lengths of the ray's direction.
        surface: (B, V, R) int64: 0 … 5 are the room's low x, y, z and high x, y, z sides, 6 + k is solid k.
        normal: (B, V, R, 3), of length 1, towards the side that the ray comes from.
    """

    distance: Tensor
    surface: Tensor
    normal: Tensor


def cast_rays(solids: Solids, origins: Tensor, directions: Tensor) -> Hits:
    """The nearest surface on each ray.

    Args:
        solids: B scenes.
        origins: (B, V, 3), one for the R rays of a view, inside the room and outside the solids.
        directions: (B, V, R, 3), of any length but 0.

    Returns:
        `Hits`; every ray meets at least the room.
    """
    wall_distance, wall = _leave_room(solids, origins, directions)
    solid_distance, solid = _enter_solids(solids, origins, directions).min(dim=-1)
    is_solid = solid_distance < wall_distance
    distance = torch.where(is_solid, solid_distance, wall_distance)
    points = origins[:, :, None] + distance[..., None] * directions
    normal = torch.where(is_solid[..., None], _solid_normals(solids, points, solid), _wall_normals(wall, points.dtype))
    return Hits(distance, torch.where(is_solid, solid + 6, wall), normal)


def is_blocked(solids: Solids, origins: Tensor, targets: Tensor) -> Tensor:
    """Whether a solid is on the way from `origins` (B, V, 3) to `targets` (B, V, R, 3); → (B, V, R) bool."""
    return (_enter_solids(solids, origins, targets - origins[:, :, None]) < 1 - 1e-4).any(dim=-1)


def clearance(solids: Solids, points: Tensor) -> Tensor:
    """About how far (B, R, 3) points are from the nearest solid, (B, R); negative inside one, exact for planes."""
    planes, curved = _gaps(solids, points)
    distance = torch.maximum(planes.amax(-1), curved)
    return torch.where(solids.exists[:, None], distance, torch.inf).amin(-1)


def _gaps(solids: Solids, points: Tensor) -> tuple[Tensor, Tensor]:
    """How far points (B, R, 3) are outside of each plane, (B, R, K, F), and about of each quadric, (B, R, K)."""
    planes = torch.einsum("brc,bkfc->brkf", points, solids.normals) - solids.offsets[:, None]
    offset = points[:, :, None] - solids.centers[:, None]
    bent = torch.einsum("brki,bkij->brkj", offset, solids.quadrics)
    value = (bent * offset).sum(-1).clamp(min=0).sqrt()
    slope = bent.norm(dim=-1) / value.clamp(min=1e-6)
    return planes, torch.where(slope > 1e-6, (value - 1) / slope.clamp(min=1e-6), -torch.inf)


def _leave_room(solids: Solids, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    low, high = (solids.room_low[:, None] - origins)[:, :, None], (solids.room_high[:, None] - origins)[:, :, None]
    # A ray along a wall never meets it.
    distances = torch.where(directions == 0, torch.inf, torch.where(directions > 0, high, low) / directions)
    distance, axis = distances.min(dim=-1)
    is_high = directions.gather(-1, axis[..., None])[..., 0] > 0
    return distance, axis + 3 * is_high


def _wall_normals(wall: Tensor, dtype: torch.dtype) -> Tensor:
    inwards = torch.cat([torch.eye(3, dtype=dtype), -torch.eye(3, dtype=dtype)]).to(wall.device)
    return inwards[wall]


def _enter_solids(solids: Solids, origins: Tensor, directions: Tensor) -> Tensor:
    """Distance (B, V, R, K) to where the rays enter the solids, infinite if they don't."""
    num_solids, num_faces = solids.offsets.shape[1:]
    rate = directions @ solids.normals.flatten(1, 2).transpose(1, 2)[:, None]
    gap = solids.offsets[:, None] - torch.einsum("bvc,bkfc->bvkf", origins, solids.normals)
    # A ray along a plane gets ±infinity, which is right: always on this side of it, or never.
    crossing = gap[:, :, None] / rate.unflatten(-1, (num_solids, num_faces))
    inwards = rate.unflatten(-1, (num_solids, num_faces)) < 0
    enter = crossing.masked_fill(~inwards, -torch.inf).amax(dim=-1)
    leave = crossing.masked_fill(inwards, torch.inf).amin(dim=-1)
    low, high = _quadric_interval(solids, origins, directions)
    enter, leave = torch.maximum(enter, low), torch.minimum(leave, high)
    hit = (enter < leave) & (enter > 1e-6) & solids.exists[:, None, None]
    return enter.masked_fill(~hit, torch.inf)


def _quadric_interval(solids: Solids, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Where each ray is within each quadric, (B, V, R, K) twice; low > high if it never is."""
    # Relative to the centre, since |origin|² - |origin|² loses the digits that a small solid is made of.
    offset = origins[:, :, None] - solids.centers[:, None]
    bent = torch.einsum("bvki,bkij->bvkj", offset, solids.quadrics)
    squares = (directions[..., :, None] * directions[..., None, :]).flatten(-2)
    a = squares @ solids.quadrics.flatten(2).transpose(1, 2)[:, None]
    b = directions @ bent.transpose(-1, -2)
    c = ((bent * offset).sum(-1) - 1)[:, :, None]
    discriminant = b.square() - a * c
    root = discriminant.sqrt()  # of a miss it is NaN, which no comparison finds
    is_bent = a > 1e-9
    # Along a direction that the quadric doesn't feel, a ray is always in or never.
    always = torch.where(c <= 0, torch.inf, -torch.inf)
    low = torch.where(is_bent, (-b - root) / a, -always)
    high = torch.where(is_bent, (-b + root) / a, always)
    return low, high


def _solid_normals(solids: Solids, points: Tensor, solid: Tensor) -> Tensor:
    """Outward normals of the solids at `points` (B, V, R, 3) on their surface."""
    batch = torch.arange(len(points), device=points.device)[:, None, None]
    faces, offsets = solids.normals[batch, solid], solids.offsets[batch, solid]
    plane_gap, face = (torch.einsum("bvrfc,bvrc->bvrf", faces, points) - offsets).max(dim=-1)
    flat = faces.gather(-2, face[..., None, None].expand(*face.shape, 1, 3))[..., 0, :]
    offset = points - solids.centers[batch, solid]
    bent = torch.einsum("bvrij,bvrj->bvri", solids.quadrics[batch, solid], offset)
    slope = bent.norm(dim=-1, keepdim=True)
    curved_gap = (bent * offset).sum(-1, keepdim=True) - 1
    # On the surface the gap to one part is zero, to all others negative. Gradient 2·slope turns a value into a length.
    is_curved = (slope > 1e-6) & (curved_gap / (2 * slope) > plane_gap[..., None])
    return torch.where(is_curved, bent / slope, flat)
