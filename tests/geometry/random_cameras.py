"""Rotations, rigid transforms and intrinsics to test with, in float64."""

import torch
from torch import Tensor

IMAGE_HW = (48, 64)
AXES = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, -2, 3], [-1, -1, -1]], dtype=torch.float64)


def rodrigues(axis: Tensor, angle: float) -> Tensor:
    """exp of the cross-product matrix, by its power series."""
    x, y, z = (axis.double() / axis.double().norm() * angle).tolist()
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    return torch.matrix_exp(cross)


def random_rotations(*shape: int) -> Tensor:
    rotations, _ = torch.linalg.qr(torch.randn(*shape, 3, 3, dtype=torch.float64))
    return rotations * rotations.det()[..., None, None]


def random_rigid(*shape: int) -> Tensor:
    return torch.cat([random_rotations(*shape), torch.randn(*shape, 3, 1).double()], dim=-1)


def centred_intrinsics(f_x: Tensor, f_y: Tensor) -> Tensor:
    intrinsics = torch.zeros(*f_x.shape, 3, 3, dtype=torch.float64)
    intrinsics[..., 0, 0], intrinsics[..., 1, 1] = f_x, f_y
    intrinsics[..., 0, 2], intrinsics[..., 1, 2], intrinsics[..., 2, 2] = IMAGE_HW[1] / 2, IMAGE_HW[0] / 2, 1.0
    return intrinsics


def random_intrinsics(*shape: int) -> Tensor:
    return centred_intrinsics(*(torch.rand(2, *shape, dtype=torch.float64) * 100 + 20))
