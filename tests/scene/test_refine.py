"""Bundle adjustment of scenes: exact ones whose cameras are disturbed, and what doesn't allow a refinement."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import geomtx
from geometry.random_cameras import rodrigues
from geomtx.geometry import invert_rigid, project, rotation_angle
from geomtx.metrics import pairwise_pose_errors
from geomtx.scene import ObservedPoints, observe_points
from geomtx.types import Cameras, DenseMap
from scene.exact_scenes import exact_scene


def disturb(scene: geomtx.Scene, *, degrees: float = 2.0, shift: float = 0.05, depth: float = 0.1) -> geomtx.Scene:
    """Turn and move all cameras but the first, and scale the depth of each view by chance; points as the depth is."""
    generator = torch.Generator().manual_seed(3)
    cameras, maps = scene.predictions.cameras, scene.predictions.depth
    assert cameras is not None
    assert maps is not None
    pose = cameras.cam_from_world.double().clone()
    factors = 1 + depth * (2 * torch.rand(len(scene), generator=generator) - 1)
    for view in range(1, len(scene)):
        axis = torch.randn(3, generator=generator).double()
        pose[view, :, :3] = rodrigues(axis, torch.tensor(degrees).deg2rad().item()) @ pose[view, :, :3]
        pose[view, :, 3] += shift * torch.randn(3, generator=generator).double()
    changed = scene.predictions._replace(
        cameras=Cameras(pose.float(), cameras.intrinsics),
        depth=DenseMap(maps.value * factors[:, None, None], maps.confidence),
        pose_encodings=torch.zeros(1, len(scene), 9),
    )
    moved = dataclasses.replace(scene, predictions=changed)
    return dataclasses.replace(moved, predictions=changed._replace(points=moved.point_map()))


def pose_errors(scene: geomtx.Scene, truth: geomtx.Scene) -> Tensor:
    assert scene.cameras is not None
    assert truth.cameras is not None
    both = (each.cameras.cam_from_world.double()[None] for each in (scene, truth))  # type: ignore[union-attr]
    return pairwise_pose_errors(*both).larger_deg()


def exact_observations(truth: geomtx.Scene, start: geomtx.Scene) -> ObservedPoints:
    """What the truth's pixels have in common, with points from the disturbed scene's own surfaces."""
    observed = observe_points(truth, max_points=400)
    lengths = torch.bincount(observed.point)
    first = torch.searchsorted(observed.point, torch.arange(len(lengths)))
    coords, view = observed.coords_px[first], observed.view[first]
    # Projections of the true points are exact; observations of the maps are so within interpolation.
    assert truth.cameras is not None
    pixels = torch.empty_like(observed.coords_px)
    for index in range(len(truth)):
        rows = observed.view == index
        k, pose = truth.cameras.intrinsics[index].double(), truth.cameras.cam_from_world[index].double()
        pixels[rows] = project(observed.xyz[observed.point[rows]], k, pose)[0]
    xyz = start_points(start, view, coords)
    return observed._replace(coords_px=pixels, xyz=xyz)


def start_points(scene: geomtx.Scene, view: Tensor, coords: Tensor) -> Tensor:
    points = scene.point_map().value.double()
    found = []
    for index, xy in zip(view.tolist(), coords, strict=True):
        column, row = scene.transforms[index].from_original(xy).round().long().tolist()
        found.append(points[index, row, column])
    return torch.stack(found)


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> geomtx.Scene:
    return exact_scene(tmp_path_factory.mktemp("exact")).scene


@pytest.fixture(scope="module")
def start(truth: geomtx.Scene) -> geomtx.Scene:
    return disturb(truth)


@pytest.fixture(scope="module")
def observed(truth: geomtx.Scene, start: geomtx.Scene) -> ObservedPoints:
    return exact_observations(truth, start)


@pytest.fixture(scope="module")
def refined(start: geomtx.Scene, observed: ObservedPoints) -> geomtx.Scene:
    return geomtx.refine(start, observed, focal="known")


def test_disturbed_cameras_come_back(truth, start, refined):
    assert refined.refined
    assert pose_errors(start, truth).median() > 1
    assert pose_errors(refined, truth).max() < 0.05
    assert torch.equal(refined.cameras.cam_from_world[0], start.cameras.cam_from_world[0])
    assert refined.predictions.pose_encodings is None


def test_depth_points_and_cameras_agree_again(truth, start, refined):
    """Depth of all views has one scale to the truth; the points are those of the depth in the cameras."""
    ratios = refined.predictions.depth.value / truth.predictions.depth.value
    medians = ratios.flatten(1).nanmedian(1).values
    assert (start.predictions.depth.value / truth.predictions.depth.value).flatten(1).nanmedian(1).values.std() > 0.02
    assert (medians / medians[0] - 1).abs().max() < 0.01
    from_depth = dataclasses.replace(refined, predictions=refined.predictions._replace(points=None)).point_map().value
    gap = (from_depth - refined.predictions.points.value).norm(dim=-1)
    assert gap.nanmedian() < 1e-4
    # The scale of the whole is kept: half of the observations are nearer, and half farther.
    moved = refined.predictions.depth.value / start.predictions.depth.value
    assert moved.flatten(1).nanmedian(1).values.log().mean().abs() < 0.1


def test_points_follow_new_focal_lengths(truth, start, observed):
    wrong = start.predictions.cameras.intrinsics * torch.tensor([[1.05, 1, 1], [1, 1.05, 1], [1, 1, 1]])
    cameras = start.predictions.cameras._replace(intrinsics=wrong)
    scene = dataclasses.replace(start, predictions=start.predictions._replace(cameras=cameras, points=None))
    scene = dataclasses.replace(scene, predictions=scene.predictions._replace(points=scene.point_map()))
    refined = geomtx.refine(scene, observed, focal="free")
    true = truth.predictions.cameras.intrinsics[:, 0, 0]
    assert (refined.predictions.cameras.intrinsics[:, 0, 0] / true - 1).abs().max() < 0.01
    assert pose_errors(refined, truth).max() < 0.5
    from_depth = dataclasses.replace(refined, predictions=refined.predictions._replace(points=None)).point_map().value
    assert (from_depth - refined.predictions.points.value).norm(dim=-1).nanmedian() < 1e-3


def test_pycolmap_finds_the_same(start, observed, refined):
    pytest.importorskip("pycolmap")
    other = geomtx.refine(start, observed, solver="pycolmap", focal="known")
    assert other.provenance["refinement"].startswith("pycolmap, cauchy")
    assert pose_errors(other, refined).max() < 0.02
    shared, free = (geomtx.refine(start, observed, solver="pycolmap", focal=focal) for focal in ("shared", "free"))
    assert pose_errors(free, refined).max() < 0.2
    focal = shared.predictions.cameras.intrinsics[:, 0, 0]
    assert (focal == focal[0]).all()
    assert torch.equal(shared.predictions.cameras.intrinsics[..., 2], start.predictions.cameras.intrinsics[..., 2])


def test_the_same_numbers_with_any_number_of_threads(start, observed, refined):
    torch.set_num_threads(3)
    try:
        again = geomtx.refine(start, observed, focal="known")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)
    assert torch.equal(again.cameras.cam_from_world, refined.cameras.cam_from_world)
    assert torch.equal(again.predictions.depth.value, refined.predictions.depth.value)


def test_outliers_do_not_sway_the_result(truth, start, observed):
    generator = torch.Generator().manual_seed(1)
    wrong = torch.rand(len(observed.view), generator=generator) < 0.1
    places = torch.rand(len(observed.view), 2, generator=generator).double() * torch.tensor([89.0, 59.0])
    noisy = torch.where(wrong[:, None], places, observed.coords_px)
    assert pose_errors(geomtx.refine(start, observed._replace(coords_px=noisy), focal="known"), truth).max() < 0.3


def test_the_first_cameras_are_kept_also_in_files_and_when_the_scene_moves(tmp_path, start, refined):
    assert torch.equal(refined.first_cameras.cam_from_world, start.predictions.cameras.cam_from_world)
    assert "median reprojection error" in refined.provenance["refinement"]
    refined.save(tmp_path, report=False)
    loaded = geomtx.Scene.load(tmp_path)
    assert loaded.refined
    assert all(torch.equal(*pair) for pair in zip(loaded.first_cameras, refined.first_cameras, strict=True))
    view = json.loads((tmp_path / "cameras.json").read_text(encoding="utf-8"))["views"][1]
    pose = torch.tensor(view["first"]["cam_from_world"])
    torch.testing.assert_close(pose, start.cameras.cam_from_world[1])
    torch.testing.assert_close(torch.tensor(view["first"]["intrinsics"]), start.cameras.intrinsics[1])
    twice = refined.rescale(2.0)
    assert torch.equal(twice.first_cameras.cam_from_world[..., 3], 2 * refined.first_cameras.cam_from_world[..., 3])
    aligned = geomtx.align(refined, poses=Cameras(*(each.clone() for each in start.predictions.cameras)))
    gap = rotation_angle(aligned.first_cameras.cam_from_world[..., :3], start.cameras.cam_from_world[..., :3])
    assert gap.max() < 0.1
    again = geomtx.refine(refined, observe_points(start, max_points=100))
    assert torch.equal(again.first_cameras.cam_from_world, refined.first_cameras.cam_from_world)


def test_a_scene_that_was_not_refined_has_no_first_cameras(tmp_path, start):
    start.save(tmp_path, report=False)
    loaded = geomtx.Scene.load(tmp_path)
    assert not loaded.refined
    assert loaded.first_cameras is None
    assert "first" not in json.loads((tmp_path / "cameras.json").read_text(encoding="utf-8"))["views"][0]


def test_known_poses_are_held_and_give_the_scale(truth, start, observed):
    fixed = torch.tensor([True, False, True, False])
    pose = torch.where(fixed[:, None, None], truth.cameras.cam_from_world, start.cameras.cam_from_world)
    cameras = start.predictions.cameras._replace(cam_from_world=pose)
    scene = dataclasses.replace(start, predictions=start.predictions._replace(cameras=cameras))
    refined = geomtx.refine(scene, observed, focal="known", fixed_views=fixed)
    assert torch.equal(refined.cameras.cam_from_world[fixed], pose[fixed])
    centers = (invert_rigid(each.cameras.cam_from_world)[..., 3] for each in (refined, truth))
    torch.testing.assert_close(*centers, rtol=0, atol=5e-3)
    ratio = (refined.predictions.depth.value / truth.predictions.depth.value).flatten(1).nanmedian(1).values
    assert (ratio - 1).abs().max() < 0.01


def test_a_view_that_shares_too_little_keeps_its_camera(start, observed):
    few = (observed.view != 3) | (torch.arange(len(observed.view)) % 60 == 0)
    part = observed._replace(view=observed.view[few], point=observed.point[few], coords_px=observed.coords_px[few])
    refined = geomtx.refine(start, part, focal="known")
    assert refined.refined
    assert torch.equal(refined.cameras.cam_from_world[3], start.cameras.cam_from_world[3])
    assert torch.equal(refined.predictions.depth.value[3], start.predictions.depth.value[3])
    assert not torch.equal(refined.cameras.cam_from_world[1], start.cameras.cam_from_world[1])


@pytest.mark.parametrize("kept", [0, 12])
def test_a_scene_with_too_few_observations_stays_as_it_is(start, observed, kept):
    few = observed._replace(**{name: getattr(observed, name)[:kept] for name in ("view", "point", "coords_px")})
    scene = geomtx.refine(start, few)
    assert not scene.refined
    assert scene.first_cameras is None
    assert scene.predictions == start.predictions
    assert scene.provenance["refinement"].startswith("none: too few observations")
    with pytest.raises(ValueError, match=r"^scene must be one that can be refined: too few observations"):
        geomtx.refine(start, few, strict=True)


@pytest.mark.parametrize("solver", ["torch", "pycolmap"])
def test_observations_that_nothing_explains_leave_the_scene_as_it_is(start, observed, solver):
    if solver == "pycolmap":
        pytest.importorskip("pycolmap")
    noise = torch.rand(len(observed.view), 2, generator=torch.Generator().manual_seed(0)).double()
    scene = geomtx.refine(start, observed._replace(coords_px=noise * 1e-3), solver=solver)
    values = [*scene.predictions.cameras, scene.predictions.depth.value]
    assert all(each.isfinite().all() for each in values)
    if not scene.refined:
        assert scene.predictions == start.predictions


def test_observations_of_other_places_are_not_believed(start, observed):
    """Matches that agree with each other, but not with the cameras: a view looks upside down."""
    turned = observed.coords_px.clone()
    own = observed.view == 2
    turned[own] = torch.tensor([89.0, 59.0]) - turned[own]
    scene = geomtx.refine(start, observed._replace(coords_px=turned))
    assert not scene.refined
    assert scene.predictions == start.predictions


def test_a_camera_turns_far_only_where_other_photos_confirm_it(truth):
    start = disturb(truth, degrees=25.0, shift=0.1)
    observed = exact_observations(truth, start)
    refined = geomtx.refine(start, observed, focal="known")
    assert pose_errors(start, truth).max() > 20
    assert pose_errors(refined, truth).max() < 0.01
    # Tracks as long, but with the places of other points; and tracks of two views, which nothing confirms.
    generator = torch.Generator().manual_seed(1)
    few = {name: getattr(observed, name)[:400] for name in ("view", "point", "coords_px")}
    for view in range(1, 4):
        rows = (few["view"] == view).nonzero()[:, 0]
        few["coords_px"][rows] = few["coords_px"][rows[torch.randperm(len(rows), generator=generator)]]
    for wrong in (observed._replace(**few), pairs_of(observed)):
        scene = geomtx.refine(start, wrong, focal="known")
        assert "a camera would turn by" in scene.provenance["refinement"]
        assert "three agree on 0 % of the observations" in scene.provenance["refinement"]
        assert scene.predictions == start.predictions


def test_photos_that_turn_together_confirm_nothing_of_each_other(truth):
    """They agree among themselves wherever the wall that they show is put."""
    cameras = truth.cameras
    center = truth.point_map().value.double().flatten(0, 2).median(0).values
    turn = rodrigues(torch.tensor([0.0, 0.0, 1.0]).double(), torch.tensor(25.0).deg2rad().item())
    moved = torch.eye(4).double()
    moved[:3] = torch.cat([turn, (center - turn @ center)[:, None]], dim=1)
    pose = cameras.cam_from_world.double().clone()
    pose[1:] = pose[1:] @ moved
    predictions = truth.predictions._replace(cameras=Cameras(pose.float(), cameras.intrinsics), points=None)
    start = dataclasses.replace(truth, predictions=predictions)
    observed = exact_observations(truth, start)
    # Tracks among the three that turned, and pairs of the first photo and one of these.
    pairs, among = pairs_of(observed), observed.view > 0
    linking = torch.isin(pairs.point, pairs.point[pairs.view == 0])
    num = len(observed.xyz)
    split = observed._replace(
        xyz=observed.xyz.repeat(2, 1),
        rgb=observed.rgb.repeat(2, 1),
        view=torch.cat([observed.view[among], pairs.view[linking]]),
        point=torch.cat([observed.point[among], pairs.point[linking] + num]),
        coords_px=torch.cat([observed.coords_px[among], pairs.coords_px[linking]]),
    )
    scene = geomtx.refine(start, split, focal="known")
    assert "a camera would turn by" in scene.provenance["refinement"]
    assert scene.predictions == start.predictions


def pairs_of(observed: ObservedPoints) -> ObservedPoints:
    """The first two observations of each point."""
    kept = torch.arange(len(observed.point)) - torch.searchsorted(observed.point, observed.point) < 2
    return observed._replace(**{name: getattr(observed, name)[kept] for name in ("view", "point", "coords_px")})


def test_points_that_two_photos_see_refine_these(truth, start, observed):
    """Half of these observations are where the points start, so they say nothing of how far the others are off."""
    refined = geomtx.refine(start, pairs_of(observed), focal="known")
    # Nearly all points begin in the first two views.
    assert pose_errors(refined, truth)[0, 0] < 0.1 * pose_errors(start, truth)[0, 0]


def test_observations_that_are_not_finite_are_left_out(start, observed, truth):
    coords, xyz = observed.coords_px.clone(), observed.xyz.clone()
    coords[::7], xyz[::5] = torch.nan, torch.inf
    refined = geomtx.refine(start, observed._replace(coords_px=coords, xyz=xyz), focal="known")
    assert pose_errors(refined, truth).max() < 0.05


def test_without_observations_the_maps_give_them(monkeypatch, start):
    monkeypatch.setattr("geomtx.scene.tracked_points._MOST_DENSE_POINTS", 300)
    scene = geomtx.refine(start)
    assert scene.refined
    assert "observations in 4 views" in scene.provenance["refinement"]


def test_one_view_and_what_is_missing(start):
    one = exact_view(start)
    assert not geomtx.refine(one).refined
    with pytest.raises(ValueError, match=r"^scene must have cameras"):
        geomtx.refine(dataclasses.replace(start, predictions=start.predictions._replace(cameras=None)))
    without = start.predictions._replace(depth=None, points=None)
    with pytest.raises(ValueError, match=r"^scene must have depth or points"):
        geomtx.refine(dataclasses.replace(start, predictions=without))


def exact_view(scene: geomtx.Scene) -> geomtx.Scene:
    first = slice(0, 1)
    predictions = scene.predictions._replace(pose_encodings=None).map(lambda values: values[first])
    return dataclasses.replace(
        scene,
        names=scene.names[first],
        transforms=scene.transforms[first],
        images=scene.images[first],
        masks=scene.masks[first],
        predictions=predictions,
        paths=scene.paths[first],
    )


@pytest.mark.parametrize(("options", "message"), [
    ({"solver": "ceres"}, "^solver must be one of 'auto'"),
    ({"loss": "tukey"}, "^loss must be one of 'trivial'"),
    ({"focal": "own"}, "^focal must be one of 'known'"),
    ({"fixed_views": torch.ones(2, dtype=torch.bool)}, r"^fixed_views must have shape \(4\)"),
])  # fmt: skip
def test_options_that_do_not_exist(unchecked, start, options, message):
    with pytest.raises(ValueError, match=message):
        geomtx.refine(start, **options)


def test_without_pycolmap(monkeypatch, start, observed):
    monkeypatch.setitem(__import__("sys").modules, "pycolmap", None)
    with pytest.raises(ImportError, match=r"pip install 'geomtx\[colmap\]'"):
        geomtx.refine(start, observed, solver="pycolmap")


def test_photos_of_mixed_sizes(tmp_path: Path) -> None:
    truth = exact_scene(tmp_path, "mixed").scene
    start = disturb(truth)
    refined = geomtx.refine(start, exact_observations(truth, start))
    assert "focal lengths known" in refined.provenance["refinement"]
    assert pose_errors(refined, truth).max() < 0.1
