"""Cameras in the conventions of other programs: COLMAP, OpenGL and Blender, nerfstudio, kornia.

geomtx's own are `cam_from_world` (OpenCV axes: x right, y down, z forward) and intrinsics in pixels whose centres are
at integers. Each pair of functions is a round trip.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.checks import check_shape
from geomtx.geometry.camera import compose_rigid, invert_rigid
from geomtx.geometry.rotation import matrix_to_quat, quat_to_matrix
from geomtx.layers.precision import float32_island
from geomtx.types import Cameras, Float, show_shapes

__all__ = [
    "ColmapCameras",
    "KorniaCameras",
    "from_colmap",
    "from_kornia",
    "from_nerfstudio",
    "from_opengl",
    "shift_pixel_center",
    "to_colmap",
    "to_kornia",
    "to_nerfstudio",
    "to_opengl",
]

_APPLIED = ((1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, -1.0, 0.0, 0.0))


@show_shapes
class ColmapCameras(NamedTuple):
    """Cameras as COLMAP's files have them.

    Attributes:
        quat_wxyz: Unit quaternions of the rotations from the world to the cameras, scalar first, (..., 4).
        translation: Translations of these poses, (..., 3), which are not the cameras' centres.
        intrinsics: Intrinsics in pixels, (..., 3, 3); the first pixel's centre is at (0.5, 0.5).
    """

    quat_wxyz: Float[Tensor, "*batch 4"]
    translation: Float[Tensor, "*batch 3"]
    intrinsics: Float[Tensor, "*batch 3 3"]


@show_shapes
class KorniaCameras(NamedTuple):
    """Cameras as `kornia.geometry.camera.PinholeCamera` takes them, with one axis of batch.

    Attributes:
        intrinsics: Intrinsics in pixels whose centres are at integers, (..., 4, 4).
        extrinsics: Poses from the world to the cameras, OpenCV axes, (..., 4, 4).
    """

    intrinsics: Float[Tensor, "*batch 4 4"]
    extrinsics: Float[Tensor, "*batch 4 4"]


@float32_island
def shift_pixel_center(intrinsics: Float[Tensor, "*batch 3 3"], shift: float) -> Float[Tensor, "*batch 3 3"]:
    """Return intrinsics with the principal point moved by `shift` pixels in x and y.

    0.5 goes from geomtx's pixels, whose centres are at integers, to those of COLMAP and nerfstudio, where the image
    begins at (0, 0); -0.5 comes back.

    Args:
        intrinsics: Intrinsics in pixels, (..., 3, 3).
        shift: Coordinate of the first pixel's centre in the new convention, minus that in the old one.
    """
    check_shape("intrinsics", intrinsics, ("...", 3, 3))
    moved = torch.zeros_like(intrinsics)
    moved[..., :2, 2] = shift
    return intrinsics + moved


@float32_island
def to_colmap(cam_from_world: Float[Tensor, "*batch 3 4"], intrinsics: Float[Tensor, "*batch 3 3"]) -> ColmapCameras:
    """Return cameras as COLMAP has them.

    Args:
        cam_from_world: Poses with OpenCV axes, (..., 3, 4).
        intrinsics: Intrinsics in pixels whose centres are at integers, (..., 3, 3).
    """
    check_shape("cam_from_world", cam_from_world, ("...", 3, 4))
    quat_xyzw = matrix_to_quat(cam_from_world[..., :3])
    return ColmapCameras(quat_xyzw.roll(1, -1), cam_from_world[..., 3], shift_pixel_center(intrinsics, 0.5))


@float32_island
def from_colmap(
    quat_wxyz: Float[Tensor, "*batch 4"],
    translation: Float[Tensor, "*batch 3"],
    intrinsics: Float[Tensor, "*batch 3 3"],
) -> Cameras:
    """Return geomtx's cameras of those of COLMAP; the inverse of `to_colmap`.

    Args:
        quat_wxyz: Quaternions of any length, scalar first, (..., 4).
        translation: Translations, (..., 3).
        intrinsics: Intrinsics whose first pixel's centre is at (0.5, 0.5), (..., 3, 3).
    """
    rotation = quat_to_matrix(quat_wxyz.roll(-1, -1))
    return Cameras(torch.cat([rotation, translation[..., None]], dim=-1), shift_pixel_center(intrinsics, -0.5))


@float32_island
def to_opengl(cam_from_world: Float[Tensor, "*batch 3 4"]) -> Float[Tensor, "*batch 4 4"]:
    """Return `world_from_cam` matrices (..., 4, 4) with OpenGL's and Blender's axes of the camera.

    The camera's x axis points right, y up and z backward; the world stays as it is.

    Args:
        cam_from_world: Poses with OpenCV axes, (..., 3, 4).
    """
    return _to_square(_turn_axes(invert_rigid(cam_from_world)))


@float32_island
def from_opengl(world_from_cam: Float[Tensor, "*batch rows 4"]) -> Float[Tensor, "*batch 3 4"]:
    """Return `cam_from_world` with OpenCV axes, (..., 3, 4); the inverse of `to_opengl`.

    Args:
        world_from_cam: Camera-to-world matrices with OpenGL's axes, (..., 4, 4) or (..., 3, 4).
    """
    check_shape("world_from_cam", world_from_cam, ("...", 4, 4), ("...", 3, 4))
    return invert_rigid(_turn_axes(world_from_cam[..., :3, :]))


@float32_island
def to_nerfstudio(cam_from_world: Float[Tensor, "*batch 3 4"]) -> Float[Tensor, "*batch 4 4"]:
    """Return the `transform_matrix` (..., 4, 4) of nerfstudio's transforms.json.

    It is camera-to-world with OpenGL's axes, in a world whose z axis points up where geomtx's y axis points down:
    (x, y, z) becomes (x, z, -y), which the file's `applied_transform` must say,
    [[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0]]. Focal lengths and principal point are those of `shift_pixel_center`
    with 0.5.

    Args:
        cam_from_world: Poses with OpenCV axes, (..., 3, 4).
    """
    world_from_cam = _turn_axes(invert_rigid(cam_from_world))
    return _to_square(compose_rigid(world_from_cam.new_tensor(_APPLIED), world_from_cam))


@float32_island
def from_nerfstudio(
    transform_matrix: Float[Tensor, "*batch rows 4"], applied_transform: Float[Tensor, "3 4"] | None = None
) -> Float[Tensor, "*batch 3 4"]:
    """Return `cam_from_world` with OpenCV axes, (..., 3, 4), in the world before `applied_transform`.

    The inverse of `to_nerfstudio` for its `applied_transform`.

    Args:
        transform_matrix: Camera-to-world matrices with OpenGL's axes, (..., 4, 4) or (..., 3, 4).
        applied_transform: Transform from the original world to the saved one, (3, 4); defaults to the identity.
    """
    check_shape("transform_matrix", transform_matrix, ("...", 4, 4), ("...", 3, 4))
    world_from_cam = _turn_axes(transform_matrix[..., :3, :])
    if applied_transform is not None:
        world_from_cam = compose_rigid(invert_rigid(applied_transform), world_from_cam)
    return invert_rigid(world_from_cam)


@float32_island
def to_kornia(cam_from_world: Float[Tensor, "*batch 3 4"], intrinsics: Float[Tensor, "*batch 3 3"]) -> KorniaCameras:
    """Return cameras as kornia's `PinholeCamera(intrinsics, extrinsics, height, width)` takes them.

    Args:
        cam_from_world: Poses with OpenCV axes, (..., 3, 4).
        intrinsics: Intrinsics in pixels whose centres are at integers, (..., 3, 3).
    """
    check_shape("intrinsics", intrinsics, ("...", 3, 3))
    wide = torch.nn.functional.pad(intrinsics, (0, 1))
    return KorniaCameras(_to_square(wide), _to_square(cam_from_world))


@float32_island
def from_kornia(intrinsics: Float[Tensor, "*batch 4 4"], extrinsics: Float[Tensor, "*batch 4 4"]) -> Cameras:
    """Return geomtx's cameras of those of kornia; the inverse of `to_kornia`.

    Args:
        intrinsics: Intrinsics, (..., 4, 4).
        extrinsics: Poses from the world to the cameras, (..., 4, 4).
    """
    for name, matrix in (("intrinsics", intrinsics), ("extrinsics", extrinsics)):
        check_shape(name, matrix, ("...", 4, 4))
    return Cameras(extrinsics[..., :3, :], intrinsics[..., :3, :3])


def _turn_axes(world_from_cam: Tensor) -> Tensor:
    """Turn the y and z axes of cameras around: from OpenCV's to OpenGL's and back."""
    return world_from_cam * world_from_cam.new_tensor([1.0, -1.0, -1.0, 1.0])


def _to_square(matrix: Tensor) -> Tensor:
    """Append the row (0, 0, 0, 1) to matrices (..., 3, 4)."""
    check_shape("cam_from_world", matrix, ("...", 3, 4))
    last = matrix.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*matrix.shape[:-2], 1, 4)
    return torch.cat([matrix, last], dim=-2)
