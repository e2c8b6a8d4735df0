from __future__ import annotations

import numpy as np

from geomtx.report.render import Viewpoint, overview, render_points

FRONT = Viewpoint(np.eye(3, 4), np.array([[100.0, 0, 50], [0, 100, 40], [0, 0, 1]]))


def test_a_point_is_drawn_where_it_projects_and_the_nearer_one_wins() -> None:
    xyz = np.array([[0.1, -0.1, 2.0], [0.2, -0.2, 4.0], [-0.2, 0.1, 1.0], [0, 0, -1.0]])
    rgb = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], np.uint8)
    image = np.array(render_points(xyz, rgb, FRONT, (100, 80), radius=1.0, background=(255, 255, 255)))
    red, blue = image[35, 55].astype(int), image[50, 30].astype(int)
    assert red[0] > 60 > red[1] + red[2]
    assert blue[2] > 60 > blue[0] + blue[1]
    drawn = np.argwhere((image != 255).any(axis=-1))
    assert len(drawn) < 40  # the point behind the camera is nowhere
    assert not (image[..., 1] > image[..., 0]).any() or not (image[..., 1] > image[..., 2]).any()


def test_no_points_give_the_background() -> None:
    image = render_points(np.empty((0, 3)), np.empty((0, 3), np.uint8), FRONT, (20, 10), background=(1, 2, 3))
    assert (np.array(image) == (1, 2, 3)).all()


def test_the_overview_has_nearly_all_points_and_the_cameras_in_the_picture() -> None:
    generator = np.random.default_rng(1)
    points = generator.normal(size=(2000, 3)) * [2, 1, 1] + [0, 0, 6]
    poses = np.stack([np.eye(3, 4)] * 3)
    poses[:, 0, 3] = [-1, 0, 1]
    centers = -poses[:, :, 3]
    viewpoint = overview(points, poses, (300, 200), also=centers)
    pixels, depth = viewpoint.project(points)
    inside = (depth > 0) & (pixels >= 0).all(axis=1) & (pixels[:, 0] < 300) & (pixels[:, 1] < 200)
    assert inside.mean() > 0.9
    pixels, depth = viewpoint.project(centers)
    assert (depth > 0).all()
    assert ((pixels > 0) & (pixels < [300, 200])).all()
    above, _ = viewpoint.project(np.array([[0.0, -1, 6], [0, 1, 6]]))
    assert above[0, 1] < above[1, 1]  # up stays up
