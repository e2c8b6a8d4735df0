from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import geomtx
from geomtx.report.viewer.shown import show_scene
from geomtx.types import Cameras
from scene.exact_scenes import exact_scene
from scene.known_scene import refined, without


def test_points_are_those_of_the_scene(scene: geomtx.Scene):
    shown = show_scene(scene, max_points=10**6)
    result = shown.results["scene"]
    cloud = scene.points(30.0)
    index = result.keep(30.0, frozenset())
    assert len(index) == len(cloud.xyz)
    world = result.xyz[index] * shown.frame.unit + shown.frame.origin
    assert np.allclose(np.sort(world, axis=0), np.sort(cloud.xyz.numpy(), axis=0), atol=1e-4)
    assert 1.5 < np.linalg.norm(np.ptp(np.percentile(result.xyz, [5, 95], axis=0), axis=0)) <= 4.0


def test_points_of_hidden_views_are_left_out(scene: geomtx.Scene):
    result = show_scene(scene, max_points=10**6).results["scene"]
    kept = result.view[result.keep(0.0, frozenset({1, 2}))]
    assert np.unique(kept).tolist() == [0, 3]
    assert len(kept) == int((scene.points(0.0).view % 3 == 0).sum())


def test_large_clouds_are_thinned_the_same_way_every_time(scene: geomtx.Scene):
    first, second = (show_scene(scene, max_points=500).results["scene"] for _ in range(2))
    assert len(first.xyz) == 500
    assert np.array_equal(first.xyz, second.xyz)
    everything = show_scene(scene, max_points=10**6)
    assert everything.num_points == len(everything.results["scene"].xyz) > 500
    # Fewer points stand for more of the surface each.
    share = first.width / everything.results["scene"].width
    assert share == pytest.approx((everything.num_points / 500) ** 0.5, rel=0.1)


def test_a_world_far_from_its_origin_loses_nothing(scene: geomtx.Scene):
    """Float32 has steps of half a unit there."""
    offset = torch.tensor([4e6, -5e6, 3e5], dtype=torch.float64)
    pose, intrinsics = (part.double() for part in scene.predictions.cameras)
    u, _, v = torch.linalg.svd(pose[..., :3])
    pose = torch.cat([u @ v, pose[..., 3:]], dim=-1)  # a rotation in double precision, too
    moved = torch.cat([pose[..., :3], pose[..., 3:] - pose[..., :3] @ offset[:, None]], dim=-1)
    predictions = scene.predictions._replace(depth=None, points=None)
    near, far = (
        dataclasses.replace(scene, predictions=predictions._replace(cameras=Cameras(each, intrinsics)))
        for each in (pose, moved)
    )
    near, far = (show_scene(each, max_points=1) for each in (near, far))
    for a, b in zip(near.results["scene"].cameras, far.results["scene"].cameras, strict=True):
        assert np.allclose(a.position, b.position, atol=1e-4)


@pytest.mark.parametrize("kind", ["padded", "cropped", "mixed"])
def test_a_frustum_is_the_part_of_the_photo_that_the_model_saw(kind: str, tmp_path: Path):
    scene = exact_scene(tmp_path, kind).scene
    shown = show_scene(scene, max_points=100)
    for camera in shown.results["scene"].cameras:
        height, width = shown.picture(camera.view, "photo").shape[:2]
        assert camera.aspect == pytest.approx(width / height, rel=0.03)
        rows = int(scene.masks[camera.view].any(dim=1).sum())
        focal = scene.predictions.cameras.intrinsics[camera.view, 1, 1].item()
        assert camera.fov == pytest.approx(2 * np.arctan(rows / 2 / focal), rel=0.03)


def test_depth_is_painted_from_blue_to_red_and_gray_where_masked(scene: geomtx.Scene):
    masks = scene.masks.clone()
    masks[0, :, :20] = False
    shown = show_scene(dataclasses.replace(scene, masks=masks), max_points=100)
    picture = shown.picture(0, "depth").astype(int)
    factor = picture.shape[1] // scene.masks.shape[2]
    assert (picture[:, : 18 * factor] == 0xEC).all()
    depth = scene.predictions.depth.value[0, :, 20:]
    red_less_blue = (picture[..., 0] - picture[..., 2])[::factor, ::factor][:, 20:]
    low, high = np.percentile(depth, [10, 90])
    assert red_less_blue[depth.numpy() <= low].mean() < 0 < red_less_blue[depth.numpy() >= high].mean()


def test_tracks_run_where_the_views_see_their_points(scene: geomtx.Scene):
    shown = show_scene(scene, max_points=100)
    assert shown.num_tracks == 2
    assert set(shown.track_of_line.tolist()) == {0, 1}
    # The views agree in this scene, but for one at an edge: each way is a point, on the surface.
    assert np.median(np.linalg.norm(shown.track_lines[:, 0] - shown.track_lines[:, 1], axis=-1)) < 0.03
    world = shown.track_lines[shown.track_of_line == 0][0, 0] * shown.frame.unit + shown.frame.origin
    assert np.allclose(world, scene.point_map().value[0, 40, 30].numpy(), atol=0.02)


def test_first_cameras_are_a_result_of_their_own(scene: geomtx.Scene):
    shown = show_scene(refined(scene), max_points=100)
    assert list(shown.results) == ["refined", "first"]
    after, before = (shown.results[name].cameras[2].position for name in shown.results)
    assert np.linalg.norm(after - before) * shown.frame.unit == pytest.approx(0.75**0.5, rel=1e-3)


def test_scenes_that_lack_something(scene: geomtx.Scene):
    only_cameras = show_scene(without(scene, "depth", "points"), max_points=10)
    assert len(only_cameras.results["scene"].xyz) == 0
    assert len(only_cameras.results["scene"].cameras) == 4
    only_points = show_scene(without(scene, "depth", "cameras"), max_points=10)
    assert len(only_points.results["scene"].xyz) == 10
    assert only_points.results["scene"].cameras == ()
    with pytest.raises(ValueError, match=r"^scene must have points or cameras for the viewer, got neither$"):
        show_scene(without(scene, "depth", "points", "cameras"), max_points=10)


def test_a_camera_that_is_not_finite_is_left_out(scene: geomtx.Scene):
    pose, intrinsics = scene.predictions.cameras
    broken = pose.clone()
    broken[1] = torch.nan
    scene = dataclasses.replace(scene, predictions=scene.predictions._replace(cameras=Cameras(broken, intrinsics)))
    shown = show_scene(scene, max_points=100)
    assert [camera.view for camera in shown.results["scene"].cameras] == [0, 2, 3]
    assert np.isfinite(shown.results["scene"].xyz).all()


def test_moving_points_are_apart_by_frame(scene: geomtx.Scene):
    masks = torch.zeros_like(scene.masks)
    masks[1, 20:50, 30:70] = masks[3, 40:60, 40:80] = True
    still, moving = scene.masks & ~masks, dataclasses.replace(scene, moving=masks)
    shown = show_scene(moving, max_points=10**6)
    apart = shown.moving["scene"]
    assert np.unique(apart.view).tolist() == [1, 3]
    alone = dataclasses.replace(scene, masks=masks).points(0)
    world = apart.xyz * shown.frame.unit + shown.frame.origin
    assert np.allclose(np.sort(world, axis=0), np.sort(alone.xyz.numpy(), axis=0), atol=1e-4)
    assert len(shown.results["scene"].xyz) == len(dataclasses.replace(scene, masks=still).points(0).xyz)
    assert show_scene(dataclasses.replace(scene, moving=masks & False), max_points=10).moving == {}
    assert list(show_scene(refined(moving), max_points=10).moving) == ["refined", "first"]
