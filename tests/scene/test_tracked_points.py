"""Correspondences that a tracker, or SIFT, finds in rendered rooms with known truth."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import geomtx
from geomtx.data.synthetic.photos import save_photos, truth_in_views
from geomtx.data.synthetic.render import held_out_seed, render_scenes
from geomtx.data.synthetic.rooms import RoomStyle
from geomtx.geometry import project
from geomtx.inference import LEAN_PLAN, run
from geomtx.metrics import pairwise_pose_errors
from geomtx.scene import ObservedPoints, match_points, observe_points, track_points
from geomtx.scene.tracked_points import farthest_views
from geomtx.types import DenseMap, Predictions, SceneBatch, Tracks


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> tuple[geomtx.Scene, SceneBatch]:
    """Nano's scene of four photos of 192x256 pixels, and the truth in its pixels."""
    truth = render_scenes([held_out_seed(5)], 4, (192, 256), num_tracks=200, style=RoomStyle.nano())
    folder = tmp_path_factory.mktemp("room")
    save_photos(truth.images[0], folder)
    model = geomtx.load_model("nano")
    views = geomtx.load_views(folder, model=model)
    return geomtx.reconstruct(model, views), truth_in_views(truth, views)


def misses(observed: ObservedPoints, room: tuple[geomtx.Scene, SceneBatch]) -> torch.Tensor:
    """How far each observation is from where the true surface, seen at the point's first one, really is, in pixels."""
    scene, truth = room
    pose, intrinsics = (each[0].double() for each in truth.cameras)
    coords = torch.stack(
        [scene.transforms[view].from_original(xy) for view, xy in zip(observed.view, observed.coords_px, strict=True)]
    )
    first = torch.searchsorted(observed.point, torch.arange(len(observed.xyz)))
    start, view = coords[first], observed.view[first]
    column, row = start.round().long().unbind(1)
    rays = intrinsics[view].inverse() @ torch.cat([start, torch.ones_like(start[:, :1])], dim=-1)[..., None]
    local = rays * truth.depth[0, view, row, column].double()[:, None, None]
    points = (pose[view, :, :3].mT @ (local - pose[view, :, 3:])).squeeze(-1)
    found, _ = project(points[observed.point][:, None], intrinsics[observed.view], pose[observed.view])
    return (found[:, 0] - coords).norm(dim=-1)[observed.point.diff(prepend=torch.tensor([-1])) == 0]


def true_scene(room: tuple[geomtx.Scene, SceneBatch]) -> geomtx.Scene:
    scene, truth = room
    depth = DenseMap(truth.depth[0].float(), torch.ones_like(truth.depth[0].float()))
    return dataclasses.replace(
        scene, predictions=Predictions(type(truth.cameras)(*(c[0] for c in truth.cameras)), depth=depth)
    )


def test_tracks_of_nano_are_near_the_truth(room):
    model = geomtx.load_model("nano")
    observed = track_points(model, room[0], num_query_views=2, points_per_view=100)
    lengths = torch.bincount(observed.point)
    assert len(observed.xyz) > 50
    assert lengths.min() > 1
    assert ((observed.point * 4 + observed.view).diff() > 0).all()
    assert misses(observed, room).median() < 4
    # What doesn't come back is left out: fewer observations, and better ones.
    strict = track_points(model, room[0], num_query_views=2, points_per_view=100, tolerance_px=0.3)
    assert len(strict.view) < len(observed.view)
    assert misses(strict, room).median() < misses(observed, room).median()


def test_tracks_take_the_memory_that_there_is(room, monkeypatch):
    model = geomtx.load_model("nano").double()  # the tracker enlarges rounding
    whole = track_points(model, room[0], num_query_views=2, points_per_view=50)
    plans = []
    encode = run.encode
    monkeypatch.setattr(run, "encode", lambda *args: plans.append(args[2].plan) or encode(*args))
    lean = track_points(model, room[0], num_query_views=2, points_per_view=50, memory="low")
    assert plans == [LEAN_PLAN]
    assert torch.equal(lean.view, whole.view)
    torch.testing.assert_close(lean.coords_px, whole.coords_px, rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match=r"^memory must be 'auto', 'low' or a whole number"):
        track_points(model, room[0], memory="some")


def test_tracks_lie_on_pixels_that_take_part(room):
    scene, _ = room
    masks = scene.masks.clone()
    masks[1, :, : masks.shape[-1] // 2] = False
    observed = track_points(geomtx.load_model("nano"), dataclasses.replace(scene, masks=masks), num_query_views=2)
    column, row = scene.transforms[1].from_original(observed.coords_px[observed.view == 1]).round().long().unbind(-1)
    assert len(row) > 10
    assert masks[1, row, column].all()


def test_a_scene_with_tracks_of_its_own_uses_them(room):
    """True tracks bring nano's cameras close to the truth."""
    scene, truth = room
    tracks = Tracks(truth.tracks.coords_px[0], truth.tracks.visible[0].float(), truth.tracks.visible[0].float())
    queries = torch.cat([torch.zeros(200, 1), scene.transforms[0].to_original(tracks.coords_px[0])], dim=-1)
    with_tracks = dataclasses.replace(
        scene, predictions=scene.predictions._replace(tracks=tracks), query_points=queries.float()
    )
    refined = geomtx.refine(with_tracks)
    errors = [
        pairwise_pose_errors(
            each.cameras.cam_from_world[None].double(), truth.cameras.cam_from_world.double()
        ).larger_deg()
        for each in (scene, refined)
    ]
    assert errors[1].median() < 0.2 * errors[0].median()


def test_features_of_sift_are_at_the_truth(room):
    pytest.importorskip("pycolmap")
    scene, _ = room
    observed = match_points(true_scene(room))
    assert len(observed.xyz) > 50
    assert ((observed.point * 4 + observed.view).diff() > 0).all()
    in_photo = misses(observed, room) * 4
    assert in_photo.median() < 1
    # The same in the model's own images, where the photos are gone; small ones have fewer features.
    without = match_points(dataclasses.replace(true_scene(room), paths=()))
    assert 0 < len(without.xyz) < len(observed.xyz)
    again = match_points(true_scene(room))
    assert torch.equal(again.coords_px, observed.coords_px)
    assert scene.transforms[0].original_hw == (192, 256)


def test_farthest_views():
    angles = torch.tensor([0.0, 0.1, 0.2, 1.5, 3.0])
    tokens = torch.stack([angles.cos(), angles.sin()], dim=-1) * torch.tensor([1.0, 5, 2, 0.1, 9])[:, None]
    assert farthest_views(tokens, 3) == [0, 4, 3]
    assert sorted(farthest_views(tokens, 9)) == [0, 1, 2, 3, 4]
    assert farthest_views(tokens[:1], 2) == [0]


def test_a_model_without_a_tracker(room, tiny_model):
    model = geomtx.VGGT(dataclasses.replace(geomtx.VGGTConfig.tiny(), heads=("camera", "depth")))
    with pytest.raises(ValueError, match=r"^model must have a track head, got VGGT without one"):
        track_points(model, room[0])
    with pytest.raises(ValueError, match=r"^num_query_views must be a whole number"):
        track_points(tiny_model, room[0], num_query_views=0)


def test_masked_pixels_are_no_queries(room):
    scene = room[0]
    masks = scene.masks.clone()
    masks[:, :, :32] = False
    observed = track_points(
        geomtx.load_model("nano"), dataclasses.replace(scene, masks=masks), num_query_views=1, points_per_view=60
    )
    own = observed.view == 0
    assert (observed.coords_px[own, 0] > 120).all()
    assert observe_points(scene).xyz.shape[1] == 3
