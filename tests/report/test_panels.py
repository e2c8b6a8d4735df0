from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import geomtx
from geomtx.geometry import project
from geomtx.report import panels
from geomtx.report.panels import draw_cloud, draw_plan, sample_points
from geomtx.scene import PointCloud
from geomtx.scene.files.frusta import camera_centers, frustum_corners


def blank(width: float = 4, height: float = 3) -> Axes:
    return Figure((width, height)).add_axes((0, 0, 1, 1))


def test_frusta_project_to_the_image_corners(scene: geomtx.Scene) -> None:
    assert scene.cameras is not None
    poses, k = (part.double() for part in scene.cameras)
    corners = frustum_corners(poses.numpy(), k.numpy(), [(84, 112)] * 4, 0.3)
    pixels, depth = project(torch.from_numpy(corners), k, poses)
    torch.testing.assert_close(depth, torch.full_like(depth, 0.3))
    expected = torch.tensor([[-0.5, -0.5], [111.5, -0.5], [111.5, 83.5], [-0.5, 83.5]]).double()
    torch.testing.assert_close(pixels, expected.expand(4, -1, -1), atol=1e-4, rtol=0)
    centers = torch.from_numpy(camera_centers(poses.numpy()))
    at_camera = (poses[:, :, :3] @ centers[..., None])[..., 0] + poses[:, :, 3]
    torch.testing.assert_close(at_camera, torch.zeros_like(at_camera))


def test_few_points_far_away_are_left_out_and_counted(scene: geomtx.Scene) -> None:
    cloud = scene.points()
    far = PointCloud(*(part.clone() for part in cloud))
    far.xyz[:3] = 1e4
    points = sample_points(scene, far)
    assert points.num_far == 3
    assert len(points.xyz) == len(points.rgb) == len(points.size) == len(cloud.xyz) - 3
    assert sample_points(scene, PointCloud(*(part[:1] for part in cloud))).num_far == 0


def test_a_point_is_as_wide_as_its_pixel(scene: geomtx.Scene) -> None:
    """A frontal wall at depth d, seen with focal length f: its points are d / f apart."""
    assert scene.predictions.cameras is not None
    focal = scene.predictions.cameras.intrinsics[0, 0, 0].item()
    pose = scene.predictions.cameras.cam_from_world[0].double()
    at_depth_three = (torch.tensor([[0.0, 0, 3]]).double() - pose[:, 3]) @ pose[:, :3]
    size = panels.point_widths(
        dataclasses.replace(scene, masks=torch.zeros_like(scene.masks)), at_depth_three.numpy(), np.array([0])
    )
    assert size == pytest.approx(3 / focal, rel=1e-4)


def test_cloud_and_cameras_lie_in_the_frame(scene: geomtx.Scene) -> None:
    points = sample_points(scene, scene.points())
    axes = blank()
    draw_cloud(axes, scene, points)
    viewpoint = panels.cloud_viewpoint(scene, points, (400, 300))
    pixels, depth = viewpoint.project(points.xyz)
    assert (depth > 0).all()
    assert ((pixels > 0) & (pixels < [399, 299])).all()
    assert len(axes.lines) == 5 * len(scene)  # four edges and a frame each
    axes = blank()
    draw_plan(axes, scene, points, [0])
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    x, z = points.xyz[:, 0], points.xyz[:, 2]
    assert left < x.min() < x.max() < right
    assert low < z.min() < z.max() < high
    assert right - left == pytest.approx((high - low) * 4 / 3)


def test_a_camera_far_from_the_points_does_not_shrink_them(scene: geomtx.Scene) -> None:
    assert scene.predictions.cameras is not None
    points = sample_points(scene, scene.points())
    poses = scene.predictions.cameras.cam_from_world.clone()
    poses[3, :, 3] = 1e5
    cameras = scene.predictions.cameras._replace(cam_from_world=poses)
    lost = dataclasses.replace(scene, predictions=scene.predictions._replace(cameras=cameras))
    axes = blank()
    draw_cloud(axes, lost, points._replace(size=0 * points.size))
    assert len(axes.lines) <= 5 * 3


def test_the_plan_joins_predicted_and_true_cameras(scene: geomtx.Scene) -> None:
    points = sample_points(scene, None)
    alone, joined = blank(), blank()
    draw_plan(alone, scene, points, [])
    draw_plan(joined, scene, points, [], truth=scene.rescale(1.5))
    assert len(joined.lines) == len(alone.lines) + 2 * len(scene)  # a dot for the camera, a line to it


def test_no_finite_camera_and_no_point(scene: geomtx.Scene) -> None:
    assert scene.predictions.cameras is not None
    cameras = scene.predictions.cameras._replace(cam_from_world=scene.predictions.cameras.cam_from_world * torch.nan)
    broken = dataclasses.replace(scene, predictions=scene.predictions._replace(cameras=cameras))
    axes = blank()
    draw_plan(axes, broken, sample_points(broken, None), [0])
    assert [text.get_text() for text in axes.texts] == ["no finite camera"]
