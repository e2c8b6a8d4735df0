import math

import pytest
import torch
from torch import Tensor

from geometry.random_cameras import AXES, random_rotations, rodrigues
from geomtx.geometry import matrix_to_quat, quat_to_matrix, rotation_angle


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 0.5, math.pi / 2, 3.0, math.pi - 1e-6, math.pi])
def test_round_trip_at_any_angle(angle):
    for axis in AXES:
        rotation = rodrigues(axis, angle)
        quat = matrix_to_quat(rotation)
        assert quat[3] >= 0
        torch.testing.assert_close(quat.norm(), torch.tensor(1.0).double(), rtol=0, atol=1e-12)
        torch.testing.assert_close(quat_to_matrix(quat), rotation, rtol=0, atol=1e-12)


def test_scalar_is_last():
    half = 0.35
    quat = torch.tensor([0.0, 0.0, math.sin(half), math.cos(half)], dtype=torch.float64)
    expected = rodrigues(torch.tensor([0.0, 0.0, 1.0]), 2 * half)
    torch.testing.assert_close(quat_to_matrix(quat), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(matrix_to_quat(expected), quat, rtol=0, atol=1e-12)
    assert quat_to_matrix(torch.tensor([0.0, 0.0, 0.0, 1.0])).equal(torch.eye(3))


def test_many_random_rotations():
    rotations = random_rotations(4, 500)
    quats = matrix_to_quat(rotations)
    assert quats.shape == (4, 500, 4)
    assert (quats[..., 3] >= 0).all()
    torch.testing.assert_close(quat_to_matrix(quats), rotations, rtol=0, atol=1e-12)


def test_sign_and_length_of_a_quaternion_do_not_matter():
    quats = torch.randn(50, 4, dtype=torch.float64)
    matrices = quat_to_matrix(quats)
    for factor in (-1.0, 1e-6, 1e6, -37.0):
        torch.testing.assert_close(quat_to_matrix(factor * quats), matrices, rtol=0, atol=1e-12)
    eye = torch.eye(3, dtype=torch.float64).expand(50, 3, 3)
    torch.testing.assert_close(matrices @ matrices.mT, eye, rtol=0, atol=1e-12)
    torch.testing.assert_close(matrices.det(), torch.ones(50).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_quaternion_is_the_identity_without_gradient(dtype):
    quats = torch.zeros(2, 4, dtype=dtype)
    quats[1] = torch.tensor([0.1, 0.2, -0.3, 0.4])
    quats.requires_grad_()
    matrices = quat_to_matrix(quats)
    assert matrices[0].equal(torch.eye(3, dtype=dtype))
    (matrices * torch.randn(2, 3, 3, dtype=dtype)).sum().backward()
    assert quats.grad[0].equal(torch.zeros(4, dtype=dtype))
    assert quats.grad[1].isfinite().all()
    assert quats.grad[1].any()


@pytest.mark.parametrize("scale", [1e-18, 1e-10, 1e10, 1e18])
def test_short_and_long_quaternions_in_float32(scale):
    quat = torch.tensor([0.1, 0.2, -0.3, 0.4])
    out = quat_to_matrix((scale * quat.double()).float())
    torch.testing.assert_close(out, quat_to_matrix(quat), rtol=0, atol=1e-5)


def test_gradcheck_of_quat_to_matrix():
    torch.autograd.gradcheck(quat_to_matrix, (torch.randn(5, 4, dtype=torch.float64, requires_grad=True),))


@pytest.mark.parametrize("angle", [0.0, 1e-3, 2.0, math.pi - 1e-3])
def test_gradcheck_of_matrix_to_quat_along_rotations(angle):
    """Perturbed within the rotations; weighted so that the sign, free at 180°, stays on one side."""
    for axis in AXES[3:]:
        rotation = rodrigues(axis, angle)

        def turn(twist: Tensor, rotation=rotation) -> Tensor:
            zero = torch.zeros_like(twist[0])
            x, y, z = twist
            cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).reshape(3, 3)
            return matrix_to_quat(torch.matrix_exp(cross) @ rotation)

        torch.autograd.gradcheck(turn, (torch.zeros(3, dtype=torch.float64, requires_grad=True),))


@pytest.mark.parametrize("angle", [0.0, math.pi])
def test_gradients_of_matrix_to_quat_are_finite_where_it_is_delicate(angle):
    for axis in AXES:
        rotation = rodrigues(axis, angle).requires_grad_()
        matrix_to_quat(rotation).sum().backward()
        assert rotation.grad.isfinite().all()


@pytest.mark.parametrize("angle", [0.0, 1e-5, 0.3, 2.0, 3.0])
def test_rotation_angle_is_the_angle(angle):
    for axis in AXES:
        base = random_rotations()
        turned = base @ rodrigues(axis, angle)
        assert rotation_angle(base, turned).item() == pytest.approx(angle, abs=1e-9)
        assert rotation_angle(turned, base).item() == pytest.approx(angle, abs=1e-9)


def test_rotation_angle_at_180_degrees():
    for axis in AXES:
        assert rotation_angle(rodrigues(axis, math.pi), torch.eye(3).double()).item() == pytest.approx(
            math.pi, abs=1e-6
        )


def test_rotation_angle_of_batches():
    a, b = random_rotations(2, 3), random_rotations(2, 3)
    angles = rotation_angle(a, b)
    assert angles.shape == (2, 3)
    cosines = ((a.mT @ b).diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    torch.testing.assert_close(angles, cosines.acos(), rtol=0, atol=1e-6)


def test_rotation_angle_has_a_finite_gradient_at_zero():
    rotation = torch.eye(3, requires_grad=True)
    rotation_angle(rotation, torch.eye(3)).backward()
    assert rotation.grad.isfinite().all()
