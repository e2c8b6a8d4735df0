import math

import pytest
import torch
from roma import mappings
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from geometry.random_cameras import AXES, random_rotations, rodrigues
from geomtx.geometry import decode_pose, matrix_to_quat, nearest_rotation, quat_to_matrix, rotation_angle
from geomtx.geometry import rotation as rotations


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, math.pi - 1e-4, math.pi - 1e-9, math.pi])
def test_rotation_angle_has_a_finite_gradient_everywhere(angle, dtype):
    """Also where one such pair is in a batch with others."""
    for axis in AXES:
        pair = random_rotations(3).to(dtype)
        pair[1] = rodrigues(axis, angle).to(dtype)
        base = torch.eye(3, dtype=dtype).repeat(3, 1, 1).requires_grad_()
        pair.requires_grad_()
        found = rotation_angle(pair, base)
        assert found[1].item() == pytest.approx(angle, abs=1e-6 if dtype == torch.float32 else 1e-9)
        found.sum().backward()
        for gradient in (pair.grad, base.grad):
            assert gradient.isfinite().all()
            assert gradient[[0, 2]].any()


def test_gradcheck_of_rotation_angle():
    turn = torch.stack([rodrigues(axis, angle) for axis in AXES for angle in (0.1, 1.5, 3.0)])
    torch.autograd.gradcheck(rotation_angle, (turn.requires_grad_(), torch.eye(3).double().expand_as(turn)))


@pytest.mark.parametrize(
    ("dtype", "sizes"),
    [
        (torch.float16, (2.0**-20, 2.0**-7, 512.0, 2.0**15)),
        (torch.bfloat16, (1e-35, 1e-3, 1e30)),
        (torch.float32, (1e-37, 1e-25, 1e-3, 1.0, 1e15, 3e19, 1e30, 3e38)),
        (torch.float64, (1e-300, 1e-170, 1.0, 1e160, 1e300)),
    ],
)
def test_quaternions_of_any_length_have_their_rotation(dtype, sizes):
    for direction in ([0.5, 0.5, 0.5, 0.5], [1.0, 0.0, 0.0, 1.0], [0.0, -1.0, 0.5, 0.25]):
        quat = torch.tensor(direction, dtype=dtype)
        for size in sizes:
            leaf = (quat * size).requires_grad_()
            matrix = quat_to_matrix(leaf)
            torch.testing.assert_close(matrix, quat_to_matrix(quat), rtol=0, atol=1e-6)
            torch.testing.assert_close(matrix @ matrix.mT, torch.eye(3, dtype=matrix.dtype), rtol=0, atol=1e-6)
            if size > 1e-30 and dtype != torch.float16:  # a gradient is as large as its quaternion is short
                (gradient,) = torch.autograd.grad(matrix[0].sum(), leaf)
                assert gradient.isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_quaternions_that_are_not_finite_have_no_rotation(bad):
    quat = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, bad, 0.0, 0.0]])
    matrix = quat_to_matrix(quat)
    assert matrix[0].isfinite().all()
    assert matrix[1].isnan().all()
    encoding = torch.cat([torch.zeros(2, 3), quat, torch.ones(2, 2)], dim=-1)
    torch.testing.assert_close(decode_pose(encoding, (4, 4)).cam_from_world[..., :3], matrix, equal_nan=True)


def test_the_first_rotations_may_be_without_values():
    """What roma keeps of its first call has values all the same, for all calls that come after."""
    mappings._cached_horn_map.cache_clear()
    rotations._prepare_procrustes.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        nearest_rotation(torch.rand(2, 3, 3))
    found = nearest_rotation(torch.eye(3) + 0.1 * torch.rand(3, 3))
    torch.testing.assert_close(found @ found.T, torch.eye(3))
