"""Rendering of rooms: a ray for every pixel, and the light at the surface that it meets."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from geomtx.data.synthetic.rooms import Lights
from geomtx.data.synthetic.solids import Solids, Textures, cast_rays, is_blocked, paint
from geomtx.geometry.camera import invert_rigid
from geomtx.types import Cameras

__all__ = ["LitRoom", "pixel_rays", "rays_through"]


class LitRoom:
    """Solids, textures and lights of B scenes, which `photograph` renders."""

    def __init__(self, solids: Solids, textures: Textures, lights: Lights, shadows: bool) -> None:
        self.solids, self.textures, self.lights, self.shadows = solids, textures, lights, shadows

    def photograph(self, cameras: Cameras, image_hw: tuple[int, int], supersample: int) -> tuple[Tensor, Tensor]:
        """Render pictures (B, S, 3, H, W) in [0, 1], each pixel the mean of a grid of rays, and z-depth
        (B, S, H, W) of the pixels' centres.
        """
        # Rays have z = 1 in the camera, so the distance in lengths of the ray is the z-depth.
        eyes = invert_rigid(cameras.cam_from_world)[..., 3]
        directions = pixel_rays(cameras, image_hw)
        center = cast_rays(self.solids, eyes, directions)
        focal = cameras.intrinsics[:, :, :1, 0] * supersample
        shifts = [(2 * i + 1) / (2 * supersample) - 0.5 for i in range(supersample)]
        total = torch.zeros_like(directions)
        for dy, dx in itertools.product(shifts, shifts):
            hits = center
            if (dx, dy) != (0.0, 0.0):
                directions = pixel_rays(cameras, image_hw, dx, dy)
                hits = cast_rays(self.solids, eyes, directions)
            points = eyes[:, :, None] + hits.distance[..., None] * directions
            color = paint(self.textures, hits.surface, points, hits.distance / focal)
            total += color * self._light(points, hits.normal)
        image = (total / supersample**2).clamp(0, 1).unflatten(2, image_hw)
        return image.movedim(-1, 2).contiguous(), center.distance.unflatten(2, image_hw)

    def _light(self, points: Tensor, normals: Tensor) -> Tensor:
        to_lamp = self.lights.position[:, None, None] - points
        distance = to_lamp.norm(dim=-1, keepdim=True)
        facing = (to_lamp * normals).sum(-1, keepdim=True).clamp(min=0) / distance.clamp(min=1e-6)
        direct = facing * (6 / (3 + distance.square())).clamp(max=1.5)
        if self.shadows:
            # The ray ends slightly in front of the surface, which would shade itself otherwise.
            lamp = self.lights.position[:, None].expand(-1, points.shape[1], -1)
            blocked = is_blocked(self.solids, lamp, points + 2e-3 * normals)
            direct = torch.where(blocked[..., None], 0.15 * direct, direct)
        ambient = self.lights.ambient[:, None, None] * (
            1 + (normals * self.lights.sky[:, None, None]).sum(-1, keepdim=True)
        )
        return ambient + self.lights.color[:, None, None] * direct


def pixel_rays(cameras: Cameras, image_hw: tuple[int, int], dx: float = 0.0, dy: float = 0.0) -> Tensor:
    """Return directions (B, S, H·W, 3) of rays through all pixels, shifted by (dx, dy) pixels."""
    height, width = image_hw
    k = cameras.intrinsics
    rows = torch.arange(height, device=k.device, dtype=k.dtype) + dy
    columns = torch.arange(width, device=k.device, dtype=k.dtype) + dx
    coords = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).reshape(1, 1, -1, 2)
    return rays_through(cameras, coords)


def rays_through(cameras: Cameras, coords_px: Tensor) -> Tensor:
    """Return directions (B, S, N, 3), z = 1 in the camera's frame, of rays through pixels (B, S, N, 2)."""
    k = cameras.intrinsics[:, :, None]
    offset = (coords_px - k[..., :2, 2]) / torch.stack([k[..., 0, 0], k[..., 1, 1]], dim=-1)
    rays = torch.cat([offset, torch.ones_like(offset[..., :1])], dim=-1)
    return rays @ cameras.cam_from_world[..., :3]
