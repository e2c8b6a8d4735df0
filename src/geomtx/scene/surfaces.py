"""The surface that each view of a scene sees, between pixels too, and the place on it that is nearest to a point.

All in numpy and float64, entry by entry: the same numbers with any number of threads.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from geomtx.geometry.camera import transform_points
from geomtx.scene.content import SceneContent

__all__ = ["Surfaces", "find_surfaces"]

Floats = NDArray[np.float64]


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
    """

    inverse_depth: Floats
    confidence: NDArray[np.float32]
    intrinsics: Floats
    cam_from_world: Floats

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
    def unproject(self, views: NDArray[np.int64], coords: Floats) -> Floats:
        """Return the points in the world that views see at positions on their images; NaN where nothing is known.

        Args:
            views: Indices of the views, (K,).
            coords: Positions (x, y) inside the images, (K, 2).

        Returns:
            Points, (K, 3).
        """
        inverse, _, _ = self._inverse_at(views, coords)
        x, y = self._rays(views, coords)
        pose = self.cam_from_world[views]
        local = [x / inverse - pose[:, 0, 3], y / inverse - pose[:, 1, 3], 1 / inverse - pose[:, 2, 3]]
        columns = [sum(pose[:, row, axis] * local[row] for row in range(3)) for axis in range(3)]
        return np.stack(columns, axis=-1)

    @_without_warnings()
    def nearest(
        self, views: NDArray[np.int64], points: Floats, *, tolerance: float, steps: int
    ) -> tuple[Floats, NDArray[np.bool_]]:
        """Find the positions on the images of views whose points come nearest to points in the world.

        The search begins at the projection of the point and takes Gauss-Newton steps on the squared distance.

        Args:
            views: Indices of the views, (K,).
            points: Points in the world, (K, 3).
            tolerance: Largest distance between a point and the one that is found, as a share of the point's depth.
            steps: Number of Gauss-Newton steps; 0 compares with the surface at the pixel of the projection.

        Returns:
            Positions (x, y), (K, 2), and whether they lie on the image and within the tolerance, (K,).
        """
        pose = self.cam_from_world[views]
        x, y, z = (sum(pose[:, row, i] * points[:, i] for i in range(3)) + pose[:, row, 3] for row in range(3))
        k = self.intrinsics[views]
        ahead = z > 0
        depth = np.where(ahead, z, 1.0)
        coords = np.stack(
            [(k[:, 0, 0] * x + k[:, 0, 1] * y) / depth + k[:, 0, 2], k[:, 1, 1] * y / depth + k[:, 1, 2]], axis=-1
        )
        ahead &= self.holds(coords)
        coords = np.where(ahead[:, None], coords, 0.0)
        target = np.stack([x, y, z], axis=-1)
        if steps == 0:
            coords = np.floor(coords + 0.5)
        for _ in range(steps):
            moved = coords + self._step(views, coords, target)
            # What leaves the image, or comes to where nothing is known, is out.
            ahead &= self.holds(moved)
            coords = np.where(ahead[:, None], moved, 0.0)
        miss = self._points_and_slopes(views, coords)[0] - target
        near = np.sqrt((miss * miss).sum(-1)) <= tolerance * depth
        return coords, ahead & near

    @_without_warnings()
    def normals(self, views: NDArray[np.int64], points: Floats) -> Floats:
        """Return the normals of the surfaces of views at the projections of points, facing the views.

        Args:
            views: Indices of the views, (K,).
            points: Points in the world, (K, 3), in front of the views.

        Returns:
            Unit vectors in the world, (K, 3); towards the camera where the surface has an edge.
        """
        pose, k = self.cam_from_world[views], self.intrinsics[views]
        x, y, z = (sum(pose[:, row, i] * points[:, i] for i in range(3)) + pose[:, row, 3] for row in range(3))
        column = (k[:, 0, 0] * x + k[:, 0, 1] * y) / z + k[:, 0, 2]
        row = k[:, 1, 1] * y / z + k[:, 1, 2]
        inverse, a, b = self._inverse_at(views, np.stack([column, row], axis=-1))
        # The inverse depth of the plane n · p = 1 is a column + b row + c, with (a, b, c) = K⁻ᵀ n.
        c = inverse - a * column - b * row
        plane = [k[:, 0, 0] * a, k[:, 0, 1] * a + k[:, 1, 1] * b, k[:, 0, 2] * a + k[:, 1, 2] * b + c]
        local = -np.stack(plane, axis=-1)
        local = np.where(np.isfinite(local).all(-1)[:, None], local, -np.stack([x, y, z], axis=-1))
        local /= np.sqrt((local * local).sum(-1))[:, None]
        return np.stack([sum(pose[:, i, axis] * local[:, i] for i in range(3)) for axis in range(3)], axis=-1)

    def _step(self, views: NDArray[np.int64], coords: Floats, target: Floats) -> Floats:
        """Return the Gauss-Newton step, (K, 2): the least squares solution of slopes · step = target - point."""
        point, along_x, along_y = self._points_and_slopes(views, coords)
        miss = target - point
        xx, xy, yy = (along_x * along_x).sum(-1), (along_x * along_y).sum(-1), (along_y * along_y).sum(-1)
        bx, by = (along_x * miss).sum(-1), (along_y * miss).sum(-1)
        determinant = xx * yy - xy * xy
        safe = np.where(determinant > 0, determinant, np.nan)
        return np.stack([(yy * bx - xy * by) / safe, (xx * by - xy * bx) / safe], axis=-1)

    def _points_and_slopes(self, views: NDArray[np.int64], coords: Floats) -> tuple[Floats, Floats, Floats]:
        """Return the points in the frames of the cameras, and their derivatives by x and by y, (K, 3) each."""
        inverse, slope_x, slope_y = self._inverse_at(views, coords)
        x, y = self._rays(views, coords)
        k = self.intrinsics[views]
        depth = 1 / inverse
        rays = np.stack([x, y, np.ones_like(x)], axis=-1)
        point = rays * depth[:, None]
        nothing = np.zeros_like(x)
        by_x = np.stack([1 / k[:, 0, 0], nothing, nothing], axis=-1)
        by_y = np.stack([-k[:, 0, 1] / (k[:, 0, 0] * k[:, 1, 1]), 1 / k[:, 1, 1], nothing], axis=-1)
        along_x = (by_x - point * slope_x[:, None]) * depth[:, None]
        along_y = (by_y - point * slope_y[:, None]) * depth[:, None]
        return point, along_x, along_y

    def _rays(self, views: NDArray[np.int64], coords: Floats) -> tuple[Floats, Floats]:
        """Return x / z and y / z of the viewing rays, (K,) each."""
        k = self.intrinsics[views]
        y = (coords[:, 1] - k[:, 1, 2]) / k[:, 1, 1]
        return (coords[:, 0] - k[:, 0, 2] - k[:, 0, 1] * y) / k[:, 0, 0], y

    def _inverse_at(self, views: NDArray[np.int64], coords: Floats) -> tuple[Floats, Floats, Floats]:
        """Return the inverse depth between pixels, bilinear, and its derivatives by x and by y, (K,) each.

        At the centre of a pixel, the value is that of the pixel alone.
        """
        height, width = self.inverse_depth.shape[1:]
        left = np.clip(np.floor(coords[:, 0]), 0, max(width - 2, 0)).astype(np.int64)
        top = np.clip(np.floor(coords[:, 1]), 0, max(height - 2, 0)).astype(np.int64)
        right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
        across, down = coords[:, 0] - left, coords[:, 1] - top
        flat = self.inverse_depth.reshape(-1)
        row_above, row_below = (views * height + top) * width, (views * height + bottom) * width
        a, b, c, d = flat[row_above + left], flat[row_above + right], flat[row_below + left], flat[row_below + right]
        upper, lower = _mix(a, b, across), _mix(c, d, across)
        return _mix(upper, lower, down), _mix(b - a, d - c, down), _mix(c - a, d - b, across)


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
    pose, intrinsics = cameras.cam_from_world.double(), cameras.intrinsics.double()
    value = dense.value.double()
    if depth is None:
        num_views, height, width = value.shape[:3]
        value = transform_points(pose, value.flatten(1, 2))[..., 2].view(num_views, height, width)
    known = scene.masks & value.isfinite() & (value > 0) & dense.confidence.isfinite()
    known &= (pose.isfinite().flatten(1).all(1) & intrinsics.isfinite().flatten(1).all(1))[:, None, None]
    inverse = (1 / value).where(known, value.new_tensor(float("nan")))
    return Surfaces(inverse.numpy(), dense.confidence.float().numpy(), intrinsics.numpy(), pose.numpy())


def _mix(low: Floats, high: Floats, share: Floats) -> Floats:
    """Return the value between two; at either end it is that one, whatever the other is."""
    between = low + (high - low) * share
    return np.where(share == 0, low, np.where(share == 1, high, between))
