"""Encoding of cameras by nine numbers (VGGT, section 3.1).

The numbers are the translation t of [R | t] (3), the quaternion xyzw of R (4), and the vertical and horizontal field of
view in radians (2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from geomtx.checks import check_shape
from geomtx.geometry.camera import fov_to_intrinsics, intrinsics_to_fov
from geomtx.geometry.rotation import matrix_to_quat, quat_to_matrix
from geomtx.layers.precision import float32_island
from geomtx.types import Cameras, Float

__all__ = ["POSE_DIM", "activate_pose", "decode_pose", "encode_pose"]

POSE_DIM = 9
"""Number of channels of a pose encoding."""


@float32_island
def encode_pose(
    cam_from_world: Float[Tensor, "*batch 3 4"], intrinsics: Float[Tensor, "*batch 3 3"], image_hw: tuple[int, int]
) -> Float[Tensor, "*batch 9"]:
    """Return the pose encodings of cameras.

    Principal point and skew are not encoded: decoding puts the principal point at (W/2, H/2).

    Args:
        cam_from_world: Poses with OpenCV axes, (..., 3, 4).
        intrinsics: Intrinsics in pixels of an image of size `image_hw`, (..., 3, 3).
        image_hw: Height and width of the image in pixels.

    Returns:
        Pose encodings, (..., 9), in float32 or better; the quaternion's w is not negative.

    Raises:
        ValueError: If a shape is another one.
    """
    check_shape("cam_from_world", cam_from_world, ("...", 3, 4))
    check_shape("intrinsics", intrinsics, ("...", 3, 3))
    quat = matrix_to_quat(cam_from_world[..., :3])
    return torch.cat([cam_from_world[..., 3], quat, intrinsics_to_fov(intrinsics, image_hw)], dim=-1)


@float32_island
def decode_pose(encoding: Float[Tensor, "*batch 9"], image_hw: tuple[int, int]) -> Cameras:
    """Return the cameras of pose encodings; the inverse of `encode_pose` for a centred principal point.

    Args:
        encoding: Pose encodings, (..., 9). The quaternion may have any length, see `quat_to_matrix`.
        image_hw: Height and width in pixels of the image that the intrinsics shall belong to.

    Returns:
        Cameras, (..., 3, 4) and (..., 3, 3), in float32 or better.

    Raises:
        ValueError: If the shape is another one.
    """
    check_shape("encoding", encoding, ("...", POSE_DIM))
    rotation = quat_to_matrix(encoding[..., 3:7])
    cam_from_world = torch.cat([rotation, encoding[..., :3, None]], dim=-1)
    return Cameras(cam_from_world, fov_to_intrinsics(encoding[..., 7:], image_hw))


def activate_pose(encoding: Float[Tensor, "*batch 9"]) -> Float[Tensor, "*batch 9"]:
    """Return the pose encoding of a raw network output: the field of view is rectified, the rest stays.

    Args:
        encoding: Raw output of the network, (..., 9).

    Returns:
        Pose encodings, (..., 9), of the same type, as nothing is rounded.
    """
    return torch.cat([encoding[..., :7], encoding[..., 7:].relu()], dim=-1)
