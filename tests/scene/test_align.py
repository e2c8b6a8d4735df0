from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import geomtx
from geometry.random_cameras import random_rigid
from geomtx.geometry import compose_rigid, invert_rigid
from geomtx.scene import KnownCameras
from geomtx.scene.align import align_scene
from geomtx.scene.files import write_cameras
from geomtx.types import DenseMap, Predictions


def moved(scene: geomtx.Scene, world_from_new: Tensor, factor: float) -> geomtx.Scene:
    """The same scene told in another frame and unit."""
    cameras, _, depth, points, tracks, *_ = scene.rescale(factor, units="feet").predictions
    assert cameras is not None
    assert points is not None
    scaled = torch.cat([world_from_new[:, :3], factor * world_from_new[:, 3:]], dim=-1).float()
    inverse = invert_rigid(scaled)
    told = Predictions(
        cameras=cameras._replace(cam_from_world=compose_rigid(cameras.cam_from_world, scaled)),
        depth=depth,
        points=points._replace(value=points.value @ inverse[:, :3].mT + inverse[:, 3]),
        tracks=tracks,
    )
    return dataclasses.replace(scene, predictions=told, units="feet")


def strip(scene: geomtx.Scene, *kept: str) -> geomtx.Scene:
    return dataclasses.replace(
        scene, predictions=Predictions(**{name: getattr(scene.predictions, name) for name in kept})
    )


@pytest.mark.parametrize("kept", [("cameras", "depth", "points"), ("cameras",), ("points",), ("cameras", "depth")])
def test_a_scene_comes_back_from_any_frame(scene: geomtx.Scene, kept: tuple[str, ...]) -> None:
    other = strip(moved(scene, random_rigid(1)[0], 3.7), *kept)
    aligned = align_scene(other, scene)
    assert aligned.units == scene.units
    for name in kept:
        for got, want in zip(getattr(aligned.predictions, name), getattr(scene.predictions, name), strict=True):
            torch.testing.assert_close(got, want, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("centers", ["one view", "one place", "two views", "on a line"])
def test_cameras_alone_say_how_a_scene_is_turned(
    scene: geomtx.Scene, centers: str, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The rotations say it where the centres do not."""
    num_views = {"one view": 1, "two views": 2}.get(centers, 4)
    torch.manual_seed(seed)
    along = torch.zeros(4) if centers == "one place" else torch.arange(4.0)
    poses = random_rigid(4).float()
    world_from_cam = torch.cat([poses[:, :, :3], (torch.tensor([1.0, 2.0, 3.0]) * (1 + along[:, None]))[..., None]], -1)
    cameras = scene.predictions.cameras._replace(cam_from_world=invert_rigid(world_from_cam))
    target = dataclasses.replace(scene, predictions=scene.predictions._replace(cameras=cameras))
    target = _first_views(strip(target, "cameras", "points"), num_views)
    other = strip(moved(target, random_rigid(1)[0], 2.5), "cameras")
    aligned = align_scene(other, strip(target, "cameras"))
    torch.testing.assert_close(
        aligned.predictions.cameras.cam_from_world, target.predictions.cameras.cam_from_world, atol=1e-4, rtol=1e-4
    )
    assert ("give no scale" in caplog.text) is (centers in ("one view", "one place"))


def _first_views(scene: geomtx.Scene, count: int) -> geomtx.Scene:
    return dataclasses.replace(
        scene, names=scene.names[:count], transforms=scene.transforms[:count], images=scene.images[:count],
        masks=scene.masks[:count], predictions=scene.predictions.map(lambda each: each[:count]), paths=(),
    )  # fmt: skip


def test_it_does_not_change_what_pixels_show(scene: geomtx.Scene) -> None:
    """However bad the fit: depth and cameras move together with the point map."""
    torch.manual_seed(0)
    noise = torch.rand_like(scene.predictions.depth.value) + 0.5
    bad = scene.predictions._replace(depth=scene.predictions.depth._replace(value=3 * noise))
    bad_scene = dataclasses.replace(scene, predictions=bad)
    bad_scene = dataclasses.replace(bad_scene, predictions=bad._replace(points=bad_scene.point_map()))
    aligned = align_scene(bad_scene, scene)
    torch.testing.assert_close(aligned.point_map().value, aligned.predictions.points.value, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(aligned.point_map().value, bad_scene.point_map().value, atol=1e-2)


def test_pixels_that_are_masked_or_not_finite_count_for_nothing(scene: geomtx.Scene) -> None:
    other = strip(moved(scene, random_rigid(1)[0], 0.3), "points")
    other.predictions.points.value[0, :5] = torch.nan
    other.predictions.points.value[1, :5] = 1e6
    masks = other.masks.clone()
    masks[1, :5] = False
    aligned = align_scene(dataclasses.replace(other, masks=masks), scene)
    want = scene.predictions.points.value
    torch.testing.assert_close(aligned.predictions.points.value[2:], want[2:], atol=2e-4, rtol=2e-4)


def test_what_has_no_frame_in_common_is_refused(scene: geomtx.Scene) -> None:
    with pytest.raises(ValueError, match=r"scene must have points or cameras, as the target has, .* got neither"):
        align_scene(strip(scene, "tracks"), scene)
    smaller = dataclasses.replace(scene, masks=scene.masks[:, :70], images=scene.images[:, :, :70])
    with pytest.raises(ValueError, match=r"scene.masks must have shape \(4, 84, 112\), got \(4, 70, 112\)"):
        align_scene(smaller, scene)


def poses_of(scene: geomtx.Scene) -> Tensor:
    assert scene.predictions.cameras is not None
    return scene.predictions.cameras.cam_from_world


def assert_told_alike(got: geomtx.Scene, want: geomtx.Scene) -> None:
    """Cameras, depth and points are the same."""
    torch.testing.assert_close(poses_of(got), poses_of(want), atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(got.predictions.depth.value, want.predictions.depth.value, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(got.predictions.points.value, want.predictions.points.value, atol=5e-4, rtol=5e-4)


@pytest.fixture(scope="module")
def wide(scene: geomtx.Scene) -> geomtx.Scene:
    """The scene with cameras farther apart, in a world of its own."""
    torch.manual_seed(8)
    return moved(scene, random_rigid(1)[0], 2.3)


@pytest.mark.parametrize("kind", ["tensor", "float64", "cameras", "names", "files in folders", "known cameras", "file"])
def test_known_poses_bring_everything_into_their_world(
    scene: geomtx.Scene, wide: geomtx.Scene, kind: str, tmp_path: Path
) -> None:
    poses = poses_of(wide)
    write_cameras(tmp_path / "cameras.json", wide)
    known = {
        "tensor": poses,
        "float64": poses.double().numpy(),
        "cameras": wide.predictions.cameras,
        "names": {name: poses[view] for view, name in reversed(list(enumerate(scene.names)))},
        "files in folders": {f"photos/{name}": poses[view].tolist() for view, name in enumerate(scene.names)},
        "known cameras": KnownCameras(scene.names, poses.double(), None, (None,) * 4, "feet"),
        "file": tmp_path / "cameras.json",
    }[kind]
    aligned = geomtx.align(scene, poses=known)
    assert_told_alike(aligned, wide)
    assert aligned.units == ("feet" if kind in ("known cameras", "file") else "metres")
    assert aligned.predictions.pose_encodings is None
    assert re.match(
        rf"4 of 4 cameras agree, to .* {aligned.units} and .* degrees \(median\), scale 2.3$",
        aligned.provenance["alignment"],
    )
    assert aligned.world == "that of the known poses" != scene.world
    torch.testing.assert_close(aligned.point_map().value, aligned.predictions.points.value, atol=1e-3, rtol=1e-3)


def test_unknown_and_wrong_poses_and_two_that_are_known(scene: geomtx.Scene, wide: geomtx.Scene) -> None:
    poses = poses_of(wide).clone()
    poses[1] = torch.nan
    torch.manual_seed(9)
    poses[3] = random_rigid(1)[0].float()
    aligned = geomtx.align(scene, poses=poses, units="feet")
    assert_told_alike(aligned, wide)
    assert "2 of 3 cameras agree" in aligned.provenance["alignment"]
    assert aligned.provenance["alignment"].endswith(f"; not those of '{scene.names[3]}'")


def test_known_positions_suffice_unless_they_are_on_a_line(scene: geomtx.Scene) -> None:
    torch.manual_seed(10)
    centers = torch.tensor([[0.0, 0, 0], [1, 0, 0.2], [0, 2, 0], [0.5, 1, 1]])
    world_from_cam = torch.cat([poses_of(scene)[..., :3].mT, centers[..., None]], dim=-1)
    apart = scene.predictions._replace(
        cameras=scene.predictions.cameras._replace(cam_from_world=invert_rigid(world_from_cam))
    )
    apart_scene = dataclasses.replace(scene, predictions=apart)
    wanted = moved(apart_scene, random_rigid(1)[0], 0.4)
    positions = invert_rigid(poses_of(wanted))[..., 3]
    assert_told_alike(geomtx.align(apart_scene, poses=positions), wanted)
    named = dict(zip(scene.names[:3], positions, strict=False))
    aligned = geomtx.align(apart_scene, poses=named)
    assert_told_alike(aligned, wanted)
    assert "degrees" not in aligned.provenance["alignment"]
    line = torch.arange(4.0)[:, None] * torch.tensor([1.0, 2, 3])
    with pytest.raises(ValueError, match="known camera positions must not lie on a line"):
        geomtx.align(apart_scene, poses=line)
    with pytest.raises(ValueError, match="must be at least 3, got 2"):
        geomtx.align(apart_scene, poses=dict.fromkeys(scene.names[:2], positions[0]))


def test_depth_of_a_sensor_gives_the_scale(scene: geomtx.Scene, wide: geomtx.Scene) -> None:
    """Sparse, with holes and outliers, in pixels of the photos or of the model's images, of some views."""
    torch.manual_seed(11)
    depth = 1.7 * torch.stack([each.value for each in scene.depth])
    depth[torch.rand_like(depth) < 0.9] = 0
    depth[0, :20] = torch.nan
    depth[1, :30] = 9.0
    want = scene.rescale(1.7, units="metres")
    named = {scene.names[2]: depth[2], f"folder/{scene.names[0]}": depth[0]}
    dense = [DenseMap(depth[0], depth[0]), None, DenseMap(depth[2], depth[2]), None]
    for known in (depth, [None, depth[1], depth[2], None], named, dense):
        aligned = geomtx.align(scene, depth=known)
        torch.testing.assert_close(aligned.predictions.depth.value, want.predictions.depth.value, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(poses_of(aligned), poses_of(want), rtol=1e-4, atol=1e-4)
        assert aligned.units == "metres"
    assert aligned.world == scene.world
    assert re.match(r"depth: \d+ of \d+ values agree, to .* % \(median\)$", aligned.provenance["alignment"])


def test_distances_between_cameras_and_points_give_the_scale(scene: geomtx.Scene) -> None:
    centers = invert_rigid(poses_of(scene))[..., 3]
    baseline = float((centers[0] - centers[2]).norm())
    scaled = geomtx.align(scene, distance=(0, scene.names[2], 3 * baseline), units="inches")
    assert scaled.units == "inches"
    torch.testing.assert_close(scaled.predictions.depth.value, 3 * scene.predictions.depth.value)
    points = scene.predictions.points.value
    length = float((points[1, 30, 20] - points[1, 60, 100]).norm())
    measured = ((1, 20, 30), (1, 100, 60), 5 * length)
    for distances in (measured, [measured], [measured, (0, 2, 5 * baseline), (0, 1, 77.0)]):
        scaled = geomtx.align(scene, distance=distances)
        torch.testing.assert_close(scaled.predictions.depth.value, 5 * scene.predictions.depth.value)


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({}, "align must get one of poses, depth and distance, got none"),
        ({"poses": torch.eye(3, 4), "depth": []}, "align must get one of poses, depth and distance, got poses, depth"),
        ({"poses": torch.eye(4).expand(4, 4, 4)}, r"poses must have shape \(4, 3, 4\) or \(4, 3\), got \(4, 4, 4\)"),
        ({"poses": torch.eye(3, 4).expand(4, 3, 4)}, "known cameras must not all be in one place"),
        ({"poses": torch.ones(4, 3)}, "known cameras must not all be in one place"),
        ({"poses": torch.full((4, 3, 4), torch.nan)}, "cameras in both worlds must be at least 2, got 0"),
        ({"poses": 2 * torch.eye(3, 4).expand(4, 3, 4)}, r"poses must be \[R \| t\] with rotations R, .* 'view_0.p"),
        ({"poses": -torch.eye(3, 4).expand(4, 3, 4)}, "got a matrix of determinant -1 that is 0 off an orthogonal one"),
        ({"poses": {"x.png": torch.eye(3, 4)}}, "poses must have the name of a photo, got 'x.png' for the photos 'vie"),
        ({"poses": torch.rand(4, 3), "threshold": -1.0}, "threshold must be positive, got -1.0"),
        ({"depth": torch.zeros(4, 84, 112)}, "depth must be finite and positive in a pixel that the scene has depth"),
        ({"depth": torch.ones(4, 20, 30)}, r"depth of 'view_0.png' must have shape \(84, 112\) or .* got \(20, 30\)"),
        ({"depth": torch.ones(3, 84, 112)}, r"depth must have one map per view \(4\), got 3"),
        ({"distance": (0, 0, 1.0)}, "distance must be between two different places, got 0 and 0"),
        ({"distance": (0, 4, 1.0)}, "view of a distance must be in 0 … 3, got 4"),
        ({"distance": (0, "view_7.png", 1.0)}, "place must be one of 'view_0.png', .* got 'view_7.png'"),
        ({"distance": (0, 1, -2.0)}, "distance must be finite and positive, got -2.0"),
        ({"distance": (0, 1)}, r"distance must be \(a, b, length\) or several of these, got \(0, 1\)"),
        ({"distance": ((0, 500, 1), 1, 2.0)}, r"query 0 \(0, 500, 1\) must lie inside view_0.png"),
    ],
)  # fmt: skip
def test_what_says_nothing_of_the_scale_is_refused(scene: geomtx.Scene, known: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        geomtx.align(scene, **known)
    assert "\n" not in str(caught.value)


def test_a_scene_must_have_what_is_compared(scene: geomtx.Scene) -> None:
    bare = strip(scene, "tracks")
    for known, lacking in (
        ({"poses": torch.eye(3, 4).expand(4, 3, 4)}, "scene must have cameras to be aligned to poses"),
        ({"depth": torch.ones(4, 84, 112)}, "scene must have depth to be aligned to depth"),
        ({"distance": (0, 1, 2.0)}, "scene must have cameras for distances between them"),
    ):
        with pytest.raises(ValueError, match=lacking):
            geomtx.align(bare, **known)


def test_known_intrinsics_and_poses_take_the_place_of_predicted_ones(
    scene: geomtx.Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """By name, in pixels of photos of twice the size, for those that are known."""
    transforms = tuple(dataclasses.replace(each, original_hw=(168, 224), scale=(0.5, 0.5)) for each in scene.transforms)
    large = dataclasses.replace(scene, transforms=transforms)
    assert large.cameras is not None
    intrinsics = large.cameras.intrinsics.double()
    intrinsics[:, 0, 0] *= 1.5
    intrinsics[1] = torch.nan
    poses = large.cameras.cam_from_world.double()
    poses[:, 0, 3] += 1
    poses[2] = torch.nan
    known = KnownCameras(scene.names[::-1], poses.flip(0), intrinsics.flip(0), ((168, 224),) * 4)
    got = geomtx.scene.use_intrinsics(large, known)
    wanted = intrinsics.float()
    wanted[1] = large.cameras.intrinsics[1]
    torch.testing.assert_close(got.cameras.intrinsics, wanted)
    assert got.cameras.cam_from_world is large.cameras.cam_from_world
    assert "known focal lengths are 1.5 times as long as predicted ones" in caplog.text
    smaller = known._replace(intrinsics=intrinsics.flip(0) * torch.tensor([0.5, 0.5, 1])[:, None])
    smaller.intrinsics[:, :2, 2] -= 0.25  # the centre of a pixel is at an integer
    torch.testing.assert_close(
        geomtx.scene.use_intrinsics(large, smaller._replace(image_hw=((84, 112),) * 4)).cameras.intrinsics, wanted
    )
    placed = geomtx.scene.place_cameras(large, known)
    want = poses.float()
    want[2] = poses_of(large)[2]
    torch.testing.assert_close(poses_of(placed), want)
    with pytest.raises(ValueError, match=r"known camera of 'view_0.png' must be of a photo of its shape, 224x168"):
        geomtx.scene.use_intrinsics(large, known._replace(image_hw=((224, 168),) * 4))


def test_cameras_far_from_the_origin_are_warned_of(
    scene: geomtx.Scene, wide: geomtx.Scene, caplog: pytest.LogCaptureFixture
) -> None:
    world_from_cam = invert_rigid(poses_of(wide).double())
    world_from_cam[..., 3] += 5e6
    geomtx.align(scene, poses=invert_rigid(world_from_cam))
    assert "from the origin, where float32 rounds to" in caplog.text
