"""Cameras as nine numbers (VGGT paper, section 3.1).

Layout: translation t of [R | t] (3), quaternion xyzw (4), field of view (vertical, horizontal) in radians (2).
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


@float32_island
def encode_pose(
    cam_from_world: Float[Tensor, "*batch 3 4"], intrinsics: Float[Tensor, "*batch 3 3"], image_hw: tuple[int, int]
) -> Float[Tensor, "*batch 9"]:
    """Encode cameras.

    The encoding has no place for the principal point or skew: decoding puts the principal point at (W/2, H/2).

    Args:
        cam_from_world: (..., 3, 4), OpenCV axes.
        intrinsics: (..., 3, 3) in pixels of an image of `image_hw`.
        image_hw: Height and width, pixels.

    Returns:
        (..., 9), float32 or better, with w ≥ 0.

    Raises:
        ValueError: For other shapes.
    """
    check_shape("cam_from_world", cam_from_world, ("...", 3, 4))
    check_shape("intrinsics", intrinsics, ("...", 3, 3))
    quat = matrix_to_quat(cam_from_world[..., :3])
    return torch.cat([cam_from_world[..., 3], quat, intrinsics_to_fov(intrinsics, image_hw)], dim=-1)


@float32_island
def decode_pose(encoding: Float[Tensor, "*batch 9"], image_hw: tuple[int, int]) -> Cameras:
    """Decode cameras; the inverse of `encode_pose` for a centred principal point.

    Args:
        encoding: (..., 9). The quaternion need not be a unit one, see `quat_to_matrix`.
        image_hw: Height and width of the image that the intrinsics shall belong to, pixels.

    Returns:
        `Cameras` with (..., 3, 4) and (..., 3, 3), float32 or better.

    Raises:
        ValueError: For another shape.
    """
    check_shape("encoding", encoding, ("...", POSE_DIM))
    rotation = quat_to_matrix(encoding[..., 3:7])
    cam_from_world = torch.cat([rotation, encoding[..., :3, None]], dim=-1)
    return Cameras(cam_from_world, fov_to_intrinsics(encoding[..., 7:], image_hw))


def activate_pose(encoding: Float[Tensor, "*batch 9"]) -> Float[Tensor, "*batch 9"]:
    """Raw network output to encoding: translation and quaternion as they are, field of view rectified.

    Nothing is rounded, so the dtype stays.
    """
    return torch.cat([encoding[..., :7], encoding[..., 7:].relu()], dim=-1)
