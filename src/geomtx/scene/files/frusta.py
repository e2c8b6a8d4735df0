"""Cameras as shapes that pictures and files show: their centres, and the corners of their images in space."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["camera_centers", "frustum_corners"]


def camera_centers(cam_from_world: np.ndarray) -> np.ndarray:
    """Return the centres -Rᵀt (S, 3) of cameras (S, 3, 4), in world coordinates."""
    return -np.einsum("sij,si->sj", cam_from_world[:, :, :3], cam_from_world[:, :, 3])


def frustum_corners(
    cam_from_world: np.ndarray, intrinsics: np.ndarray, image_hw: Sequence[tuple[int, int]], depth: float
) -> np.ndarray:
    """Return the corners (S, 4, 3) of each image at `depth` in front of its camera, in world coordinates.

    Args:
        cam_from_world: Poses with OpenCV axes, (S, 3, 4).
        intrinsics: Intrinsics in pixels of the images, (S, 3, 3), pixel centres at integers.
        image_hw: Height and width of each image in pixels.
        depth: Distance of the image from the camera's centre along its axis, in units of the world.
    """
    corners = []
    for pose, k, (height, width) in zip(cam_from_world, intrinsics, image_hw, strict=True):
        uv = np.array([[-0.5, -0.5], [width - 0.5, -0.5], [width - 0.5, height - 0.5], [-0.5, height - 0.5]])
        rays = np.concatenate([(uv - k[:2, 2]) / k[[0, 1], [0, 1]], np.ones((4, 1))], axis=1)
        corners.append((rays * depth - pose[:, 3]) @ pose[:, :3])
    return np.stack(corners)
