from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import geomtx
from geometry.random_cameras import random_rigid
from geomtx.files import is_own
from geomtx.scene import PointCloud
from geomtx.scene.files import write_glb
from geomtx.types import Predictions
from scene.files.glb_parser import parse_glb


def some_points(count: int, low: int = 0) -> PointCloud:
    generator = torch.Generator().manual_seed(count)
    return PointCloud(
        xyz=torch.randn(count, 3, generator=generator),
        rgb=torch.randint(low, 256, (count, 3), generator=generator, dtype=torch.uint8),
        confidence=torch.ones(count),
        view=torch.zeros(count, dtype=torch.long),
    )


def values_of(path: Path, mesh: str, attribute: str) -> np.ndarray:
    content, values = parse_glb(path)
    (found,) = (each for each in content["meshes"] if each["name"] == mesh)
    return values[found["primitives"][0]["attributes"][attribute]]


def test_points_keep_their_place_and_colour(scene: geomtx.Scene, tmp_path: Path) -> None:
    cloud = scene.points(30)
    scene = dataclasses.replace(scene.rescale(2, units="metres"), notice="Achtung, é")
    write_glb(tmp_path / "scene.glb", scene, cloud)
    content, _ = parse_glb(tmp_path / "scene.glb")
    (told,) = content["scenes"]
    assert (told["extras"]["units"], told["extras"]["notice"]) == ("metres", "Achtung, é")
    assert told["extras"]["views"] == list(scene.names)
    matrix = np.array(told["extras"]["gltf_from_world"])
    xyz = values_of(tmp_path / "scene.glb", "points", "POSITION")
    np.testing.assert_allclose(xyz, cloud.xyz.numpy() @ matrix[:3, :3].T + matrix[:3, 3], atol=1e-5)
    linear = values_of(tmp_path / "scene.glb", "points", "COLOR_0").astype(float)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    np.testing.assert_array_equal((srgb * 255).round(), cloud.rgb.numpy())
    assert content["materials"][0]["extensions"] == {"KHR_materials_unlit": {}}
    modes = {mesh["name"]: mesh["primitives"][0]["mode"] for mesh in content["meshes"]}
    assert modes == {"points": 0, "cameras": 1}
    assert is_own(tmp_path / "scene.glb")


def test_the_first_camera_is_upright_at_the_origin_in_any_world(scene: geomtx.Scene, tmp_path: Path) -> None:
    """Looking along -z with y up, wherever the scene's world is."""
    torch.manual_seed(3)
    poses = random_rigid(4)
    cameras = scene.predictions.cameras._replace(cam_from_world=poses)
    moved = dataclasses.replace(scene, predictions=scene.predictions._replace(cameras=cameras))
    cloud = some_points(50)
    write_glb(tmp_path / "scene.glb", moved, cloud)
    xyz = values_of(tmp_path / "scene.glb", "points", "POSITION")
    in_camera = cloud.xyz.double() @ poses[0, :, :3].T + poses[0, :, 3]
    np.testing.assert_allclose(xyz, in_camera.numpy() * [1, -1, -1], atol=1e-5)
    frusta = values_of(tmp_path / "scene.glb", "cameras", "POSITION").reshape(4, 6, 3)
    apex, corners, tip = frusta[0, 0], frusta[0, 1:5], frusta[0, 5]
    np.testing.assert_allclose(apex, 0, atol=1e-6)
    low, high = np.percentile(xyz, [5, 95], axis=0)
    np.testing.assert_allclose(corners[:, 2], -0.03 * np.linalg.norm(high - low), rtol=1e-4)
    assert corners[0, 0] < 0 < corners[1, 0]  # upper left, upper right
    assert corners[0, 1] > 0 > corners[2, 1]
    assert tip[1] > corners[0, 1]
    # The photo's outline: a corner of the image is a corner of the frustum.
    k = scene.cameras.intrinsics[0]
    np.testing.assert_allclose(corners[0, 0] / -corners[0, 2], (-0.5 - k[0, 2]) / k[0, 0], rtol=1e-4)


def test_a_large_cloud_is_sampled_evenly_and_the_same_every_time(scene: geomtx.Scene, tmp_path: Path) -> None:
    cloud = some_points(20_000)
    for name in ("a.glb", "b.glb"):
        write_glb(tmp_path / name, scene, cloud, max_points=5000)
    assert (tmp_path / "a.glb").read_bytes() == (tmp_path / "b.glb").read_bytes()
    xyz = values_of(tmp_path / "a.glb", "points", "POSITION")
    assert len(np.unique(xyz, axis=0)) == len(xyz) == 5000
    assert np.abs(xyz.mean(axis=0) - cloud.xyz.numpy().mean(axis=0) * [1, -1, -1]).max() < 0.06
    with pytest.raises(ValueError, match="max_points must be at least 1, got 0"):
        write_glb(tmp_path / "c.glb", scene, cloud, max_points=0)


def test_what_is_not_finite_is_left_out(scene: geomtx.Scene, tmp_path: Path) -> None:
    cameras = scene.predictions.cameras
    poses = cameras.cam_from_world.clone()
    poses[0] = torch.nan
    broken = scene.predictions._replace(cameras=cameras._replace(cam_from_world=poses))
    cloud = some_points(10)
    cloud.xyz[3] = torch.nan
    write_glb(tmp_path / "scene.glb", dataclasses.replace(scene, predictions=broken), cloud)
    assert len(values_of(tmp_path / "scene.glb", "points", "POSITION")) == 9
    frusta = values_of(tmp_path / "scene.glb", "cameras", "POSITION").reshape(3, 6, 3)
    np.testing.assert_allclose(frusta[0, 0], 0, atol=1e-6)  # the first one that is finite is upright at the origin
    with pytest.raises(ValueError, match="no finite points: a GLB file can't hold the cloud"):
        write_glb(tmp_path / "none.glb", scene, cloud._replace(xyz=torch.full((10, 3), torch.inf)))
    assert not (tmp_path / "none.glb").exists()


def test_points_alone_and_a_single_point(scene: geomtx.Scene, tmp_path: Path) -> None:
    bare = dataclasses.replace(scene, predictions=Predictions(points=scene.predictions.points))
    write_glb(tmp_path / "scene.glb", bare, some_points(1))
    content, _ = parse_glb(tmp_path / "scene.glb")
    assert [mesh["name"] for mesh in content["meshes"]] == ["points"]
    assert content["scenes"][0]["extras"]["gltf_from_world"] == np.diag([1, -1, -1, 1]).tolist()
