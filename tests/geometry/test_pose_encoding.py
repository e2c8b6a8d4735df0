import math

import pytest
import torch

from geometry.random_cameras import (
    AXES,
    IMAGE_HW,
    centred_intrinsics,
    random_intrinsics,
    random_rigid,
    random_rotations,
    rodrigues,
)
from geomtx import decode_pose, encode_pose
from geomtx.geometry import activate_pose


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_round_trip_from_cameras(shape):
    cameras = random_rigid(*shape), random_intrinsics(*shape)
    encoding = encode_pose(*cameras, IMAGE_HW)
    assert encoding.shape == (*shape, 9)
    assert encoding.dtype == torch.float64
    for ours, original in zip(decode_pose(encoding, IMAGE_HW), cameras, strict=True):
        torch.testing.assert_close(ours, original, rtol=0, atol=1e-11)


def test_round_trip_from_encodings():
    encoding = torch.randn(200, 9, dtype=torch.float64)
    encoding[:, 3:7] /= encoding[:, 3:7].norm(dim=-1, keepdim=True)
    encoding[:, 3:7] *= encoding[:, 6:7].sign()
    encoding[:, 7:] = torch.rand(200, 2) * 3 + 0.05
    again = encode_pose(*decode_pose(encoding, IMAGE_HW), IMAGE_HW)
    torch.testing.assert_close(again, encoding, rtol=0, atol=1e-11)


@pytest.mark.parametrize("angle", [0.0, math.pi - 1e-7, math.pi])
def test_round_trip_at_identity_and_180_degrees(angle):
    for axis in AXES:
        camera = torch.cat([rodrigues(axis, angle), torch.randn(3, 1).double()], dim=-1)
        encoding = encode_pose(camera, random_intrinsics(), IMAGE_HW)
        assert encoding[6] >= 0
        torch.testing.assert_close(decode_pose(encoding, IMAGE_HW).cam_from_world, camera, rtol=0, atol=1e-11)


def test_layout_number_by_number():
    camera = torch.cat([rodrigues(torch.tensor([0.0, 1, 0]), 0.8), torch.tensor([[1.0], [2], [3]]).double()], dim=-1)
    intrinsics = centred_intrinsics(torch.tensor(32.0), torch.tensor(24 / math.tan(0.3), dtype=torch.float64))
    expected = [1, 2, 3, 0, math.sin(0.4), 0, math.cos(0.4), 0.6, math.pi / 2]
    assert encode_pose(camera, intrinsics, IMAGE_HW).tolist() == pytest.approx(expected, abs=1e-12)


def test_principal_point_is_the_middle_of_the_image():
    """At (W/2, H/2); what the encoding was made from has no say in it."""
    intrinsics = random_intrinsics(4)
    moved = intrinsics.clone()
    moved[..., :2, 2] += 5
    moved[..., 0, 1] = 0.3
    rigid = random_rigid(4)
    assert torch.equal(encode_pose(rigid, moved, IMAGE_HW), encode_pose(rigid, intrinsics, IMAGE_HW))
    decoded = decode_pose(encode_pose(rigid, moved, IMAGE_HW), IMAGE_HW).intrinsics
    torch.testing.assert_close(decoded, intrinsics, rtol=0, atol=1e-11)


def test_intrinsics_follow_the_size_of_the_image():
    encoding = encode_pose(random_rigid(3), random_intrinsics(3), IMAGE_HW)
    small, large = decode_pose(encoding, IMAGE_HW).intrinsics, decode_pose(encoding, (480, 640)).intrinsics
    torch.testing.assert_close(large[:, :2], 10 * small[:, :2], rtol=1e-12, atol=0)


def test_sign_and_length_of_the_quaternion_do_not_matter():
    encoding = torch.randn(20, 9, dtype=torch.float64)
    camera = decode_pose(encoding, IMAGE_HW).cam_from_world
    for factor in (-1.0, 0.01, 30.0):
        changed = torch.cat([encoding[:, :3], factor * encoding[:, 3:7], encoding[:, 7:]], dim=-1)
        torch.testing.assert_close(decode_pose(changed, IMAGE_HW).cam_from_world, camera, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zeros_decode_to_finite_cameras_with_finite_gradients(dtype):
    encoding = torch.zeros(2, 9, dtype=dtype, requires_grad=True)
    cameras = decode_pose(encoding, IMAGE_HW)
    assert cameras.cam_from_world[0].equal(torch.eye(3, 4, dtype=dtype))
    assert cameras.intrinsics.isfinite().all()
    (cameras.cam_from_world.sum() + cameras.intrinsics.sum()).backward()
    assert encoding.grad.isfinite().all()


@pytest.mark.parametrize("angle", [0.0, math.pi])
def test_gradients_of_encoding_are_finite_where_it_is_delicate(angle):
    for axis in AXES:
        camera = torch.cat([rodrigues(axis, angle), torch.ones(3, 1).double()], dim=-1).requires_grad_()
        encode_pose(camera, random_intrinsics(), IMAGE_HW).sum().backward()
        assert camera.grad.isfinite().all()


def test_gradcheck_of_decoding():
    encoding = torch.randn(3, 9, dtype=torch.float64)
    encoding[:, 7:] = torch.rand(3, 2) + 0.3
    torch.autograd.gradcheck(lambda x: decode_pose(x, IMAGE_HW), (encoding.requires_grad_(),))


def test_gradcheck_of_the_cycle():
    """Decode and encode: the derivative is the projection onto unit quaternions."""
    encoding = torch.randn(3, 9, dtype=torch.float64)
    encoding[:, 6] = 1 + encoding[:, 6].abs()
    encoding[:, 7:] = torch.rand(3, 2) + 0.3
    torch.autograd.gradcheck(lambda x: encode_pose(*decode_pose(x, IMAGE_HW), IMAGE_HW), (encoding.requires_grad_(),))


def test_activation_rectifies_the_field_of_view_only():
    raw = torch.randn(4, 5, 9)
    activated = activate_pose(raw)
    assert torch.equal(activated[..., :7], raw[..., :7])
    assert torch.equal(activated[..., 7:], raw[..., 7:].clamp(min=0))
    assert (raw[..., 7:] < 0).any()


def test_float32_keeps_its_precision():
    cameras = torch.cat([random_rotations(100), torch.randn(100, 3, 1).double()], dim=-1), random_intrinsics(100)
    encoding = encode_pose(*(c.float() for c in cameras), IMAGE_HW)
    assert encoding.dtype == torch.float32
    torch.testing.assert_close(encoding.double(), encode_pose(*cameras, IMAGE_HW), rtol=0, atol=3e-6)


@pytest.mark.usefixtures("unchecked")
def test_wrong_shapes():
    with pytest.raises(ValueError, match=r"^cam_from_world must have shape \(\.\.\., 3, 4\), got \(2, 4, 4\)$"):
        encode_pose(torch.eye(4).expand(2, 4, 4), torch.eye(3).expand(2, 3, 3), IMAGE_HW)
    with pytest.raises(ValueError, match=r"^intrinsics must "):
        encode_pose(torch.eye(3, 4), torch.ones(2, 4), IMAGE_HW)
    with pytest.raises(ValueError, match=r"^encoding must "):
        decode_pose(torch.ones(2, 8), IMAGE_HW)
