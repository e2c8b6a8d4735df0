import math

import pytest
import torch
from torch import Tensor

from geometry.random_cameras import random_rigid
from geomtx import invert_rigid
from geomtx.geometry import compose_rigid, fov_to_intrinsics, intrinsics_to_fov, transform_points


def homogeneous(transform: Tensor) -> Tensor:
    last = torch.tensor([0.0, 0, 0, 1], dtype=transform.dtype).expand(*transform.shape[:-2], 1, 4)
    return torch.cat([transform, last], dim=-2)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_inverse_is_the_matrix_inverse(shape):
    transform = random_rigid(*shape)
    torch.testing.assert_close(
        homogeneous(invert_rigid(transform)), homogeneous(transform).inverse(), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(invert_rigid(invert_rigid(transform)), transform, rtol=0, atol=1e-13)


def test_composition_is_the_matrix_product():
    a, b = random_rigid(2, 3), random_rigid(2, 3)
    product = homogeneous(a) @ homogeneous(b)
    torch.testing.assert_close(homogeneous(compose_rigid(a, b)), product, rtol=0, atol=1e-12)
    identity = torch.eye(3, 4, dtype=torch.float64).expand(2, 3, 3, 4)
    torch.testing.assert_close(compose_rigid(a, invert_rigid(a)), identity, rtol=0, atol=1e-12)


def test_points_go_through_in_order():
    a, b, points = random_rigid(4), random_rigid(4), torch.randn(4, 6, 3).double()
    by_hand = torch.stack([a[i, :, :3] @ points[i, j] + a[i, :, 3] for i in range(4) for j in range(6)]).reshape(
        4, 6, 3
    )
    torch.testing.assert_close(transform_points(a, points), by_hand, rtol=0, atol=1e-13)
    once, twice = transform_points(compose_rigid(a, b), points), transform_points(a, transform_points(b, points))
    torch.testing.assert_close(once, twice, rtol=0, atol=1e-12)


def test_camera_centre_maps_to_the_origin():
    camera = random_rigid(7)
    centres = invert_rigid(camera)[..., 3]
    torch.testing.assert_close(
        transform_points(camera, centres[:, None]), torch.zeros(7, 1, 3).double(), rtol=0, atol=1e-12
    )


def test_fov_round_trip_and_its_order():
    """Vertical first, with the image's height; 90 degrees is a focal length of half the size."""
    fov = torch.rand(2, 5, 2, dtype=torch.float64) * 3 + 0.05
    intrinsics = fov_to_intrinsics(fov, (48, 64))
    assert intrinsics.shape == (2, 5, 3, 3)
    torch.testing.assert_close(intrinsics_to_fov(intrinsics, (48, 64)), fov, rtol=0, atol=1e-12)
    right_angles = fov_to_intrinsics(torch.tensor([math.pi / 2, math.pi / 3], dtype=torch.float64), (48, 64))
    f_x = 32 / math.tan(math.pi / 6)
    expected = torch.tensor([[f_x, 0, 32], [0, 24, 24], [0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(right_angles, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_field_of_view_gives_a_finite_focal_length(dtype):
    fov = torch.zeros(3, 2, dtype=dtype, requires_grad=True)
    intrinsics = fov_to_intrinsics(fov, (480, 640))
    assert intrinsics.isfinite().all()
    torch.testing.assert_close(intrinsics[0, 1, 1].item(), 480e6, rtol=1e-3, atol=0)
    intrinsics.sum().backward()
    assert fov.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_focal_length_has_a_field_of_view_and_a_gradient(dtype):
    focal = torch.tensor([-1e6, -30.0, 0.0, 1e-30, 30.0, 1e6, torch.inf], dtype=dtype)
    intrinsics = torch.diag_embed(torch.stack([focal, focal, torch.ones_like(focal)], dim=-1)).requires_grad_()
    fov = intrinsics_to_fov(intrinsics, (48, 64))
    assert (fov.diff(dim=0) <= 0).all()
    assert fov[2].tolist() == pytest.approx([math.pi, math.pi])
    fov.sum().backward()
    assert intrinsics.grad.isfinite().all()


def test_gradchecks():
    transform = random_rigid(2).requires_grad_()
    fov = (torch.rand(3, 2, dtype=torch.float64) + 0.2).requires_grad_()
    torch.autograd.gradcheck(invert_rigid, (transform,))
    torch.autograd.gradcheck(lambda x: intrinsics_to_fov(fov_to_intrinsics(x, (4, 6)) * 1.5, (4, 6)), (fov,))


@pytest.mark.usefixtures("unchecked")
def test_matrices_of_four_rows_are_refused():
    with pytest.raises(ValueError, match=r"^transform must have shape \(\.\.\., 3, 4\), got \(2, 4, 4\)$"):
        invert_rigid(torch.eye(4).expand(2, 4, 4))


def test_more_than_half_a_turn_of_view_mirrors_as_the_formula_says():
    fov = torch.tensor([3.5, 4.0], dtype=torch.float64)
    focal = fov_to_intrinsics(fov, (48, 64))
    assert focal[1, 1].item() == pytest.approx(24 / math.tan(1.75), rel=1e-12)
    assert focal[0, 0].item() == pytest.approx(32 / math.tan(2.0), rel=1e-12)
    torch.testing.assert_close(intrinsics_to_fov(focal, (48, 64)), fov, rtol=0, atol=1e-12)
