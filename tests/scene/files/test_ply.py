from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

import geomtx
from geomtx.scene import PointCloud
from geomtx.scene.files import write_cameras, write_ply
from scene.files.ply_parser import parse_ply


def test_points_land_on_the_pixels_they_come_from(scene: geomtx.Scene, tmp_path: Path) -> None:
    """By the files alone: PLY and cameras.json, against the photos' pixels."""
    write_ply(tmp_path / "points.ply", scene.points(0))
    write_cameras(tmp_path / "cameras.json", scene)
    _, points = parse_ply(tmp_path / "points.ply")
    for index, view in enumerate(json.loads((tmp_path / "cameras.json").read_text())["views"]):
        own = points["view"] == index
        xyz = np.stack([points[name][own] for name in "xyz"], axis=-1)
        pose, k = np.array(view["cam_from_world"]), np.array(view["intrinsics"])
        rays = (xyz @ pose[:, :3].T + pose[:, 3]) @ k.T
        pixels = rays[:, :2] / rays[:, 2:]
        columns, rows = np.meshgrid(np.arange(view["width"]), np.arange(view["height"]))
        assert np.abs(pixels - np.stack([columns.ravel(), rows.ravel()], axis=-1)).max() < 0.01
        rgb = np.stack([points[name][own] for name in ("red", "green", "blue")], axis=-1)
        photo = scene.images[index].permute(1, 2, 0).reshape(-1, 3).numpy()
        np.testing.assert_array_equal(rgb, photo)


def test_every_property_survives(scene: geomtx.Scene, tmp_path: Path) -> None:
    cloud = scene.points(50, max_points=300)
    write_ply(tmp_path / "points.ply", cloud, units="metres", notice="two\nlines, é")
    comments, points = parse_ply(tmp_path / "points.ply")
    np.testing.assert_array_equal(points["confidence"].astype(np.float32), cloud.confidence.numpy())
    np.testing.assert_array_equal(points["view"], cloud.view.numpy())
    assert "units: metres" in comments
    assert "notice: two lines, ?" in comments
    assert any(comment.startswith("frame: first camera, OpenCV axes") for comment in comments)


def test_no_points(tmp_path: Path) -> None:
    empty = PointCloud(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.uint8), torch.zeros(0), torch.zeros(0).long())
    write_ply(tmp_path / "points.ply", empty)
    assert len(parse_ply(tmp_path / "points.ply")[1]["x"]) == 0


def test_the_header_says_what_the_world_is(scene: geomtx.Scene, tmp_path: Path) -> None:
    cloud = scene.points(max_points=3)
    write_ply(tmp_path / "own.ply", cloud, world=scene.world)
    write_ply(tmp_path / "known.ply", cloud, world="that of the known poses")
    assert "frame: first camera, OpenCV axes (x right, y down, z forward)" in parse_ply(tmp_path / "own.ply")[0]
    assert "frame: that of the known poses" in parse_ply(tmp_path / "known.ply")[0]
