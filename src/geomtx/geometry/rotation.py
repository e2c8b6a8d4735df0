"""Rotations, on roma: quaternions are xyzw (scalar last).

roma is imported where it is used: it brings in torch's compiler, which takes longer than all of geomtx's inner ring.
"""

from __future__ import annotations

import torch
from torch import Tensor

from geomtx.types import Float

__all__ = ["matrix_to_quat", "quat_to_matrix", "rotation_angle"]


def quat_to_matrix(quat_xyzw: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotation matrix of a quaternion that need not be a unit one.

    The quaternion is divided by its norm first. The zero quaternion, which has no rotation, gives the identity, with
    zero gradient, so that a network's worst output never turns into NaN.
    """
    import roma

    norm_sq = quat_xyzw.square().sum(-1, keepdim=True)
    # Two selections: the inner one keeps the backward pass of rsqrt finite where the outer one discards its value.
    is_zero = norm_sq < torch.finfo(quat_xyzw.dtype).tiny
    unit = quat_xyzw * torch.where(is_zero, 1.0, norm_sq).rsqrt()
    identity = torch.zeros_like(quat_xyzw)
    identity[..., 3] = 1.0
    return roma.unitquat_to_rotmat(torch.where(is_zero, identity, unit))


def matrix_to_quat(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 4"]:
    """Unit quaternion (xyzw) of a rotation matrix, with w ≥ 0; any angle, 180° included."""
    import roma

    quat = roma.rotmat_to_unitquat(rotation)
    return torch.where(quat[..., 3:] < 0, -quat, quat)


def rotation_angle(a: Float[Tensor, "*batch 3 3"], b: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch"]:
    """Geodesic distance between two rotations, radians in [0, π]."""
    import roma

    return roma.rotmat_geodesic_distance(a, b)
