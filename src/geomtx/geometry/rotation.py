"""Rotations as matrices and quaternions, which are xyzw (scalar last).

roma is imported inside the functions: it imports torch's compiler, which takes seconds.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from geomtx.layers.precision import float32_island
from geomtx.types import Float

__all__ = ["matrix_to_quat", "nearest_rotation", "quat_to_matrix", "rotation_angle"]


@float32_island
def quat_to_matrix(quat_xyzw: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3 3"]:
    """Return the rotation matrices of quaternions of any length.

    A quaternion of zero, which stands for no rotation, gives the identity with a gradient of zero, so that no finite
    output of a network turns into NaN.

    Args:
        quat_xyzw: Quaternions, (..., 4); they are normalised here. One that is not finite gives NaN.

    Returns:
        Rotation matrices, (..., 3, 3).
    """
    # Dividing by the largest component first keeps squares within range, and changes no direction and no gradient.
    largest = quat_xyzw.detach().abs().amax(-1, keepdim=True)
    # Two selections: the inner one keeps the backward pass of rsqrt finite where the outer one discards its value.
    is_zero = largest == 0
    scaled = quat_xyzw / torch.where(is_zero, 1.0, largest)
    unit = scaled * torch.where(is_zero, 1.0, scaled.square().sum(-1, keepdim=True)).rsqrt()
    identity = torch.zeros_like(quat_xyzw)
    identity[..., 3] = 1.0
    x, y, z, w = torch.where(is_zero, identity, unit).unbind(-1)
    # Written here, because VGGT's forward pass needs it, which should not wait for the import of roma.
    rows = (
        *(1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        *(2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        *(2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


@float32_island
def matrix_to_quat(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 4"]:
    """Return the unit quaternions xyzw, (..., 4), with w ≥ 0, of rotation matrices.

    Args:
        rotation: Rotation matrices, (..., 3, 3), of any angle, 180° included.
    """
    import roma

    quat = roma.rotmat_to_unitquat(rotation)
    return torch.where(quat[..., 3:] < 0, -quat, quat)


@float32_island
def rotation_angle(a: Float[Tensor, "*batch 3 3"], b: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch"]:
    """Return the geodesic distance between two rotations in radians, (...), in [0, π].

    The gradient is finite everywhere; at 0 and π, where the distance is not differentiable, it is 0.

    Args:
        a: Rotation matrices, (..., 3, 3).
        b: Rotation matrices, (..., 3, 3).
    """
    relative = a.transpose(-1, -2) @ b
    # From 2 sin and 2 cos of the angle: acos or asin of one of them has no derivative at an end of its range.
    skew = relative - relative.transpose(-1, -2)
    sine = torch.linalg.vector_norm(torch.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], dim=-1), dim=-1)
    return torch.atan2(sine, relative.diagonal(dim1=-2, dim2=-1).sum(-1) - 1)


@float32_island
def nearest_rotation(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Return the rotations that are nearest to matrices in the sum of squared differences (Umeyama 1991).

    The gradient is finite where the nearest rotation is unique, also at rotations, whose singular values are equal.

    Args:
        matrix: Matrices of any determinant, (..., 3, 3).
    """
    import roma

    if not torch.compiler.is_dynamo_compiling():
        _prepare_procrustes(matrix.device)
    return roma.special_procrustes(matrix)


@functools.cache
def _prepare_procrustes(device: torch.device) -> None:
    """Let roma compute the constants that it keeps of its first call on a device, which might be on fake tensors."""
    import roma
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    with unset_fake_temporarily(), torch.no_grad(), torch.device("cpu"):
        roma.special_procrustes(torch.eye(3, device=device)[None])
