"""A small room, rendered by ray casting with numpy: pictures whose cameras and depth are known exactly."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

__all__ = ["RenderedView", "render_room", "save_photos"]

# World axes are OpenCV's: x right, y down, z forward; the floor is at y = 1.
_FLOOR_Y, _WALL_Z, _WALL_X = 1.0, 6.0, 3.2
_LIGHT = np.array([-2.0, -3.5, 0.5])
_SPHERES = (  # centre, radius, two colours
    ((-1.1, 0.35, 4.1), 0.65, (205, 70, 55), (246, 224, 196)),
    ((1.5, 0.55, 3.4), 0.45, (60, 110, 190), (226, 236, 246)),
    ((0.35, 0.7, 2.7), 0.30, (236, 178, 52), (92, 62, 30)),
)
_BOXES = (((0.1, -0.1, 4.5), (1.3, 1.0, 5.4), (96, 150, 96), (64, 104, 70)),)  # low corner, high corner, two colours


class RenderedView(NamedTuple):
    """One picture and its truth.

    Attributes:
        image: (H, W, 3) uint8.
        depth: (H, W) float64, z-depth.
        intrinsics: (3, 3), pixel centres at integers, principal point (W/2, H/2).
        cam_from_world: (3, 4); the first view's is the identity.
    """

    image: np.ndarray
    depth: np.ndarray
    intrinsics: np.ndarray
    cam_from_world: np.ndarray


def render_room(num_views: int = 5, image_hw: tuple[int, int] = (336, 448)) -> tuple[RenderedView, ...]:
    """Render the room from `num_views` viewpoints on an arc; the first is the world's origin.

    Args:
        num_views: How many pictures.
        image_hw: Their height and width, pixels.
    """
    height, width = image_hw
    focal = 0.9 * width
    intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
    return tuple(_render_view(intrinsics, _arc_pose(index, num_views), image_hw) for index in range(num_views))


def save_photos(views: tuple[RenderedView, ...], folder: Path) -> list[Path]:
    """Write the pictures as `view_0.png`, …; returns their paths in order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"view_{index}.png" for index in range(len(views))]
    for path, view in zip(paths, views, strict=True):
        Image.fromarray(view.image).save(path)
    return paths


def _arc_pose(index: int, num_views: int) -> np.ndarray:
    """`cam_from_world` of a camera that circles the room's middle (0, 0, 4), alternately to the right and the left."""
    if index == 0:
        return np.eye(3, 4)
    step = (index + 1) // 2 / max(1, num_views // 2)
    angle = np.deg2rad(26.0) * step * (1 if index % 2 else -1)
    middle = np.array([0.0, 0.0, 4.0])
    center = middle + 4.0 * np.array([np.sin(angle), -0.12 * step, -np.cos(angle)])
    forward = middle + np.array([0.0, 0.15, 0.0]) - center
    forward /= np.linalg.norm(forward)
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    return np.concatenate([rotation, -(rotation @ center)[:, None]], axis=1)


def _render_view(intrinsics: np.ndarray, cam_from_world: np.ndarray, image_hw: tuple[int, int]) -> RenderedView:
    height, width = image_hw
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    rays_cam = np.stack(
        [
            (columns - intrinsics[0, 2]) / intrinsics[0, 0],
            (rows - intrinsics[1, 2]) / intrinsics[1, 1],
            columns * 0 + 1.0,
        ],
        axis=-1,
    )
    rotation, translation = cam_from_world[:, :3], cam_from_world[:, 3]
    origin, rays = -rotation.T @ translation, rays_cam @ rotation
    distance, color, normal = _cast(origin, rays)
    # Rays have z_cam = 1, so the distance along them is the z-depth.
    shade = _shade(origin + distance[..., None] * rays, normal)
    image = np.clip(color * shade[..., None], 0, 255).round().astype(np.uint8)
    return RenderedView(image, distance, intrinsics, cam_from_world)


def _cast(origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nearest hit of every ray: distance in ray lengths, colour and surface normal."""
    hits = [_hit_plane(origin, rays, axis, offset) for axis, offset in ((1, _FLOOR_Y), (2, _WALL_Z))]
    hits += [_hit_plane(origin, rays, 0, offset) for offset in (-_WALL_X, _WALL_X)]
    hits.append(_hit_plane(origin, rays, 1, -2.2))
    hits += [_hit_sphere(origin, rays, *sphere) for sphere in _SPHERES]
    hits += [_hit_box(origin, rays, *box) for box in _BOXES]
    distance = np.stack([hit[0] for hit in hits])
    nearest = distance.argmin(axis=0)
    color = np.zeros(rays.shape)
    normal = np.zeros(rays.shape)
    for index, (_, hit_color, hit_normal) in enumerate(hits):
        chosen = nearest == index
        color[chosen], normal[chosen] = hit_color[chosen], hit_normal[chosen]
    return distance.min(axis=0), color, normal


def _hit_plane(origin: np.ndarray, rays: np.ndarray, axis: int, offset: float) -> tuple[np.ndarray, ...]:
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = (offset - origin[axis]) / rays[..., axis]
    distance = np.where(np.isfinite(distance) & (distance > 1e-6), distance, 1e9)
    point = origin + distance[..., None] * rays
    u, v = (point[..., other] for other in range(3) if other != axis)
    cells = (np.floor(u * 1.6) + np.floor(v * 1.6)) % 2
    palette = {
        0: ((196, 206, 212), (164, 178, 188)),
        1: ((222, 210, 190), (150, 124, 100)),
        2: ((232, 226, 214), (206, 190, 166)),
    }
    light, dark = np.array(palette[axis], dtype=float)
    grain = 10 * np.sin(23 * u + 4 * np.sin(7 * v)) * np.sin(19 * v + 3 * np.sin(5 * u))
    color = np.where(cells[..., None] > 0, light, dark) + grain[..., None]
    normal = np.zeros(rays.shape)
    normal[..., axis] = -np.sign(offset - origin[axis])
    return distance, color, normal


def _hit_sphere(
    origin: np.ndarray, rays: np.ndarray, center: tuple, radius: float, *colors: tuple
) -> tuple[np.ndarray, ...]:
    offset = origin - np.array(center)
    a, b = (rays**2).sum(-1), rays @ offset
    discriminant = b**2 - a * (offset @ offset - radius**2)
    distance = (-b - np.sqrt(np.maximum(discriminant, 0))) / a
    distance = np.where((discriminant > 0) & (distance > 1e-6), distance, 1e9)
    normal = (origin + distance[..., None] * rays - center) / radius
    turn = np.arctan2(normal[..., 2], normal[..., 0]) / np.pi
    stripes = (np.floor(turn * 6) + np.floor(normal[..., 1] * 3)) % 2
    return distance, np.where(stripes[..., None] > 0, *np.array(colors, dtype=float)), normal


def _hit_box(origin: np.ndarray, rays: np.ndarray, low: tuple, high: tuple, *colors: tuple) -> tuple[np.ndarray, ...]:
    safe = np.where(np.abs(rays) < 1e-9, 1e-9, rays)
    near, far = np.sort(np.stack([(np.array(low) - origin) / safe, (np.array(high) - origin) / safe]), axis=0)
    enter, leave = near.max(-1), far.min(-1)
    distance = np.where((enter < leave) & (enter > 1e-6), enter, 1e9)
    axis = near.argmax(-1)
    normal = -np.eye(3)[axis] * np.sign(rays)
    point = origin + distance[..., None] * rays
    bands = np.floor((point[..., 0] + point[..., 1] + point[..., 2]) * 4) % 2
    return distance, np.where(bands[..., None] > 0, *np.array(colors, dtype=float)), normal


def _shade(point: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Diffuse light with shadows of the spheres, in [0.35, 1.1]."""
    to_light = _LIGHT - point
    distance = np.linalg.norm(to_light, axis=-1, keepdims=True)
    direction = to_light / distance
    lit = np.clip((normal * direction).sum(-1), 0, None)
    for center, radius, *_ in _SPHERES:
        offset = point + 1e-3 * normal - np.array(center)
        along = -(offset * direction).sum(-1)
        gap = np.linalg.norm(offset + along[..., None] * direction, axis=-1)
        lit = np.where((along > 0) & (gap < radius), lit * 0.25, lit)
    return 0.45 + 0.65 * lit
