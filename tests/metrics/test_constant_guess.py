import dataclasses

import pytest
import torch

from geomtx.data.synthetic.render import render_scenes
from geomtx.data.synthetic.rooms import RoomStyle
from geomtx.geometry import invert_rigid, normalize_scene
from geomtx.metrics import ConstantGuess, evaluate_predictions, fit_constant_guess, summarize
from geomtx.types import Cameras, SceneBatch, TrackLabels

HW = (12, 16)


def render(seeds, views=3):
    return render_scenes(list(seeds), views, HW, num_tracks=6, style=RoomStyle(shadows=False), dtype=torch.float64)


@pytest.fixture(scope="module")
def scenes() -> list[SceneBatch]:
    return [render(range(6)), render(range(10, 13), views=4)]


@pytest.fixture(scope="module")
def guess(scenes) -> ConstantGuess:
    return fit_constant_guess(scenes)


def alike(count: int, generator: torch.Generator | None = None) -> SceneBatch:
    """Scenes that are all the same but for their unit: three cameras on a line, one wall with a step in it."""
    depth = torch.full((count, 3, *HW), 2.0, dtype=torch.float64)
    depth[:, 0, :, :8], depth[:, 1:, :6] = 1.0, 1.4
    cam_from_world = torch.eye(3, 4, dtype=torch.float64).repeat(count, 3, 1, 1)
    # From the first to any other along (0.6, 0, 0.8), between the others along y.
    cam_from_world[:, 1:, :, 3] = torch.tensor([0.3, 0.0, 0.4]).double()
    cam_from_world[:, 2, 1, 3] = 0.002
    intrinsics = torch.tensor([[14.0, 0, 8], [0, 14, 6], [0, 0, 1]]).double().expand(count, 3, 3, 3)
    coords = torch.tensor([[3.0, 2], [9, 8], [12, 4], [7.5, 5.5]]).double().expand(count, 3, 4, 2).clone()
    visible = torch.ones(count, 3, 4, dtype=torch.bool)
    visible[:, 2, 0] = False
    unit = 1 + torch.arange(count, dtype=torch.float64)[:, None, None, None]
    cam_from_world[..., 3:] *= unit
    tracks = TrackLabels(coords, visible, torch.ones(count, 4, dtype=torch.bool))
    images = torch.rand(count, 3, 3, *HW, dtype=torch.float64)
    return SceneBatch(images, Cameras(cam_from_world, intrinsics), depth=depth * unit, tracks=tracks)


def test_what_is_always_the_same_is_guessed():
    batch = normalize_scene(alike(6))[0]
    guess = fit_constant_guess([batch])
    found = summarize([evaluate_predictions(guess.predict(batch), batch)])
    # 1000 directions over half a sphere are up to 3 degrees apart.
    assert found["auc_5"] > 0.5
    assert found["rta_5"] == found["rra_5"] == 1
    assert found["depth_abs_rel"] < 1e-6
    assert found["depth_delta"] == 1
    assert found["head_overall"] < 1e-3, "one map for both other views, which are 0.002 apart"
    assert found["track_delta"] == 1
    assert found["track_visibility"] == pytest.approx(7 / 8)
    assert guess.visible == pytest.approx(7 / 8)
    torch.testing.assert_close(guess.intrinsics, batch.cameras.intrinsics[0, 0])


def test_two_directions_serve_all_pairs():
    """Of the first view with another, and of two others."""
    guess = fit_constant_guess([alike(4)])
    cameras = guess.predict(alike(1)).cameras.cam_from_world[0]
    expected = torch.tensor([[0.6, 0.0, 0.8], [0.0, 1, 0]]).double()
    assert ((guess.translations * expected).sum(-1).abs() > torch.tensor(3.5).deg2rad().cos()).all()
    assert torch.equal(cameras[:, :, :3], torch.eye(3).double().expand(3, 3, 3))
    between = torch.nn.functional.normalize(cameras[2, :, 3] - cameras[1, :, 3], dim=0)
    torch.testing.assert_close(between, guess.translations[1])
    torch.testing.assert_close(cameras[2, :, 3], cameras[1, :, 3], rtol=0, atol=2e-3)


def test_no_simple_guess_is_better(scenes, guess):
    """On the scenes that it was fitted to: of depth a plane, of points a plane, of tracks the image's centre."""
    found = summarize(evaluate_predictions(guess.predict(b), b) for b in scenes)
    plane = dataclasses.replace(guess, depth=torch.ones_like(guess.depth), pull=0.0)
    wall = torch.stack(torch.meshgrid(torch.arange(12.0), torch.arange(16.0), indexing="ij"), -1).double() / 12
    wall = torch.cat([wall, torch.ones(*HW, 1).double()], dim=-1).expand(2, -1, -1, -1)
    plane = dataclasses.replace(plane, points=wall)
    other = summarize(evaluate_predictions(plane.predict(b), b) for b in scenes)
    assert found["depth_abs_rel"] < other["depth_abs_rel"]
    assert found["head_overall"] < other["head_overall"]
    assert found["track_delta"] >= other["track_delta"]
    for axis in torch.eye(3).double():
        turned = dataclasses.replace(guess, translations=axis.expand(2, 3))
        assert found["auc_30"] >= summarize(evaluate_predictions(turned.predict(b), b) for b in scenes)["auc_30"] - 0.02


def test_the_direction_for_either_measure(scenes):
    """Pairs that are turned by more than 30 degrees count for one and not for the other."""
    cameras = [alike(4), alike(4)]
    # Most pairs are turned by a right angle, which no guess without rotation gets.
    turned = cameras[1].cameras.cam_from_world.clone()
    turned[:, 1:, :, :3] = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]).double()
    turned[:, 1:, :, 3] = torch.tensor([0.0, 0.8, -0.6]).double()
    far = cameras[1]._replace(cameras=cameras[1].cameras._replace(cam_from_world=turned), depth=None, tracks=None)
    near = cameras[0]._replace(depth=None, tracks=None)
    found = {aim: fit_constant_guess([near, far, far], direction=aim).translations[0] for aim in ("auc", "rta")}
    assert (found["auc"] * torch.tensor([0.6, 0, 0.8]).double()).sum().abs() > 0.99
    assert (found["rta"] * torch.tensor([0.8, 0, -0.6]).double()).sum().abs() > 0.85
    assert (found["rta"] * torch.tensor([0.6, 0, 0.8]).double()).sum().abs() < 0.5


def test_pictures_are_not_looked_at(scenes, guess):
    other = fit_constant_guess([b._replace(images=torch.rand_like(b.images)) for b in scenes])
    for mine, theirs in zip(dataclasses.astuple(guess), dataclasses.astuple(other), strict=True):
        assert torch.equal(mine, theirs) if torch.is_tensor(mine) else mine == theirs
    black = scenes[0]._replace(images=torch.zeros_like(scenes[0].images))
    a, b = guess.predict(scenes[0]), guess.predict(black)
    torch.testing.assert_close((a.cameras, a.depth, a.points, a.tracks), (b.cameras, b.depth, b.points, b.tracks))


def test_neither_world_nor_unit_matter(scenes, guess):
    moved = []
    for batch in scenes:
        cameras = batch.cameras.cam_from_world.clone()
        cameras[..., 3] *= 100
        moved.append(
            batch._replace(cameras=batch.cameras._replace(cam_from_world=cameras), depth=batch.depth * 100, points=None)
        )
    other = fit_constant_guess(moved)
    torch.testing.assert_close(other.depth, guess.depth)
    torch.testing.assert_close(other.points, guess.points)
    torch.testing.assert_close(other.translations, guess.translations)


def test_what_a_mask_hides_counts_for_nothing(scenes, guess):
    """Without a mask, depth says what is known."""
    masks = [torch.rand(b.depth.shape) < 0.7 for b in scenes]
    hidden = [
        b._replace(
            mask=m,
            depth=torch.where(m, b.depth, torch.nan),
            points=torch.where(m[..., None], b.points, torch.inf),
        )
        for b, m in zip(scenes, masks, strict=True)
    ]
    clean = [b._replace(mask=m) for b, m in zip(scenes, masks, strict=True)]
    bare = [b._replace(mask=None, depth=torch.where(m, b.depth, 0)) for b, m in zip(scenes, masks, strict=True)]
    a, b, c = map(fit_constant_guess, (hidden, clean, bare))
    assert a.depth.isfinite().all()
    assert a.points.isfinite().all()
    torch.testing.assert_close((a.depth, a.points), (b.depth, b.points))
    torch.testing.assert_close((c.depth, c.points), (b.depth, b.points))
    assert not torch.equal(a.depth, guess.depth)


@pytest.mark.parametrize("views", [1, 2, 5])
def test_any_number_of_views(guess, views):
    batch = render([77, 78], views)
    found = guess.predict(batch)
    assert found.cameras.cam_from_world.shape == (2, views, 3, 4)
    assert found.cameras.intrinsics.shape == (2, views, 3, 3)
    assert found.depth.value.shape == found.depth.confidence.shape == found.points.confidence.shape == (2, views, *HW)
    assert found.points.value.shape == (2, views, *HW, 3)
    assert found.tracks.coords_px.shape == (2, views, 6, 2)
    torch.testing.assert_close(found.tracks.coords_px[:, 0], batch.tracks.coords_px[:, 0])
    for view in range(2, views):
        assert torch.equal(found.depth.value[:, view], found.depth.value[:, 1])
    assert not evaluate_predictions(found, batch).failed.any()


def test_parts_that_are_not_known_are_none(scenes):
    batch = scenes[0]
    pictures = fit_constant_guess([SceneBatch(batch.images)])
    assert all(part is None for part in pictures.predict(batch))
    cameras = fit_constant_guess([SceneBatch(batch.images, batch.cameras)]).predict(batch)
    assert cameras.cameras is not None
    assert cameras.depth is cameras.points is cameras.tracks is None
    single = fit_constant_guess([render(range(4), views=1)]).predict(batch)
    assert single.cameras is single.tracks is None
    assert single.depth is not None


def test_unknown_cameras_are_left_out():
    batch = alike(6)
    mask = torch.ones(6, 3, dtype=torch.bool)
    mask[:, 2] = False
    broken = batch.cameras.cam_from_world.clone()
    broken[:, 2] = torch.nan
    found = fit_constant_guess(
        [batch._replace(cameras=batch.cameras._replace(cam_from_world=broken), camera_mask=mask)]
    )
    assert (found.translations[0] * torch.tensor([0.6, 0, 0.8]).double()).sum().abs() > 0.995
    assert all(value.isfinite().all() for value in dataclasses.astuple(found) if torch.is_tensor(value))


def test_centers_of_the_cameras_are_far_from_each_other(guess):
    """In float32, too: a translation of length 0 has no direction."""
    cameras = guess.predict(render([5], 4)._replace(images=torch.rand(1, 4, 3, *HW))).cameras.cam_from_world
    assert cameras.dtype == torch.float32
    centers = invert_rigid(cameras[0])[..., 3]
    assert torch.pdist(centers).min() > 1e-4 * guess.distance


@pytest.mark.usefixtures("unchecked")
def test_bad_arguments(scenes, guess):
    with pytest.raises(ValueError, match=r"^batches must hold at least 2 scenes, got 1$"):
        fit_constant_guess([render([1])])
    with pytest.raises(ValueError, match=r"^batches must hold at least 2 scenes, got 0$"):
        fit_constant_guess([])
    wide = render_scenes([1, 2], 2, (12, 24))
    with pytest.raises(ValueError, match=r"^batches must hold images of one size, got \(12, 16\), \(12, 24\)$"):
        fit_constant_guess([scenes[0], wide])
    with pytest.raises(ValueError, match=r"^direction must be one of 'auc', 'rta', got 'ate'$"):
        fit_constant_guess(scenes, direction="ate")
    with pytest.raises(
        ValueError, match=r"^batch.images must have shape \(B, S, 3, 12, 16\), got \(2, 2, 3, 12, 24\)$"
    ):
        guess.predict(wide)
