from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import geomtx
from geomtx.scene.observations import ObservedPoints, describe_observations, observe_points
from geomtx.types import Cameras, DenseMap, Predictions, Tracks
from scene.exact_scenes import KINDS, exact_scene, misses


def lengths(observed: ObservedPoints) -> torch.Tensor:
    return torch.bincount(observed.point, minlength=len(observed.xyz))


@pytest.mark.parametrize("kind", KINDS)
def test_points_of_exact_scenes(tmp_path: Path, kind: str) -> None:
    scene = exact_scene(tmp_path, kind).scene
    observed = observe_points(scene, percentile=0)
    miss, length = misses(observed, scene), lengths(observed)
    single = length[observed.point] == 1
    assert single.any()
    assert miss[single].max() < 0.01
    assert miss[~single].median() < 0.5
    assert miss.max() < 3
    assert (length > 1).double().mean() > 0.5
    assert (length > 2).any()
    key = observed.point * len(scene) + observed.view
    assert (key.diff() > 0).all()  # sorted, and a view sees a point once
    for view, transform in enumerate(scene.transforms):
        coords = observed.coords_px[observed.view == view]
        assert (coords >= -0.5).all()
        assert (coords <= torch.tensor(transform.original_hw[::-1]) - 0.5).all()


def test_an_observation_is_measured_in_its_own_photo(tmp_path: Path) -> None:
    """Where one view has another depth, the merged point lies between, and both views see it somewhere else."""
    scene = exact_scene(tmp_path).scene
    depth = scene.predictions.depth
    assert depth is not None
    value = depth.value.clone()
    value[1] *= 1.01
    wrong = dataclasses.replace(scene, predictions=scene.predictions._replace(depth=DenseMap(value, depth.confidence)))
    observed = observe_points(wrong)
    merged = lengths(observed)[observed.point] > 1
    assert misses(observed, wrong)[merged].median() > 20 * misses(observe_points(scene), scene).median()
    # What a view observes is a point of its own surface, whatever was merged.
    own = wrong.point_map().value[1].double()
    rows = (observed.view == 1) & merged
    pixel = wrong.transforms[1].from_original(observed.coords_px[rows]).round().long()
    gap = (own[pixel[:, 1], pixel[:, 0]] - observed.xyz[observed.point[rows]]).norm(dim=-1)
    assert gap.median() < 0.1


def test_surfaces_farther_apart_than_the_tolerance_are_not_merged(tmp_path: Path) -> None:
    scene = exact_scene(tmp_path).scene
    depth = scene.predictions.depth
    assert depth is not None
    value = depth.value * torch.tensor([1.0, 1.1, 1.2, 1.3])[:, None, None]
    apart = dataclasses.replace(scene, predictions=scene.predictions._replace(depth=DenseMap(value, depth.confidence)))
    close, loose = (observe_points(apart, tolerance=tolerance) for tolerance in (0.005, 0.15))
    assert (lengths(close) > 1).double().mean() < 0.2 < (lengths(loose) > 1).double().mean()
    assert misses(close, apart)[lengths(close)[close.point] == 1].max() < 0.01


def test_the_most_observed_points_are_kept_and_every_view_has_some(tmp_path: Path) -> None:
    scene = exact_scene(tmp_path).scene
    every, few = observe_points(scene, max_points=None), observe_points(scene, max_points=200)
    assert len(few.xyz) == 200
    assert lengths(few).double().mean() > lengths(every).double().mean()
    assert torch.bincount(few.view, minlength=4).min() >= 50
    assert len(observe_points(scene, max_points=1).xyz) == 1


def test_tracks_give_points(tmp_path: Path) -> None:
    scene = exact_scene(tmp_path).scene
    coords = (
        torch.tensor([[[30.0, 20.0], [11.0, 9.0], [40.0, 30.0]]]).repeat(4, 1, 1) + torch.arange(4.0)[:, None, None]
    )
    visible = torch.tensor([[0.9, 0.9, 0.1]] * 4)
    visible[2, 0] = 0.2
    tracks = Tracks(coords, visible, torch.ones(4, 3))
    queries = torch.tensor([[0.0, 30, 20], [1, 12, 10], [0, 40, 30]])
    tracked = dataclasses.replace(scene, predictions=scene.predictions._replace(tracks=tracks), query_points=queries)
    observed = observe_points(tracked, max_points=2)
    assert observed.view.tolist() == [0, 1, 3, 0, 1, 2, 3]
    assert observed.point.tolist() == [0, 0, 0, 1, 1, 1, 1]
    expected = torch.stack([t.to_original(xy) for t, xy in zip(scene.transforms, coords.double(), strict=True)])
    assert torch.equal(observed.coords_px[:3], expected[[0, 1, 3], 0])
    assert len(observe_points(tracked, max_points=500).xyz) == 500


def test_points_stand_in_for_depth(scene: geomtx.Scene) -> None:
    alone = dataclasses.replace(scene, predictions=scene.predictions._replace(depth=None))
    one, two = observe_points(scene), observe_points(alone)
    assert abs(len(one.view) - len(two.view)) < 0.01 * len(one.view)
    assert misses(two, alone).median() < 1e-3


def test_the_same_with_any_number_of_threads(scene: geomtx.Scene) -> None:
    before, found = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(observe_points(scene, max_points=500))
    torch.set_num_threads(before)
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


def test_one_view(tmp_path: Path) -> None:
    scene = exact_scene(tmp_path).scene
    predictions = scene.predictions.map(lambda values: values[:1])
    one = dataclasses.replace(
        scene, names=scene.names[:1], transforms=scene.transforms[:1], images=scene.images[:1],
        masks=scene.masks[:1], predictions=predictions, paths=scene.paths[:1],
    )  # fmt: skip
    assert set(lengths(observe_points(one)).tolist()) == {1}


def test_bad_input(scene: geomtx.Scene) -> None:
    with pytest.raises(ValueError, match="scene must have cameras, but the model ran without its camera head"):
        observe_points(dataclasses.replace(scene, predictions=Predictions(depth=scene.predictions.depth)))
    with pytest.raises(ValueError, match="scene must have depth or points, but the model ran without those heads"):
        observe_points(dataclasses.replace(scene, predictions=Predictions(cameras=scene.predictions.cameras)))
    with pytest.raises(ValueError, match="no points: masks and padding leave no pixel"):
        observe_points(dataclasses.replace(scene, masks=torch.zeros_like(scene.masks)))
    depth = DenseMap(-torch.ones(4, 84, 112), torch.ones(4, 84, 112))
    with pytest.raises(ValueError, match="no points: cameras, depth or confidence are not finite, or the depth is not"):
        observe_points(dataclasses.replace(scene, predictions=scene.predictions._replace(depth=depth)))
    for name, value, message in (
        ("max_points", 0, "max_points must be a whole number, at least 1, got 0"),
        ("tolerance", 0.0, "tolerance must be positive, got 0"),
        ("percentile", 101, "percentile must be in 0 … 100, got 101"),
    ):
        with pytest.raises(ValueError, match=message):
            observe_points(scene, **{name: value})
    assert scene.predictions.cameras is not None
    mirrored = scene.predictions.cameras._replace(cam_from_world=-scene.predictions.cameras.cam_from_world)
    with pytest.raises(ValueError, match="no points: cameras, depth or confidence are not finite"):
        observe_points(dataclasses.replace(scene, predictions=scene.predictions._replace(cameras=mirrored)))
    nan = Cameras(*(torch.full_like(part, torch.nan) for part in scene.predictions.cameras or ()))
    with pytest.raises(ValueError, match="no points: cameras, depth or confidence are not finite"):
        observe_points(dataclasses.replace(scene, predictions=scene.predictions._replace(cameras=nan)))


def test_a_line_says_how_long_tracks_are() -> None:
    points = torch.zeros(4, 3, dtype=torch.float64), torch.zeros(4, 3, dtype=torch.uint8)
    point = torch.tensor([0, 1, 1, 2, 2, 2, 3])
    observed = ObservedPoints(*points, point, point, torch.zeros(7, 2), torch.ones(7))
    assert describe_observations(observed) == (
        "4 points with 7 observations: mean track length 1.75, 50.0 % with two observations or more, 25.0 % with "
        "three or more"
    )
