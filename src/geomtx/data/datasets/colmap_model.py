"""Sparse models of COLMAP as data: errors of scenes, and the lens distortion of their cameras."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from geomtx.data.scene_check import SceneError
from geomtx.scene.files import colmap_model
from geomtx.scene.files.colmap_model import ColmapCamera, ColmapError, ColmapImage, ColmapModel

__all__ = [
    "ColmapCamera",
    "ColmapImage",
    "ColmapModel",
    "camera_intrinsics",
    "check_distortion",
    "distort_points",
    "find_colmap_model",
    "read_colmap_model",
    "undistort_image",
]


def find_colmap_model(folder: Path) -> Path:
    """Find the folder of a scene's model, see `geomtx.scene.files.colmap_model.find_colmap_model`.

    Raises:
        SceneError: If there is none.
    """
    try:
        return colmap_model.find_colmap_model(folder)
    except ColmapError as error:
        raise SceneError(str(error)) from error


def read_colmap_model(folder: Path) -> ColmapModel:
    """Read a model, see `geomtx.scene.files.colmap_model.read_colmap_model`.

    Raises:
        SceneError: If a file is missing, damaged or truncated, or the files are not of one model.
    """
    try:
        return colmap_model.read_colmap_model(folder)
    except ColmapError as error:
        raise SceneError(str(error)) from error


_KINDS = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")


def camera_intrinsics(camera: ColmapCamera) -> NDArray[np.float64]:
    """Return the intrinsics (3, 3) without distortion; the first pixel's centre is at (0, 0).

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
    """Require that the distortion is invertible over the whole picture.

    Raises:
        SceneError: If the distorted radius does not increase with the radius; then points would appear twice.
    """
    k1, k2, p1, p2 = _coefficients(camera)
    k, (height, width) = camera_intrinsics(camera), camera.image_hw
    far_x, far_y = (max(c, size - 1 - c) / f for c, size, f in ((k[0, 2], width, k[0, 0]), (k[1, 2], height, k[1, 1])))
    r = np.hypot(far_x, far_y) * np.linspace(0, 1, 65)
    if (1 + 3 * k1 * r**2 + 5 * k2 * r**4 - 8 * (abs(p1) + abs(p2)) * r <= 0).any():
        raise SceneError(f"distortion must be invertible over the picture, got {camera.model} {camera.params}")


def distort_points(camera: ColmapCamera, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Project directions with the distortion of the lens.

    Args:
        camera: Camera of a model that `camera_intrinsics` supports.
        points: Normalised coordinates x/z and y/z, (..., 2).

    Returns:
        Pixels (..., 2) of the distorted picture, with the first pixel's centre at (0, 0).
    """
    from kornia.geometry import calibration

    flat, k = torch.from_numpy(points.reshape(-1, 2)), torch.from_numpy(camera_intrinsics(camera))
    # The last argument maps points to normalised coordinates, which they are already.
    pixels = calibration.distort_points(flat, k, flat.new_tensor(_coefficients(camera)), torch.eye(3).to(flat))
    return pixels.numpy().reshape(points.shape)


def undistort_image(camera: ColmapCamera, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Undistort a picture (H, W, 3) to the camera `camera_intrinsics`; black outside of the original picture."""
    if not any(_coefficients(camera)):
        return image
    from kornia.geometry import calibration

    # In float64, because float32 misplaces the pixels of large pictures by thousandths.
    pixels = torch.tensor(image, dtype=torch.float64).permute(2, 0, 1)[None]
    k, coefficients = torch.from_numpy(camera_intrinsics(camera)), pixels.new_tensor(_coefficients(camera))
    undistorted = calibration.undistort_image(pixels, k[None], coefficients[None])[0]
    return undistorted.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def _coefficients(camera: ColmapCamera) -> tuple[float, float, float, float]:
    """Return the radial coefficients k1 and k2 and the tangential ones p1 and p2."""
    if camera.model == "SIMPLE_RADIAL":
        return camera.params[3], 0.0, 0.0, 0.0
    if camera.model == "RADIAL":
        return camera.params[3], camera.params[4], 0.0, 0.0
    if camera.model == "OPENCV":
        k1, k2, p1, p2 = camera.params[4:]
        return k1, k2, p1, p2
    return 0.0, 0.0, 0.0, 0.0
