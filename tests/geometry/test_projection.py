import pytest
import torch
from torch import Tensor

from geometry.random_cameras import random_intrinsics, random_rigid
from geomtx import project, unproject

H, W = 5, 7


def skewed_intrinsics(*shape: int) -> Tensor:
    intrinsics = random_intrinsics(*shape)
    intrinsics[..., 0, 1] = torch.randn(shape) * 4
    intrinsics[..., :2, 2] += torch.randn(*shape, 2) * 3
    return intrinsics


def random_depth(*shape: int) -> Tensor:
    return torch.rand(*shape, H, W, dtype=torch.float64) * 5 + 0.1


def pixel_grid(pixel_center: float) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    return torch.stack([columns, rows], dim=-1).flatten(0, 1).double() + pixel_center


@pytest.mark.parametrize("pixel_center", [0.0, 0.5])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("in_world", [True, False])
def test_projecting_gives_pixels_and_depth_back(shape, pixel_center, in_world):
    depth, intrinsics = random_depth(*shape), skewed_intrinsics(*shape)
    camera = random_rigid(*shape) if in_world else None
    points = unproject(depth, intrinsics, camera, pixel_center=pixel_center)
    assert points.shape == (*shape, H, W, 3)
    coords, z = project(points.flatten(-3, -2), intrinsics, camera)
    torch.testing.assert_close(coords, pixel_grid(pixel_center).expand(*shape, -1, -1), rtol=0, atol=1e-10)
    torch.testing.assert_close(z, depth.flatten(-2), rtol=0, atol=1e-12)


def test_every_point_solves_the_camera_equation():
    """K (R x + t) = depth (u, v, 1), with a solver instead of a closed form."""
    depth, intrinsics, camera = random_depth(), skewed_intrinsics(), random_rigid()
    points = unproject(depth, intrinsics, camera)
    for row in range(H):
        for column in range(W):
            pixel = torch.tensor([column, row, 1.0], dtype=torch.float64)
            in_camera = torch.linalg.solve(intrinsics, depth[row, column] * pixel)
            expected = torch.linalg.solve(camera[:, :3], in_camera - camera[:, 3])
            torch.testing.assert_close(points[row, column], expected, rtol=0, atol=1e-12)


def test_pixel_centres_are_integers_unless_asked_otherwise():
    depth, intrinsics = torch.ones(H, W, dtype=torch.float64), random_intrinsics()
    moved = intrinsics.clone()
    moved[:2, 2] += 0.5
    centred = unproject(depth, intrinsics)
    torch.testing.assert_close(unproject(depth, moved, pixel_center=0.5), centred, rtol=0, atol=1e-13)
    assert not torch.allclose(unproject(depth, intrinsics, pixel_center=0.5), centred, atol=1e-4)


def test_points_scale_with_depth_from_the_camera_centre():
    depth, intrinsics, camera = random_depth(2), skewed_intrinsics(2), random_rigid(2)
    centre = -(camera[..., :3].mT @ camera[..., 3:])[..., 0]
    near, far = unproject(depth, intrinsics, camera), unproject(3 * depth, intrinsics, camera)
    torch.testing.assert_close(far - centre[:, None, None], 3 * (near - centre[:, None, None]), rtol=0, atol=1e-11)


def test_depth_zero_unprojects_to_the_camera_centre():
    camera = random_rigid()
    points = unproject(torch.zeros(H, W).double(), random_intrinsics(), camera)
    centre = -(camera[:, :3].T @ camera[:, 3])
    torch.testing.assert_close(points, centre.expand(H, W, 3), rtol=0, atol=1e-12)


def test_points_behind_the_camera_tell_by_their_depth():
    intrinsics = random_intrinsics()
    in_front = torch.randn(9, 3, dtype=torch.float64).abs() + 0.1
    coords, z = project(torch.cat([in_front, -in_front]), intrinsics)
    assert (z[:9] > 0).all()
    assert (z[9:] < 0).all()
    torch.testing.assert_close(coords[:9], coords[9:], rtol=0, atol=1e-10)  # the mirrored pinhole


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_on_the_camera_plane_are_finite(dtype):
    points = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0], [1.0, 2.0, 3.0]], dtype=dtype, requires_grad=True)
    coords, z = project(points, random_intrinsics().to(dtype))
    assert z.tolist() == [0, 0, 3]
    assert coords.isfinite().all()
    coords.sum().backward()
    assert points.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_gradients_are_finite_however_near_the_camera_plane(dtype, scale):
    tiny = torch.finfo(dtype).tiny
    depth = torch.tensor([tiny**power * sign for power in (1.0, 0.75, 0.5, 0.25, 0.1) for sign in (1, -1)], dtype=dtype)
    points = torch.stack([torch.full_like(depth, scale), torch.full_like(depth, -2 * scale), depth], dim=-1)
    points.requires_grad_()
    coords, _ = project(points, 100 * random_intrinsics().to(dtype))
    assert coords.isfinite().all()
    coords.sum().backward()
    assert points.grad.isfinite().all()


@pytest.mark.parametrize("depth", [1e-20, -1e-20, 1e-4])
def test_points_in_front_keep_their_quotient_however_near(depth):
    coords, _ = project(torch.tensor([[2 * depth, depth, depth]]), torch.eye(3))
    torch.testing.assert_close(coords, torch.tensor([[2.0, 1.0]]))


def test_gradcheck_of_unprojection():
    inputs = (random_depth(2)[:, :2, :3], skewed_intrinsics(2), random_rigid(2))
    torch.autograd.gradcheck(unproject, tuple(x.contiguous().requires_grad_() for x in inputs))


def test_gradcheck_of_projection():
    camera, intrinsics = random_rigid(2), skewed_intrinsics(2)
    points = unproject(random_depth(2)[:, :2, :3], intrinsics, camera).flatten(1, 2)
    torch.autograd.gradcheck(project, tuple(x.detach().requires_grad_() for x in (points, intrinsics, camera)))


@pytest.mark.usefixtures("unchecked")
def test_wrong_shapes():
    with pytest.raises(ValueError, match=r"^intrinsics must have shape \(\.\.\., 3, 3\), got \(3, 4\)$"):
        unproject(torch.ones(H, W), torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"^intrinsics must "):
        project(torch.ones(4, 3), torch.eye(4))
    with pytest.raises(ValueError, match=r"^cam_from_world must "):
        unproject(torch.ones(H, W), torch.eye(3), torch.eye(4))
    with pytest.raises(ValueError, match=r"^cam_from_world must "):
        project(torch.ones(4, 3), torch.eye(3), torch.eye(4))
    with pytest.raises(ValueError, match=r"^depth must "):
        unproject(torch.ones(4), torch.eye(3))
    with pytest.raises(ValueError, match=r"^points_world must "):
        project(torch.ones(4, 2), torch.eye(3))


@pytest.mark.usefixtures("unchecked")
def test_leading_axes_that_do_not_broadcast_are_named() -> None:
    depth, intrinsics, cameras = torch.ones(2, 4, 5), torch.eye(3).expand(3, 3, 3), torch.eye(3, 4).expand(1, 3, 4)
    message = (
        r"^leading axes of depth, intrinsics, cam_from_world must be the same or 1, got \(2,\) and \(3,\) and \(1,\)$"
    )
    with pytest.raises(ValueError, match=message):
        unproject(depth, intrinsics, cameras)
    with pytest.raises(ValueError, match=r"^leading axes of points_world, intrinsics must be the same or 1"):
        project(torch.ones(7, 2, 6, 3), torch.eye(3).expand(4, 3, 3))
    assert unproject(depth, intrinsics[:1], cameras[0]).shape == (2, 4, 5, 3)
