"""Ray casting against convex solids in a room, for a batch of scenes at once, and the textures of their surfaces.

A solid is the intersection of a quadric and half-spaces: {x : (x - c)ᵀ A (x - c) ≤ 1 and n_j · x ≤ d_j for all j}.
With A = 0 the quadric is all of space and the solid a polytope; with A of rank two it is a cylinder. A ray is inside a
convex solid for one interval, the intersection of the intervals of its quadric and half-spaces. So one formula renders
spheres, domes, cylinders, boxes, prisms and pyramids, and intersections with planes are matrix products.

Textures are functions from points of space to colours, which need no coordinates on the surface.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.types import show_shapes

__all__ = [
    "NUM_WAVES",
    "Hits",
    "Solids",
    "Textures",
    "cast_rays",
    "clearance",
    "is_blocked",
    "paint",
]

NUM_WAVES = 4


@show_shapes
class Textures(NamedTuple):
    """Textures of U surfaces in each of B scenes.

    A few plane waves are added (marble, clouds, stripes) or multiplied (checkers), and a sigmoid of the result mixes
    two colours; a product of two faster waves adds grain.

    Attributes:
        waves: Wave vectors in radians per metre, (B, U, NUM_WAVES, 3).
        phases: Phases in radians, (B, U, NUM_WAVES).
        product: 1 where the waves are multiplied, 0 where they are added, (B, U).
        sharpness: Slope of the sigmoid, (B, U).
        colors: Two RGB colours in [0, 1], (B, U, 2, 3).
        grain: Amplitude of the grain, (B, U).
    """

    waves: Tensor
    phases: Tensor
    product: Tensor
    sharpness: Tensor
    colors: Tensor
    grain: Tensor


def paint(textures: Textures, surface: Tensor, points: Tensor, footprint: Tensor) -> Tensor:
    """Return the colours of points on textured surfaces.

    Args:
        textures: Textures of B scenes.
        surface: Number of the texture at each point, (B, V, R) int64.
        points: Points (B, V, R, 3) in metres.
        footprint: Width of a pixel at each point in metres, (B, V, R). Waves that are shorter fade to their mean, as in
            a photo, instead of aliasing.

    Returns:
        RGB colours (B, V, R, 3) in [0, 1].
    """
    batch = torch.arange(len(surface), device=surface.device)[:, None, None]
    waves = textures.waves[batch, surface]
    angle = torch.einsum("bvrwc,bvrc->bvrw", waves, points) + textures.phases[batch, surface]
    # The mean of a wave over the width of a pixel, to second order.
    fade = torch.exp(-(waves.square().sum(-1)) * footprint.square()[..., None] / 24)
    ripples = angle.sin() * fade
    added = ripples.sum(-1) / NUM_WAVES**0.5
    multiplied = ripples[..., 0] * ripples[..., 1] * 1.5
    is_product = textures.product[batch, surface]
    value = added + is_product * (multiplied - added)
    share = torch.sigmoid(textures.sharpness[batch, surface] * value)[..., None]
    colors = textures.colors[batch, surface]
    grain = ((2.7 * angle[..., 0] + 1.3 * angle[..., 2]).sin() * (3.1 * angle[..., 1] - angle[..., 3]).sin())[..., None]
    grain = grain * (fade[..., :2].prod(-1) ** 9 * textures.grain[batch, surface])[..., None]
    return (colors[..., 0, :] + share * (colors[..., 1, :] - colors[..., 0, :]) + grain).clamp(0, 1)


@show_shapes
class Solids(NamedTuple):
    """Rooms with K convex solids in each of B scenes.

    Attributes:
        quadrics: Matrices A, positive semidefinite, (B, K, 3, 3).
        centers: Centres c, (B, K, 3).
        normals: Outward unit normals n of the half-spaces, (B, K, F, 3).
        offsets: Offsets d of the half-spaces, (B, K, F); large for unused ones.
        exists: True for solids, False for unused slots, (B, K) bool.
        room_low: Corner of the room with the smallest coordinates, (B, 3).
        room_high: Corner of the room with the largest coordinates, (B, 3).
        reach: Radius of a ball about the centre that contains the solid, (B, K).
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
    """First intersections of R rays per view with a surface.

    Attributes:
        distance: Distance in lengths of the ray's direction, (B, V, R).
        surface: Number of the surface, (B, V, R) int64: 0 … 5 are the room's low x, y, z and high x, y, z sides, 6 + k
            is solid k.
        normal: Unit normal towards the side that the ray comes from, (B, V, R, 3).
    """

    distance: Tensor
    surface: Tensor
    normal: Tensor


def cast_rays(solids: Solids, origins: Tensor, directions: Tensor) -> Hits:
    """Find the nearest surface on each ray.

    Args:
        solids: Rooms of B scenes.
        origins: Common origin of the R rays of a view, inside the room and outside of the solids, (B, V, 3).
        directions: Directions of any length but 0, (B, V, R, 3).

    Returns:
        Intersections; every ray meets at least a side of the room.
    """
    wall_distance, wall = _leave_room(solids, origins, directions)
    solid_distance, solid = _enter_solids(solids, origins, directions).min(dim=-1)
    is_solid = solid_distance < wall_distance
    distance = torch.where(is_solid, solid_distance, wall_distance)
    points = origins[:, :, None] + distance[..., None] * directions
    normal = torch.where(is_solid[..., None], _solid_normals(solids, points, solid), _wall_normals(wall, points.dtype))
    return Hits(distance, torch.where(is_solid, solid + 6, wall), normal)


def is_blocked(solids: Solids, origins: Tensor, targets: Tensor) -> Tensor:
    """Return whether a solid is between `origins` (B, V, 3) and `targets` (B, V, R, 3), as (B, V, R) bool."""
    return (_enter_solids(solids, origins, targets - origins[:, :, None]) < 1 - 1e-4).any(dim=-1)


def clearance(solids: Solids, points: Tensor) -> Tensor:
    """Return the signed distance (B, R) of points (B, R, 3) from the nearest solid, negative inside.

    It is exact for half-spaces, and of first order for quadrics.
    """
    planes, curved = _gaps(solids, points)
    distance = torch.maximum(planes.amax(-1), curved)
    return torch.where(solids.exists[:, None], distance, torch.inf).amin(-1)


def _gaps(solids: Solids, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return signed distances of points (B, R, 3) from half-spaces (B, R, K, F) and, to first order, from quadrics
    (B, R, K).
    """
    planes = torch.einsum("brc,bkfc->brkf", points, solids.normals) - solids.offsets[:, None]
    offset = points[:, :, None] - solids.centers[:, None]
    bent = torch.einsum("brki,bkij->brkj", offset, solids.quadrics)
    value = (bent * offset).sum(-1).clamp(min=0).sqrt()
    slope = bent.norm(dim=-1) / value.clamp(min=1e-6)
    return planes, torch.where(slope > 1e-6, (value - 1) / slope.clamp(min=1e-6), -torch.inf)


def _leave_room(solids: Solids, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    low, high = (solids.room_low[:, None] - origins)[:, :, None], (solids.room_high[:, None] - origins)[:, :, None]
    # A ray parallel to a wall never meets it.
    distances = torch.where(directions == 0, torch.inf, torch.where(directions > 0, high, low) / directions)
    distance, axis = distances.min(dim=-1)
    is_high = directions.gather(-1, axis[..., None])[..., 0] > 0
    return distance, axis + 3 * is_high


def _wall_normals(wall: Tensor, dtype: torch.dtype) -> Tensor:
    inwards = torch.cat([torch.eye(3, dtype=dtype), -torch.eye(3, dtype=dtype)]).to(wall.device)
    return inwards[wall]


def _enter_solids(solids: Solids, origins: Tensor, directions: Tensor) -> Tensor:
    """Return the distance (B, V, R, K) at which the rays enter the solids, infinite if they do not."""
    num_solids, num_faces = solids.offsets.shape[1:]
    rate = directions @ solids.normals.flatten(1, 2).transpose(1, 2)[:, None]
    gap = solids.offsets[:, None] - torch.einsum("bvc,bkfc->bvkf", origins, solids.normals)
    # A ray parallel to a plane gets ±infinity, which is right: it is always inside the half-space, or never.
    crossing = gap[:, :, None] / rate.unflatten(-1, (num_solids, num_faces))
    inwards = rate.unflatten(-1, (num_solids, num_faces)) < 0
    enter = crossing.masked_fill(~inwards, -torch.inf).amax(dim=-1)
    leave = crossing.masked_fill(inwards, torch.inf).amin(dim=-1)
    low, high = _quadric_interval(solids, origins, directions)
    enter, leave = torch.maximum(enter, low), torch.minimum(leave, high)
    hit = (enter < leave) & (enter > 1e-6) & solids.exists[:, None, None]
    return enter.masked_fill(~hit, torch.inf)


def _quadric_interval(solids: Solids, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Return the interval (low, high) of each ray within each quadric, (B, V, R, K) each; low > high if it is empty."""
    # Relative to the centre, because differences of large squares would lose the precision that small solids need.
    offset = origins[:, :, None] - solids.centers[:, None]
    bent = torch.einsum("bvki,bkij->bvkj", offset, solids.quadrics)
    squares = (directions[..., :, None] * directions[..., None, :]).flatten(-2)
    a = squares @ solids.quadrics.flatten(2).transpose(1, 2)[:, None]
    b = directions @ bent.transpose(-1, -2)
    c = ((bent * offset).sum(-1) - 1)[:, :, None]
    discriminant = b.square() - a * c
    root = discriminant.sqrt()  # NaN for a miss, for which every comparison is False
    is_bent = a > 1e-9
    # Along a direction in the null space of A, a ray is always inside of the quadric, or never.
    always = torch.where(c <= 0, torch.inf, -torch.inf)
    low = torch.where(is_bent, (-b - root) / a, -always)
    high = torch.where(is_bent, (-b + root) / a, always)
    return low, high


def _solid_normals(solids: Solids, points: Tensor, solid: Tensor) -> Tensor:
    """Return outward normals of the solids at `points` (B, V, R, 3) on their surfaces."""
    batch = torch.arange(len(points), device=points.device)[:, None, None]
    faces, offsets = solids.normals[batch, solid], solids.offsets[batch, solid]
    plane_gap, face = (torch.einsum("bvrfc,bvrc->bvrf", faces, points) - offsets).max(dim=-1)
    flat = faces.gather(-2, face[..., None, None].expand(*face.shape, 1, 3))[..., 0, :]
    offset = points - solids.centers[batch, solid]
    bent = torch.einsum("bvrij,bvrj->bvri", solids.quadrics[batch, solid], offset)
    slope = bent.norm(dim=-1, keepdim=True)
    curved_gap = (bent * offset).sum(-1, keepdim=True) - 1
    # At a point of the surface, the distance to one half-space or the quadric is 0, and to all others negative. The
    # quadric's value divided by the length of its gradient, 2·slope, is a distance.
    is_curved = (slope > 1e-6) & (curved_gap / (2 * slope) > plane_gap[..., None])
    return torch.where(is_curved, bent / slope, flat)
