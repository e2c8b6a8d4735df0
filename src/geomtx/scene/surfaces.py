"""The surface that each view of a scene sees, between pixels too, and the place on it that is nearest to a point.

All in numpy and float64, entry by entry: the same numbers with any number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geomtx.geometry.camera import transform_points
from geomtx.scene.content import SceneContent
from geomtx.scene.filters import still_pixels
from geomtx.types import Bool, Float

__all__ = ["Surfaces", "are_cameras", "find_surfaces"]

Floats = NDArray[np.float64]

_MOST_GAP = 1e-2  # between a rotation times its transpose and the identity; half precision has 1e-3


def _without_warnings() -> np.errstate:
    """For cameras and maps that are not finite: they give NaN, which nothing is near to."""
    return np.errstate(invalid="ignore", over="ignore", divide="ignore")


class Surfaces(NamedTuple):
    """The surfaces that S views see, as inverse depth, which is linear in the pixels of a plane.

    Attributes:
        inverse_depth: 1 / z-depth of each pixel of the model's images, (S, H, W) float64; NaN where it is unknown.
        confidence: Confidence of each pixel, (S, H, W) float32.
        intrinsics: Intrinsics in pixels of the model's images, (S, 3, 3) float64.
        cam_from_world: Poses, (S, 3, 4) float64.
        known: Whether a view has a camera and a pixel whose depth is known, (S,) bool.
    """

    inverse_depth: Floats
    confidence: NDArray[np.float32]
    intrinsics: Floats
    cam_from_world: Floats
    known: NDArray[np.bool_]

    def __len__(self) -> int:  # the number of views
        return len(self.intrinsics)

    def holds(self, coords: Floats) -> NDArray[np.bool_]:
        """Whether positions (..., 2) as (x, y) lie between the centres of the first and the last pixel; NaN doesn't."""
        height, width = self.inverse_depth.shape[1:]
        x, y = coords[..., 0], coords[..., 1]
        return (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1)

    def clamp(self, pixels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return pixels (..., 2) as (row, column) of the images that are nearest to those given."""
        return np.clip(pixels, 0, np.array(self.inverse_depth.shape[1:]) - 1)

    @_without_warnings()
    def unproject(self, view: int, coords: Floats) -> Floats:
        """Return the points in the world that a view sees at positions on its image; NaN where nothing is known.

        Args:
            view: Index of the view.
            coords: Positions (x, y) inside the image, (K, 2).

        Returns:
            Points, (K, 3).
        """
        depth = 1 / self._inverse_at(view, coords)
        x, y = self._rays(view, coords)
        rotation, shift = self.cam_from_world[view, :, :3], self.cam_from_world[view, :, 3]
        local = (x * depth - shift[0], y * depth - shift[1], depth - shift[2])
        return np.stack([_dot(rotation[:, axis], local) for axis in range(3)], axis=-1)

    def unproject_each(self, views: NDArray[np.int64], coords: Floats) -> Floats:
        """Return the points (K, 3) that each of several views, (K,), sees at a position (x, y) of its own, (K, 2)."""
        points = np.empty((len(views), 3))
        for view in np.unique(views).tolist():
            points[views == view] = self.unproject(view, coords[views == view])
        return points

    @_without_warnings()
    def nearest(self, view: int, points: Floats, *, tolerance: float, steps: int) -> tuple[Floats, NDArray[np.bool_]]:
        """Find the positions on a view's image whose points come nearest to points in the world.

        The search begins at the projection of the point and takes Gauss-Newton steps on the squared distance.

        Args:
            view: Index of the view.
            points: Points in the world, (K, 3).
            tolerance: Largest distance between a point and the one that is found, as a share of the point's depth.
            steps: Number of Gauss-Newton steps; 0 compares with the surface at the pixel of the projection.

        Returns:
            Positions (x, y), (K, 2), and whether they lie on the image and within the tolerance, (K,).
        """
        target = self._to_camera(view, points)
        near = target[2] > 0
        depth = np.where(near, target[2], 1.0)
        coords = self._project(view, (target[0], target[1], depth))
        near &= self.holds(coords)
        coords = np.where(near[:, None], coords, 0.0)
        if steps == 0:
            coords = np.floor(coords + 0.5)
        for _ in range(steps):
            moved = coords + self._step(view, coords, target)
            # What leaves the image, or comes to where nothing is known, is out.
            near &= self.holds(moved)
            coords = np.where(near[:, None], moved, 0.0)
        found = 1 / self._inverse_at(view, coords)
        x, y = self._rays(view, coords)
        miss = (x * found - target[0], y * found - target[1], found - target[2])
        return coords, near & (_dot(miss, miss) <= (tolerance * depth) ** 2)

    @_without_warnings()
    def normals(self, view: int, points: Floats) -> Floats:
        """Return the normals of a view's surface at the projections of points, facing the view.

        Args:
            view: Index of the view.
            points: Points in the world, (K, 3), in front of the view.

        Returns:
            Unit vectors in the world, (K, 3); towards the camera where the surface has an edge.
        """
        local, k = self._to_camera(view, points), self.intrinsics[view]
        coords = self._project(view, local)
        inverse, a, b = self._inverse_and_slopes(view, coords)
        # The inverse depth of the plane n · p = 1 is a x + b y + c, with (a, b, c) = K⁻ᵀ n.
        c = inverse - a * coords[:, 0] - b * coords[:, 1]
        plane = (k[0, 0] * a, k[0, 1] * a + k[1, 1] * b, k[0, 2] * a + k[1, 2] * b + c)
        known = np.isfinite(plane[0] + plane[1] + plane[2])
        facing = [np.where(known, -normal, -toward) for normal, toward in zip(plane, local, strict=True)]
        length = np.sqrt(_dot(facing, facing))
        rotation = self.cam_from_world[view, :, :3]
        return np.stack([_dot(rotation[:, axis], facing) / length for axis in range(3)], axis=-1)

    def _to_camera(self, view: int, points: Floats) -> tuple[Floats, Floats, Floats]:
        """Return x, y and z in the frame of a view's camera, (K,) each."""
        columns = points[:, 0], points[:, 1], points[:, 2]
        x, y, z = (_dot(row[:3], columns) + row[3] for row in self.cam_from_world[view])
        return x, y, z

    def _project(self, view: int, local: tuple[Floats, Floats, Floats]) -> Floats:
        (x, y, z), k = local, self.intrinsics[view]
        return np.stack([(k[0, 0] * x + k[0, 1] * y) / z + k[0, 2], k[1, 1] * y / z + k[1, 2]], axis=-1)

    def _step(self, view: int, coords: Floats, target: tuple[Floats, Floats, Floats]) -> Floats:
        """Return the Gauss-Newton step, (K, 2): the least squares solution of slopes · step = target - point."""
        inverse, slope_x, slope_y = self._inverse_and_slopes(view, coords)
        (x, y), k, depth = self._rays(view, coords), self.intrinsics[view], 1 / inverse
        point = (x * depth, y * depth, depth)
        # Derivatives of ray / inverse depth by x and by y of the image.
        by_x, by_y = (1 / k[0, 0], 0.0, 0.0), (-k[0, 1] / (k[0, 0] * k[1, 1]), 1 / k[1, 1], 0.0)
        along_x = [(ray - each * slope_x) * depth for ray, each in zip(by_x, point, strict=True)]
        along_y = [(ray - each * slope_y) * depth for ray, each in zip(by_y, point, strict=True)]
        miss = [want - each for want, each in zip(target, point, strict=True)]
        xx, xy, yy = _dot(along_x, along_x), _dot(along_x, along_y), _dot(along_y, along_y)
        bx, by = _dot(along_x, miss), _dot(along_y, miss)
        determinant = xx * yy - xy * xy
        safe = np.where(determinant > 0, determinant, np.nan)
        return np.stack([(yy * bx - xy * by) / safe, (xx * by - xy * bx) / safe], axis=-1)

    def _rays(self, view: int, coords: Floats) -> tuple[Floats, Floats]:
        """Return x / z and y / z of the viewing rays, (K,) each."""
        k = self.intrinsics[view]
        y = (coords[:, 1] - k[1, 2]) / k[1, 1]
        return (coords[:, 0] - k[0, 2] - k[0, 1] * y) / k[0, 0], y

    def _inverse_at(self, view: int, coords: Floats) -> Floats:
        """Return the inverse depth between pixels, bilinear, (K,).

        At the centre of a pixel, the value is that of the pixel alone.
        """
        (a, b, c, d), across, down = self._corners(view, coords)
        return _mix(_mix(a, b, across), _mix(c, d, across), down)

    def _inverse_and_slopes(self, view: int, coords: Floats) -> tuple[Floats, Floats, Floats]:
        """Return the inverse depth between pixels, and its derivatives by x and by y, (K,) each."""
        (a, b, c, d), across, down = self._corners(view, coords)
        value = _mix(_mix(a, b, across), _mix(c, d, across), down)
        return value, _mix(b - a, d - c, down), _mix(c - a, d - b, across)

    def _corners(self, view: int, coords: Floats) -> tuple[list[Floats], Floats, Floats]:
        """Return the inverse depth of the four pixels around each position, and where it lies between them."""
        height, width = self.inverse_depth.shape[1:]
        left = np.clip(coords[:, 0], 0, max(width - 2, 0)).astype(np.int64)
        top = np.clip(coords[:, 1], 0, max(height - 2, 0)).astype(np.int64)
        right, below = int(width > 1), width * int(height > 1)  # steps to the neighbours
        flat, start = self.inverse_depth[view].reshape(-1), top * width + left
        corners = [flat[start + step] for step in (0, right, below, below + right)]
        return corners, coords[:, 0] - left, coords[:, 1] - top


def find_surfaces(scene: SceneContent) -> Surfaces:
    """Return the surfaces that a scene's views see: the depth in its masks, or that of its points in the cameras.

    Raises:
        ValueError: If the scene lacks cameras, or depth and points.
    """
    cameras, depth, points = scene.predictions.cameras, scene.predictions.depth, scene.predictions.points
    if cameras is None:
        raise ValueError("scene must have cameras, but the model ran without its camera head")
    dense = points if depth is None else depth
    if dense is None:
        raise ValueError("scene must have depth or points, but the model ran without those heads")
    pose, intrinsics = (part.detach().double() for part in cameras)
    value, confidence = dense.value.detach().double(), dense.confidence.detach().float()
    if depth is None:
        num_views, height, width = value.shape[:3]
        value = transform_points(pose, value.flatten(1, 2))[..., 2].view(num_views, height, width)
    known = still_pixels(scene) & value.isfinite() & (value > 0) & confidence.isfinite()
    known &= are_cameras(pose, intrinsics)[:, None, None]
    inverse = (1 / value).where(known, value.new_tensor(float("nan")))
    return Surfaces(
        inverse.numpy(),
        confidence.numpy(),
        intrinsics.numpy(),
        pose.numpy(),
        known.flatten(1).any(1).numpy(),
    )


def are_cameras(pose: Float[Tensor, "s 3 4"], intrinsics: Float[Tensor, "s 3 3"]) -> Bool[Tensor, " s"]:
    """Return whether each view has a camera that can be used, (S,) bool: finite, with a rotation and focal lengths > 0.

    Args:
        pose: Poses, (S, 3, 4).
        intrinsics: Intrinsics, (S, 3, 3).
    """
    finite = pose.isfinite().flatten(1).all(1) & intrinsics.isfinite().flatten(1).all(1)
    rotation = pose[:, :, :3].where(finite[:, None, None], torch.eye(3, dtype=pose.dtype))
    gap = (rotation @ rotation.mT - torch.eye(3, dtype=pose.dtype)).abs().flatten(1).amax(1)
    proper = (gap < _MOST_GAP) & (torch.linalg.det(rotation) > 0)
    return finite & proper & (intrinsics[:, 0, 0] > 0) & (intrinsics[:, 1, 1] > 0)


def _dot(a: Sequence[Any] | Floats, b: Sequence[Any] | Floats) -> Any:
    """Return the sum of three products, added from left to right."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _mix(low: Floats, high: Floats, share: Floats) -> Floats:
    """Return the value between two; at either end it is that one, whatever the other is."""
    between = low + (high - low) * share
    return np.where(share == 0, low, np.where(share == 1, high, between))
