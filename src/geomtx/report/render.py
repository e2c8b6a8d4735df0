"""Point clouds as pictures: round splats with a depth buffer and shaded edges, in numpy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

__all__ = ["Viewpoint", "overview", "render_points"]

_SUPERSAMPLING = 2
_EDGE_STRENGTH = 25.0
_MARGIN = 0.05  # share of the picture that stays free on each side


class Viewpoint(NamedTuple):
    """A virtual camera; arrays of float64.

    Attributes:
        cam_from_world: (3, 4), OpenCV axes.
        intrinsics: (3, 3), in pixels of the picture.
    """

    cam_from_world: np.ndarray
    intrinsics: np.ndarray

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Project world points (N, 3) to pixels (N, 2) and depths (N,).

        Pixels mean nothing where the depth isn't positive.
        """
        points_cam = points @ self.cam_from_world[:, :3].T + self.cam_from_world[:, 3]
        depth = points_cam[:, 2]
        safe = np.where(np.abs(depth) > 1e-12, depth, 1e-12)
        return (points_cam / safe[:, None]) @ self.intrinsics[:2].T, depth


def overview(
    points: np.ndarray,
    cam_from_world: np.ndarray,
    image_wh: tuple[int, int],
    *,
    also: np.ndarray | None = None,
    yaw: float = 22.0,
    elevation: float = 16.0,
    fov: float = 42.0,
) -> Viewpoint:
    """Return a viewpoint behind and above the cameras, turned to the side, with the whole scene in the picture.

    It is the nearest one that has all points in the picture, and all of `also` that lie near them.

    Args:
        points: (N, 3), N at least 1.
        cam_from_world: (S, 3, 4), the scene's cameras.
        image_wh: Width and height of the picture, pixels.
        also: (M, 3), more points that belong into the picture, such as camera centres. Those farther away from the
            points than these are wide don't count.
        yaw: Degrees by which the viewpoint is turned around the vertical.
        elevation: Degrees by which it looks down from the cameras' mean direction.
        fov: Vertical field of view, degrees.
    """
    forward, down = cam_from_world[:, 2, :3].mean(axis=0), cam_from_world[:, 1, :3].mean(axis=0)
    mean_axes = _orthonormal(forward, down)
    yaw, elevation = np.deg2rad(yaw), np.deg2rad(elevation)
    turn = np.array([[np.cos(yaw), 0, -np.sin(yaw)], [0, 1, 0], [np.sin(yaw), 0, np.cos(yaw)]])
    tilt = np.array([[1, 0, 0], [0, np.cos(elevation), -np.sin(elevation)], [0, np.sin(elevation), np.cos(elevation)]])
    rotation = tilt @ turn @ mean_axes
    tan_y = np.tan(np.deg2rad(fov / 2))
    tan_xy = np.array([tan_y * image_wh[0] / image_wh[1], tan_y])
    rotated = points @ rotation.T
    if also is not None and len(also):
        low, high = rotated.min(axis=0), rotated.max(axis=0)
        room = np.maximum(high - low, (high - low).max() / 2)
        more = also @ rotation.T
        rotated = np.concatenate([rotated, more[((more >= low - room) & (more <= high + room)).all(axis=1)]])
    position = _nearest_position(rotated, (1 - 2 * _MARGIN) * tan_xy)
    width, height = image_wh
    focal = height / 2 / tan_y
    intrinsics = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    return Viewpoint(np.concatenate([rotation, -position[:, None]], axis=1), intrinsics)


def _nearest_position(points: np.ndarray, tan_xy: np.ndarray) -> np.ndarray:
    """Return the foremost position (3,) from which a camera that looks along z sees all points (N, 3).

    A point is in the picture where ±(x - c_x) ≤ tan_x (z - c_z), likewise for y. Each inequality bounds c_x by a line
    in c_z; the bounds from both sides meet at the largest c_z that is possible.
    """
    left = (points[:, :2] - points[:, 2:] * tan_xy).max(axis=0)  # c_x ≥ left + tan_x c_z
    right = (points[:, :2] + points[:, 2:] * tan_xy).min(axis=0)  # c_x ≤ right - tan_x c_z
    depth = points[:, 2].min() - 0.05 * (np.ptp(points, axis=0).max() or 1.0)
    return np.array([*(left + right) / 2, min(depth, *((right - left) / (2 * tan_xy)))])


def render_points(
    xyz: np.ndarray,
    rgb: np.ndarray,
    viewpoint: Viewpoint,
    image_wh: tuple[int, int],
    *,
    radius: float | np.ndarray = 1.0,
    background: tuple[int, int, int] = (255, 255, 255),
) -> Image.Image:
    """Draw points as round splats, nearer ones over farther ones, with depth edges darkened.

    Args:
        xyz: (N, 3).
        rgb: (N, 3) uint8.
        viewpoint: Camera of the picture.
        image_wh: Width and height of the picture, pixels.
        radius: Radius of all splats, or of each, (N,); pixels of the picture.
        background: Colour where there are no points.
    """
    width, height = image_wh[0] * _SUPERSAMPLING, image_wh[1] * _SUPERSAMPLING
    coords, depth = viewpoint.project(np.asarray(xyz, dtype=np.float64))
    coords = np.where(depth[:, None] > 0, (coords + 0.5) * _SUPERSAMPLING - 0.5, -1e6)
    order = np.argsort(depth, kind="stable")
    radii = np.broadcast_to(np.asarray(radius, dtype=np.float64) * _SUPERSAMPLING, depth.shape)
    nearest = _splat(coords[order], (width, height), radii[order])
    hit = nearest < len(order)
    index = order[np.where(hit, nearest, 0)] if len(order) else np.zeros_like(nearest)
    picture = np.full((height, width, 3), background, dtype=np.uint8)
    if hit.any():
        shade = _shade_edges(np.where(hit, depth[index], np.inf))
        picture[hit] = (rgb[index[hit]] * shade[hit][:, None]).round()
    image = Image.fromarray(picture)
    return image.resize(image_wh, Image.Resampling.BOX)


def _splat(coords: np.ndarray, wh: tuple[int, int], radius: np.ndarray) -> np.ndarray:
    """Return (H, W), the rank of the first point that covers each pixel; points come near to far, N = none."""
    width, height = wh
    nearest = np.full(height * width, len(coords), dtype=np.int64)
    if not len(coords):
        return nearest.reshape(height, width)
    widest = np.argsort(-radius, kind="stable")
    center = np.rint(coords[widest].clip(-1e6, 1e6)).astype(np.int64)
    falling = radius[widest]
    reach = int(falling[0])
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            # Splats that reach this pixel come first.
            count = int(np.searchsorted(-falling, -np.hypot(dx, dy), side="right"))
            x, y = center[:count, 0] + dx, center[:count, 1] + dy
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            np.minimum.at(nearest, (y * width + x)[inside], widest[:count][inside])
    return nearest.reshape(height, width)


def _shade_edges(depth: np.ndarray) -> np.ndarray:
    """Eye-dome lighting (Boucheny 2009): darken a pixel by how far it lies behind its neighbours.

    Infinite depth is the background, whose own shade means nothing.
    """
    log_depth = np.log2(depth)
    padded = np.pad(log_depth, _SUPERSAMPLING, mode="edge")
    step, (height, width) = _SUPERSAMPLING, depth.shape
    behind = np.zeros(depth.shape)
    for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
        neighbor = padded[dy * step : dy * step + height, dx * step : dx * step + width]
        with np.errstate(invalid="ignore"):
            behind += np.clip(log_depth - neighbor, 0, 0.08)
    return 0.55 + 0.45 * np.exp(-_EDGE_STRENGTH / 4 * behind)


def _orthonormal(forward: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Return rows x, y, z of a rotation that looks along `forward`, `down` below; identity where they vanish."""
    if np.linalg.norm(forward) < 1e-6 or np.linalg.norm(np.cross(down, forward)) < 1e-6:
        return np.eye(3)
    forward = forward / np.linalg.norm(forward)
    right = np.cross(down, forward)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward])
