import pytest
import torch

from geomtx.geometry import quat_to_matrix, transform_points
from geomtx.geometry.camera_fit import fit_focal, fit_pose

FOCALS = torch.tensor([12.0, 20.0, 31.0])


def see(points):
    """A random camera and where it sees points at z around 0 (N, 2), relative to the principal point."""
    rotation = quat_to_matrix(torch.randn(4, dtype=torch.float64))
    shift = -rotation @ points.mean(0) + torch.tensor([0.1, -0.2, 5.0], dtype=torch.float64)
    pose = torch.cat([rotation, shift[:, None]], dim=1)
    seen = transform_points(pose, points)
    assert seen[:, 2].min() > 0
    return pose, FOCALS[1] * seen[:, :2] / seen[:, 2:]


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("num", [6, 50, 20_000])
def test_the_pose_of_exact_points(flat, num):
    points = 2 * torch.rand(num, 3, dtype=torch.float64) - 1
    if flat:
        points[:, 2] = 0.3 * points[:, 0]
    pose, coords = see(points)
    found = fit_pose(points, coords, FOCALS[1:2].double())
    torch.testing.assert_close(found.cam_from_world, pose, rtol=0, atol=1e-6)
    assert found.num_inliers == num


def test_wrong_observations_are_left_out():
    points = 2 * torch.rand(200, 3, dtype=torch.float64) - 1
    pose, coords = see(points)
    coords[:60] += 3 * torch.randn(60, 2, dtype=torch.float64)
    found = fit_pose(points, coords, FOCALS.double(), num_samples=100, tolerance_px=0.05)
    torch.testing.assert_close(found.cam_from_world, pose, rtol=0, atol=0.05)
    assert found.focal == FOCALS[1]
    assert 140 <= found.num_inliers < 160


def test_the_world_may_lie_anywhere():
    points = 2 * torch.rand(100, 3, dtype=torch.float64) - 1 + 1000
    pose, coords = see(points)
    found = fit_pose(points, coords, FOCALS[1:2].double())
    torch.testing.assert_close(found.cam_from_world[:, :3], pose[:, :3], rtol=0, atol=1e-6)


def test_too_few_points():
    with pytest.raises(ValueError, match="points must be at least 4, got 3"):
        fit_pose(torch.rand(3, 3), torch.rand(3, 2), FOCALS)


@pytest.mark.parametrize("method", ["weiszfeld", "median"])
def test_the_focal_length_of_points_with_outliers(method):
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(17.0), indexing="ij")
    depth = 2 + torch.rand(3, 12, 17)
    rays = torch.stack([(x - 8.5) / 20, (y - 6) / 20, torch.ones_like(x)], dim=-1)
    points = depth[..., None] * rays
    points[0, 3, :5] += 0.3
    points[1, 0, 0, 2] = 0  # no image
    torch.testing.assert_close(fit_focal(points, method=method), torch.full((3,), 20.0), rtol=2e-3, atol=0)


@pytest.mark.parametrize("depth", [1e-4, -1e-3, 0.05])
def test_points_close_to_the_plane_of_the_camera_do_not_pull_the_focal_length_down(depth):
    """A hundredth of all pixels would otherwise: their images are far away, and weigh by that."""
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(32.0), indexing="ij")
    points = (2 + torch.rand(24, 32, 1)) * torch.stack([(x - 16) / 20, (y - 12) / 20, torch.ones_like(x)], dim=-1)
    wrong = torch.rand(24, 32) < 0.01
    wrong[3, 4] = True
    points[wrong] = torch.tensor([1.0, -2.0, depth])
    torch.testing.assert_close(fit_focal(points), torch.tensor(20.0), rtol=0.02, atol=0)
