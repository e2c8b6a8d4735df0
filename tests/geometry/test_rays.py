import pytest
import torch

import geomtx
from geometry.random_cameras import IMAGE_HW, random_intrinsics, random_rigid


def test_rays_go_through_the_unprojected_points_of_their_pixels():
    cameras, intrinsics = random_rigid(2, 3), random_intrinsics(2, 3)
    intrinsics[..., 0, 1] = 3.0  # skew
    for pixel_center in (0.0, 0.5):
        depth = 0.5 + 3 * torch.rand(2, 3, *IMAGE_HW, dtype=torch.float64)
        points = geomtx.unproject(depth, intrinsics, cameras, pixel_center=pixel_center)
        rays = geomtx.plucker_rays(cameras, intrinsics, IMAGE_HW, pixel_center=pixel_center)
        moment, direction = rays.movedim(-3, -1).split(3, dim=-1)
        # x is on the line of (m, d) where x x d = m; any point of a line has the same moment.
        torch.testing.assert_close(torch.linalg.cross(points, direction), moment)
        center = geomtx.invert_rigid(cameras)[..., None, None, :, 3]
        assert (((points - center) * direction).sum(-1) > 0).all()  # ahead, not behind
        torch.testing.assert_close(direction.norm(dim=-1), torch.ones_like(depth))
        torch.testing.assert_close((moment * direction).sum(-1), torch.zeros_like(depth))


def test_moving_the_camera_along_a_ray_does_not_change_the_ray():
    camera, intrinsics = random_rigid(1), random_intrinsics(1)
    before = geomtx.plucker_rays(camera, intrinsics, IMAGE_HW)
    row, column = 7, 50
    world_from_cam = geomtx.invert_rigid(camera)
    world_from_cam[..., 3] += 2.5 * before[:, 3:, row, column]
    after = geomtx.plucker_rays(geomtx.invert_rigid(world_from_cam), intrinsics, IMAGE_HW)
    torch.testing.assert_close(after[..., row, column], before[..., row, column])
    assert not torch.allclose(after[..., row, column + 1], before[..., row, column + 1])


def test_the_pixel_whose_coordinates_are_the_principal_point_looks_ahead():
    intrinsics = torch.tensor([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]])
    rays = geomtx.plucker_rays(torch.eye(3, 4), intrinsics, IMAGE_HW)
    assert rays.shape == (6, *IMAGE_HW)
    assert rays[:, 24, 32].tolist() == [0, 0, 0, 0, 0, 1]
    torch.testing.assert_close(rays[3:, 24, 33], torch.tensor([0.02, 0, 1]) / (1 + 0.02**2) ** 0.5)
    intrinsics[:2, 2] += 0.5
    torch.testing.assert_close(geomtx.plucker_rays(torch.eye(3, 4), intrinsics, IMAGE_HW, pixel_center=0.5), rays)


def test_the_order_of_the_channels():
    cameras, intrinsics = random_rigid(2), random_intrinsics(2)
    rays = geomtx.plucker_rays(cameras, intrinsics, (4, 5))
    other = geomtx.plucker_rays(cameras, intrinsics, (4, 5), order="direction_moment")
    assert torch.equal(rays, other.roll(3, dims=-3))
    assert torch.equal(rays[:, 3:], other[:, :3])


def test_one_pose_and_several_intrinsics_broadcast():
    camera, intrinsics = random_rigid(1), random_intrinsics(3)
    rays = geomtx.plucker_rays(camera, intrinsics, (4, 5))
    assert torch.equal(rays, geomtx.plucker_rays(camera.expand(3, -1, -1), intrinsics, (4, 5)))


def test_half_precision_tells_pixels_apart():
    intrinsics = torch.tensor([[512.0, 0, 256], [0, 512, 8], [0, 0, 1]])  # exact in bfloat16
    rays = geomtx.plucker_rays(torch.eye(3, 4).bfloat16(), intrinsics.bfloat16(), (2, 520))
    assert rays.dtype == torch.float32
    torch.testing.assert_close(rays, geomtx.plucker_rays(torch.eye(3, 4), intrinsics, (2, 520)))
    mixed = geomtx.plucker_rays(torch.eye(3, 4).double(), intrinsics, (2, 520))
    assert mixed.dtype == torch.float64


def test_gradients():
    cameras, intrinsics = random_rigid(2).requires_grad_(), random_intrinsics(2).requires_grad_()
    assert torch.autograd.gradcheck(lambda c, k: geomtx.plucker_rays(c, k, (3, 4)), (cameras, intrinsics))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cam_from_world": torch.eye(4)}, r"^cam_from_world must have shape \(\.\.\., 3, 4\), got \(4, 4\)$"),
        ({"intrinsics": torch.eye(4)}, r"^intrinsics must have shape \(\.\.\., 3, 3\), got \(4, 4\)$"),
        ({"image_hw": (0, 4)}, r"^image height must be a whole number, at least 1, got 0$"),
        ({"order": "dm"}, r"^order must be one of 'moment_direction', 'direction_moment', got 'dm'$"),
    ],
)
def test_errors(changes, message):
    arguments = {"cam_from_world": torch.eye(3, 4), "intrinsics": torch.eye(3), "image_hw": (3, 4), **changes}
    with pytest.raises(ValueError, match=message):
        geomtx.plucker_rays(**arguments)
