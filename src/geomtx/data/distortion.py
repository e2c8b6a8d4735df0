"""Lens distortion of COLMAP's cameras: pictures as a pinhole camera would have taken them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from geomtx.data.colmap_model import ColmapCamera
from geomtx.data.error import SceneError

__all__ = ["camera_intrinsics", "check_distortion", "distort_points", "undistort_image"]

_KINDS = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")


def camera_intrinsics(camera: ColmapCamera) -> NDArray[np.float64]:
    """(3, 3) without the distortion; the first pixel's centre is at (0, 0), as everywhere in geomtx.

    Raises:
        SceneError: For a model other than SIMPLE_PINHOLE, PINHOLE, SIMPLE_RADIAL, RADIAL and OPENCV.
    """
    if camera.model not in _KINDS:
        raise SceneError(f"camera model must be one of {', '.join(_KINDS)}, got {camera.model}; undistort with COLMAP")
    if camera.model in ("PINHOLE", "OPENCV"):
        f_x, f_y, c_x, c_y = camera.params[:4]
    else:
        f_x, c_x, c_y = camera.params[:3]
        f_y = f_x
    return np.array([[f_x, 0.0, c_x - 0.5], [0.0, f_y, c_y - 0.5], [0.0, 0.0, 1.0]])


def check_distortion(camera: ColmapCamera) -> None:
    """Require that distant points are farther from the centre in the picture, too, as far as it reaches.

    Raises:
        SceneError: For distortion that is stronger: then the picture would show points twice.
    """
    k1, k2, p1, p2 = _coefficients(camera)
    k, (height, width) = camera_intrinsics(camera), camera.image_hw
    far_x, far_y = (max(c, size - 1 - c) / f for c, size, f in ((k[0, 2], width, k[0, 0]), (k[1, 2], height, k[1, 1])))
    r = np.hypot(far_x, far_y) * np.linspace(0, 1, 65)
    if (1 + 3 * k1 * r**2 + 5 * k2 * r**4 - 8 * (abs(p1) + abs(p2)) * r <= 0).any():
        raise SceneError(f"distortion must be invertible over the picture, got {camera.model} {camera.params}")


def distort_points(camera: ColmapCamera, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where a lens shows directions.

    Args:
        camera: Of one of the models of `camera_intrinsics`.
        points: (..., 2), x/z and y/z.

    Returns:
        (..., 2) pixels of the picture as it is, the first pixel's centre at (0, 0).
    """
    k1, k2, p1, p2 = _coefficients(camera)
    x, y = points[..., 0], points[..., 1]
    square = x**2 + y**2
    radial = 1 + k1 * square + k2 * square**2
    bent_x = x * radial + 2 * p1 * x * y + p2 * (square + 2 * x**2)
    bent_y = y * radial + 2 * p2 * x * y + p1 * (square + 2 * y**2)
    k = camera_intrinsics(camera)
    return np.stack([k[0, 0] * bent_x + k[0, 2], k[1, 1] * bent_y + k[1, 2]], axis=-1)


def undistort_image(camera: ColmapCamera, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture (H, W, 3) of the pinhole camera `camera_intrinsics`; black where nothing is known of it."""
    if not any(_coefficients(camera)):
        return image
    height, width = image.shape[:2]
    source = torch.from_numpy(distort_points(camera, _rays(camera)).astype(np.float32))
    # grid_sample counts from -1 at the outer edge of the first pixel to 1 at that of the last.
    grid = (2 * source + 1) / torch.tensor([width, height]) - 1
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
    sampled = torch.nn.functional.grid_sample(pixels, grid[None], align_corners=False)[0]
    return sampled.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def _coefficients(camera: ColmapCamera) -> tuple[float, float, float, float]:
    """Radial k1 and k2, tangential p1 and p2."""
    if camera.model == "SIMPLE_RADIAL":
        return camera.params[3], 0.0, 0.0, 0.0
    if camera.model == "RADIAL":
        return camera.params[3], camera.params[4], 0.0, 0.0
    if camera.model == "OPENCV":
        k1, k2, p1, p2 = camera.params[4:]
        return k1, k2, p1, p2
    return 0.0, 0.0, 0.0, 0.0


def _rays(camera: ColmapCamera) -> NDArray[np.float64]:
    """Directions (H, W, 2) of the pinhole camera's pixels."""
    k = camera_intrinsics(camera)
    y, x = np.indices(camera.image_hw, dtype=np.float64)
    return np.stack([(x - k[0, 2]) / k[0, 0], (y - k[1, 2]) / k[1, 1]], axis=-1)
