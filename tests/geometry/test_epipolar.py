import pytest
import torch
from torch import Tensor

from geometry.random_cameras import random_intrinsics, random_rigid
from geomtx import invert_rigid, project
from geomtx.geometry import compose_rigid, fundamental_matrix, sampson_distance


def two_views(*shape: int, points: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels of the same points in two cameras with skew, and the fundamental matrix."""
    cameras, intrinsics = random_rigid(2, *shape), random_intrinsics(2, *shape)
    intrinsics[..., 0, 1] = torch.randn(2, *shape) * 4
    x = torch.randn(*shape, points, 3, dtype=torch.float64)
    a, b = (project(x, k, camera)[0] for k, camera in zip(intrinsics, cameras, strict=True))
    return a, b, fundamental_matrix(*intrinsics, compose_rigid(cameras[1], invert_rigid(cameras[0])))


def homogeneous(coords: Tensor) -> Tensor:
    return torch.cat([coords, torch.ones_like(coords[..., :1])], dim=-1)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_the_same_point_satisfies_the_matrix(shape):
    a, b, f = two_views(*shape)
    scale = homogeneous(a).norm(dim=-1) * homogeneous(b).norm(dim=-1) * f.flatten(-2).norm(dim=-1)[..., None]
    residual = torch.einsum("...ni,...ij,...nj->...n", homogeneous(b), f, homogeneous(a))
    assert residual.shape == (*shape, 6)
    assert (residual / scale).abs().max() < 1e-12


def test_matrix_by_general_inverses():
    k, (_, b_from_a) = random_intrinsics(2), random_rigid(2)
    x, y, z = b_from_a[:, 3].tolist()
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    expected = k[1].inverse().T @ cross @ b_from_a[:, :3] @ k[0].inverse()
    torch.testing.assert_close(fundamental_matrix(k[0], k[1], b_from_a), expected, rtol=1e-10, atol=1e-13)


def test_distance_of_the_same_point_is_zero_in_any_scale_of_the_matrix():
    a, b, f = two_views(4)
    assert sampson_distance(a, b, f).max() < 1e-6
    moved = b + torch.randn_like(b)
    torch.testing.assert_close(sampson_distance(a, moved, -700 * f), sampson_distance(a, moved, f))


def test_distance_by_its_gradient():
    """|r| / |dr|, the gradient by autograd."""
    a, b, f = two_views(points=1)
    a, b = (a + 3).requires_grad_(), (b - 2).requires_grad_()
    residual = homogeneous(b)[0] @ f @ homogeneous(a)[0]
    slope = torch.cat(torch.autograd.grad(residual, (a, b)))
    torch.testing.assert_close(sampson_distance(a, b, f)[0], residual.abs() / slope.norm())


def test_distance_is_in_pixels():
    """Rectified cameras: rows differ by d, half of which each pixel could take."""
    k = random_intrinsics()
    sideways = torch.eye(3, 4, dtype=torch.float64)
    sideways[0, 3] = 1.0
    a = torch.rand(5, 2, dtype=torch.float64) * 40
    distance = sampson_distance(a, a + torch.tensor([7.0, 3.0]), fundamental_matrix(k, k, sideways))
    torch.testing.assert_close(distance, torch.full((5,), 3 / 2**0.5, dtype=torch.float64))


def test_no_baseline_has_no_distance_and_no_gradient():
    a, b = torch.randn(2, 5, 2, dtype=torch.float64, requires_grad=True)
    f = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    distance = sampson_distance(a, b, f)
    distance.sum().backward()
    assert not distance.any()
    assert f.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_near_the_epipoles(dtype):
    """As far from them as one likes, with a matrix as small as one likes."""
    away = torch.cat([torch.zeros(1), 10.0 ** torch.arange(-30, 3)])
    offsets = torch.stack([away, -2 * away], dim=-1).to(dtype)
    forward = torch.eye(3, 4, dtype=dtype)
    forward[2, 3] = 1  # both epipoles are at (0, 0)
    f = fundamental_matrix(torch.eye(3, dtype=dtype), torch.eye(3, dtype=dtype), forward)
    for scale in (1e-25, 1.0, 1e25):
        inputs = [x.clone().requires_grad_() for x in (offsets, 3 * offsets.flip(-1), scale * f)]
        distance = sampson_distance(*inputs)
        distance.sum().backward()
        assert distance.isfinite().all()
        assert all(x.grad.isfinite().all() for x in inputs)
        torch.testing.assert_close(distance, sampson_distance(offsets, 3 * offsets.flip(-1), f))


def test_gradcheck():
    a, b, _ = two_views(points=3)
    k, camera = random_intrinsics(2), random_rigid()
    inputs = (*(x.detach().clone().requires_grad_() for x in (a + 1, b - 1, k[0], k[1], camera)),)
    torch.autograd.gradcheck(lambda a, b, ka, kb, c: sampson_distance(a, b, fundamental_matrix(ka, kb, c)), inputs)


@pytest.mark.usefixtures("unchecked")
def test_wrong_shapes():
    eye, rigid, coords = torch.eye(3), torch.eye(3, 4), torch.zeros(5, 2)
    with pytest.raises(ValueError, match=r"^intrinsics_a must have shape \(\.\.\., 3, 3\), got \(3, 4\)$"):
        fundamental_matrix(rigid, eye, rigid)
    with pytest.raises(ValueError, match=r"^intrinsics_b must "):
        fundamental_matrix(eye, rigid, rigid)
    with pytest.raises(ValueError, match=r"^b_from_a must "):
        fundamental_matrix(eye, eye, torch.eye(4))
    with pytest.raises(ValueError, match=r"^coords_a must "):
        sampson_distance(coords[0], coords, eye)
    with pytest.raises(ValueError, match=r"^coords_b must "):
        sampson_distance(coords, torch.zeros(5, 3), eye)
    with pytest.raises(ValueError, match=r"^fundamental must "):
        sampson_distance(coords, coords, rigid)
