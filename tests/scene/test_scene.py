from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import geomtx
from geomtx.geometry import project
from geomtx.types import Cameras, DenseMap, Predictions
from geomtx.views import ViewTransform
from scene.known_scene import IMAGE_HW, known_scene, render_room


@pytest.fixture
def placed(scene: geomtx.Scene) -> geomtx.Scene:
    """The scene, as if its photos had been larger, and padded or cropped to the model's images."""
    transforms = tuple(
        ViewTransform((160 + 10 * i, 250), (84, 112), (0.41, 0.4), (4.3, -2.0 + 3 * i)) for i in range(len(scene))
    )
    return dataclasses.replace(
        scene, transforms=transforms, masks=torch.stack([transform.mask for transform in transforms])
    )


def test_cameras_project_to_original_pixels(placed: geomtx.Scene) -> None:
    assert placed.cameras is not None
    assert placed.predictions.cameras is not None
    points = torch.randn(4, 20, 3) + torch.tensor([0.0, 0, 5])
    in_model, _ = project(points, placed.predictions.cameras.intrinsics, placed.predictions.cameras.cam_from_world)
    in_original, _ = project(points, placed.cameras.intrinsics, placed.cameras.cam_from_world)
    mapped = torch.stack([t.to_original(xy) for t, xy in zip(placed.transforms, in_model, strict=True)])
    torch.testing.assert_close(in_original, mapped, atol=1e-3, rtol=1e-4)


def test_depth_has_the_size_of_each_photo(scene: geomtx.Scene, placed: geomtx.Scene) -> None:
    assert placed.depth is not None
    assert [tuple(each.value.shape) for each in placed.depth] == [(160, 250), (170, 250), (180, 250), (190, 250)]
    assert scene.depth is not None
    assert scene.predictions.depth is not None
    torch.testing.assert_close(scene.depth[2].value, scene.predictions.depth.value[2])
    assert (placed.depth[0].value[0] == 0).all()  # cropped away
    assert (placed.depth[0].confidence[0] == 0).all()


def test_tracks_are_in_original_pixels(placed: geomtx.Scene) -> None:
    assert placed.tracks is not None
    assert placed.predictions.tracks is not None
    torch.testing.assert_close(
        placed.tracks.coords_px[3], placed.transforms[3].to_original(placed.predictions.tracks.coords_px[3])
    )
    assert placed.tracks.visibility.shape == (4, 2)


def test_missing_heads_give_none(scene: geomtx.Scene) -> None:
    bare = dataclasses.replace(scene, predictions=Predictions())
    assert bare.cameras is bare.depth is bare.tracks is None
    with pytest.raises(ValueError, match="scene must have depth, but the model ran without its depth head"):
        bare.view_depth(0)
    with pytest.raises(ValueError, match="scene must have depth and cameras, or points"):
        bare.points()


def test_points_lie_on_the_known_surfaces(scene: geomtx.Scene) -> None:
    cloud = scene.points(0)
    assert len(cloud.xyz) == scene.masks.numel()
    true = render_room(4, IMAGE_HW).points
    assert true is not None
    torch.testing.assert_close(cloud.xyz, true.reshape(-1, 3), atol=1e-4, rtol=1e-4)
    assert torch.bincount(cloud.view).tolist() == [84 * 112] * 4
    assert torch.equal(cloud.rgb[0], scene.images[0, :, 0, 0])


def test_the_point_head_stands_in(scene: geomtx.Scene) -> None:
    alone = dataclasses.replace(scene, predictions=scene.predictions._replace(cameras=None))
    torch.testing.assert_close(alone.points().xyz, scene.points().xyz, atol=1e-4, rtol=1e-4)


def test_padding_and_what_is_behind_the_camera_or_not_finite_is_left_out(placed: geomtx.Scene) -> None:
    assert placed.predictions.depth is not None
    value, confidence = (each.clone() for each in placed.predictions.depth)
    value[0, 40] = -1
    value[1, 40, 3] = torch.nan
    confidence[2, 40, 7] = torch.inf
    changed = dataclasses.replace(placed, predictions=placed.predictions._replace(depth=DenseMap(value, confidence)))
    expected = placed.masks.clone()
    expected[0, 40] = expected[1, 40, 3] = expected[2, 40, 7] = False
    cloud = changed.points(0)
    assert len(cloud.xyz) == expected.sum() < placed.masks.numel()
    assert cloud.xyz.isfinite().all()


def test_rescale_keeps_projections(scene: geomtx.Scene) -> None:
    scaled = scene.rescale(2.5, units="metres")
    assert scaled.units == "metres"
    torch.testing.assert_close(scaled.points().xyz, 2.5 * scene.points().xyz)
    assert scaled.predictions.points is not None
    assert scene.predictions.points is not None
    torch.testing.assert_close(scaled.predictions.points.value, 2.5 * scene.predictions.points.value)
    assert scaled.cameras is not None
    assert scene.cameras is not None
    points = scene.points(max_points=50).xyz
    before, depth = project(points.expand(4, -1, -1), scene.cameras.intrinsics, scene.cameras.cam_from_world)
    after, depth_after = project(
        2.5 * points.expand(4, -1, -1), scaled.cameras.intrinsics, scaled.cameras.cam_from_world
    )
    torch.testing.assert_close(before, after, atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(2.5 * depth, depth_after)
    assert scaled.predictions.pose_encodings is not None
    assert scene.predictions.pose_encodings is not None
    ratio = scaled.predictions.pose_encodings / scene.predictions.pose_encodings
    torch.testing.assert_close(ratio[0, 0], torch.tensor([2.5] * 3 + [1.0] * 6))
    assert scene.rescale(1.0).units == "up to scale"


@pytest.mark.parametrize("factor", [0, -1.0, float("nan"), float("inf")])
def test_rescale_wants_a_positive_factor(scene: geomtx.Scene, factor: float) -> None:
    with pytest.raises(ValueError, match="factor must be finite and positive, got"):
        scene.rescale(factor)


def test_save_and_load(placed: geomtx.Scene, tmp_path: Path) -> None:
    before = dataclasses.replace(placed.rescale(3.0, units="metres"), notice="Achtung, é")
    before.save(tmp_path / "out", report=False)
    after = geomtx.Scene.load(tmp_path / "out")
    for field in ("names", "transforms", "units", "notice"):
        assert getattr(before, field) == getattr(after, field)
    for field in ("images", "masks", "query_points"):
        assert torch.equal(getattr(before, field), getattr(after, field))
    torch.testing.assert_close(tuple(before.predictions)[:-1], tuple(after.predictions)[:-1], rtol=0, atol=0)
    assert before.depth is not None
    torch.testing.assert_close(before.depth, after.depth, rtol=0, atol=0)  # in original pixels


def test_what_the_model_did_not_predict_is_not_there_after_loading(scene: geomtx.Scene, tmp_path: Path) -> None:
    cameras: Cameras | None = scene.predictions.cameras
    before = dataclasses.replace(scene, predictions=Predictions(cameras=cameras), query_points=None)
    paths = before.save(tmp_path / "out", report=False)
    assert sorted(path.name for path in paths) == ["cameras.json", "scene.safetensors"]
    after = geomtx.Scene.load(tmp_path / "out" / "scene.safetensors")
    assert after.predictions.depth is after.predictions.points is after.predictions.tracks is after.query_points is None


def test_a_repr_is_one_line(scene: geomtx.Scene) -> None:
    assert repr(scene) == "Scene(4 views of 112x84, cameras, pose_encodings, depth, points, tracks; up to scale)"


def test_length_is_the_number_of_views(tmp_path: Path) -> None:
    assert len(known_scene(tmp_path, 3)) == 3


def test_names_can_be_written(scene: geomtx.Scene) -> None:
    names = ("a\udce9", r"a\xe9", "b", "b")
    odd = dataclasses.replace(scene, names=names, notice="\udce9", units="\udcea")
    assert odd.names == (r"a\xe9", r"a\xe9_2", "b", "b_2")
    assert (odd.notice, odd.units) == (r"\xe9", r"\xea")
