"""Photos to a scene by matched pixels, with a model that knows the truth in place of a network."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

import geomtx
from geomtx.geometry import transform_points
from geomtx.inference import PairedView, PairModel, PairPrediction
from geomtx.metrics import pairwise_pose_errors
from geomtx.scene.pairs import AlignmentOptions, SparseOptions, match_photos
from geomtx.types import DenseMap, Tokens
from scene.pairs.point_maps import LONG_FOCAL, make_surface_truth

NUM, SIZE = 3, (32, 48)
NONE = SparseOptions(coarse_steps=2, fine_steps=0)
FEW = SparseOptions(coarse_steps=80, fine_steps=20)


class ExactMatcher(PairModel):
    """True points in metres, and descriptors that tell where in the world a pixel's point is."""

    metric = True
    has_descriptors = True

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(patch_size=16)
        self.truth = make_surface_truth(NUM, SIZE)
        self.waves = torch.randn(3, 40)
        self.decoded = 0

    def encode(self, images) -> Tokens:
        return Tokens({0: images.mean((1, 2, 3))[:, None, None, None]}, 0, tuple(images.shape[-2:]), (1, 1))

    def decode(self, first, second) -> PairPrediction:
        self.decoded += 1
        i, j = (round(float(tokens.layer(0)) * 100) for tokens in (first, second))
        return PairPrediction(*(self.see(i, image) for image in (i, j)))

    def see(self, camera: int, image: int) -> PairedView:
        world = self.truth.points[image].float()
        local = transform_points(self.truth.cam_from_world[camera].float(), world.flatten(0, 1)).view_as(world)
        phase = 1.5 * world @ self.waves
        confidence = torch.full((1, *SIZE), 30.0)
        descriptors = normalize(torch.cat([phase.cos(), phase.sin()], dim=-1), dim=-1)
        return PairedView(DenseMap(local[None], confidence), DenseMap(descriptors[None], confidence))


@pytest.fixture(scope="module")
def made():
    torch.manual_seed(3)
    model = ExactMatcher()
    images = torch.stack([torch.full((3, *SIZE), index / 100) for index in range(NUM)])
    return model, images, geomtx.reconstruct(model, images, alignment=FEW)


def test_matches_give_the_true_scene_in_metres(made):
    model, _, scene = made
    assert scene.units == "metres"
    errors = pairwise_pose_errors(scene.cameras.cam_from_world.double(), model.truth.cam_from_world)
    assert errors.rotation_deg.max() < 2
    ratio = scene.predictions.depth.value.double() / torch.stack(model.truth.depth)
    assert abs(ratio.median() - 1) < 0.02
    torch.testing.assert_close(scene.cameras.intrinsics[:, 0, 0], torch.full((NUM,), LONG_FOCAL), rtol=0.1, atol=0)


@pytest.mark.parametrize("num_views", [1, 2, NUM])
def test_points_are_aligned_in_metres_too(made, num_views):
    """Whose scales the published alignment holds at one half."""
    model, images, _ = made
    scene = geomtx.reconstruct(model, images[:num_views], alignment=AlignmentOptions())
    assert scene.units == "metres"
    ratio = scene.predictions.depth.value.double() / torch.stack(model.truth.depth[:num_views])
    assert abs(ratio.median() - 1) < 0.02
    assert scene.matched is None


def test_matched_pixels_are_kept_saved_refined_and_exported(made, tmp_path):
    _, _, scene = made
    view, point, coords = scene.matched
    assert torch.bincount(point).min() >= 2
    assert ((coords >= 0) & (coords < torch.tensor([SIZE[1], SIZE[0]]))).all()
    scene.save(tmp_path, formats=("colmap-text",), report=False)
    again = geomtx.Scene.load(tmp_path)
    assert all(torch.equal(one, two) for one, two in zip(again.matched, scene.matched, strict=True))
    refined = geomtx.refine(again, focal="known", strict=True)
    assert f"{int(point.max()) + 1:,} points" in refined.provenance["refinement"]
    lines = next(tmp_path.rglob("points3D.txt")).read_text().splitlines()
    tracks = [line.split()[8:] for line in lines if not line.startswith("#")]
    observed = {(int(each[i]), int(each[i + 1])) for each in tracks for i in range(0, len(each), 2) if len(each) > 2}
    assert len({image for image, _ in observed}) == NUM
    pixels = {(int(v), *map(float, xy)) for v, xy in zip(view, coords, strict=True)}
    found = geomtx.scene.observe_points(scene, max_points=20)
    assert len(found.xyz) == 20
    of_matches = [(int(v), *map(float, xy)) in pixels for v, xy in zip(found.view, found.coords_px, strict=True)]
    assert all(of_matches)


def test_matches_off_the_surfaces_give_no_points(made):
    _, _, scene = made
    wrong = scene.matched._replace(coords_px=scene.matched.coords_px.flip(0))
    few = geomtx.scene.observe_points(dataclasses.replace(scene, matched=wrong), tolerance=1e-5, max_points=None)
    none = geomtx.scene.observe_points(dataclasses.replace(scene, matched=None), tolerance=1e-5, max_points=None)
    assert len(few.xyz) < len(none.xyz) + len(wrong.view) / 10


def test_known_poses_that_matches_contradict_do_not_take_their_place(made):
    """The scene is in their world, with cameras of its own; focal lengths are kept."""
    model, images, scene = made
    poses = scene.cameras.cam_from_world.double().clone()
    poses[..., 3] *= 2
    poses[2, :, 3] += torch.tensor([0.5, 0.5, 0.5])
    views = geomtx.Views.from_images(images, patch_size=16)
    intrinsics = scene.cameras.intrinsics.double()
    known = geomtx.scene.KnownCameras(views.names, poses, intrinsics, (SIZE,) * NUM, units="feet")
    found = geomtx.reconstruct(model, views, cameras=known, alignment=FEW)
    assert found.units == "feet"
    torch.testing.assert_close(found.cameras.intrinsics, scene.cameras.intrinsics)
    off = (found.cameras.cam_from_world - poses.float()).abs().amax((1, 2))
    assert off[:2].max() < 0.3 < off[2]
    assert "alignment" in found.provenance


def test_windows_share_their_matches(made):
    model, images, whole = made
    parts = geomtx.reconstruct(model, images, alignment=NONE, window=geomtx.scene.WindowPlan(2, 1))
    view, point, coords = parts.matched
    assert (point.diff() >= 0).all()
    of_point = [set(view[point == index].tolist()) for index in range(int(point.max()) + 1)]
    assert min(map(len, of_point)) == 2
    assert {0, 1, 2} in of_point  # seen in both windows, by way of the view that they share
    assert {0, 2} not in of_point
    pixels = {(int(v), *xy) for v, xy in zip(whole.matched.view, whole.matched.coords_px.tolist(), strict=True)}
    assert all((int(v), *xy) in pixels for v, xy in zip(view, coords.tolist(), strict=True))


def test_masked_pixels_match_nothing(made):
    model, images, _ = made
    masks = torch.ones(NUM, *SIZE, dtype=torch.bool)
    masks[1, :, :20] = False
    views = geomtx.Views.from_images(images, patch_size=16).with_masks(list(masks))
    matched = geomtx.reconstruct(model, views, alignment=NONE).matched
    x = matched.coords_px[:, 0]
    assert (x[matched.view == 1] >= 20).all()
    assert (x[matched.view == 0] < 20).any()


def test_a_run_goes_on_with_its_matches(made, tmp_path):
    model, images, scene = made
    model.decoded = 0
    first = geomtx.reconstruct(model, images, folder=tmp_path, alignment=NONE)
    assert model.decoded == 6
    (tmp_path / "matches-0000004.safetensors").unlink()
    second = geomtx.reconstruct(model, images, folder=tmp_path, alignment=NONE)
    assert model.decoded == 7
    for found in (first, second):
        assert all(torch.equal(one, two) for one, two in zip(found.matched, scene.matched, strict=True))


def test_what_cannot_be_matched_is_said_before_work(made):
    model, images, _ = made
    model.decoded = 0
    with pytest.raises(ValueError, match=r"^pairs must be in both directions to be aligned by matches, got \(0, 1\)"):
        geomtx.reconstruct(model, images, graph=torch.tensor([[0, 1], [1, 2], [2, 1]]))
    with pytest.raises(ValueError, match=r"^fine_steps must be a whole number, at least 0, got -1"):
        geomtx.reconstruct(model, images, alignment=FEW._replace(fine_steps=-1))
    with pytest.raises(ValueError, match=r"^last_rate must be at least 0, got -1"):
        geomtx.reconstruct(model, images, alignment=AlignmentOptions(last_rate=-1))
    with pytest.raises(ValueError, match=r"^alignment must be AlignmentOptions or SparseOptions, got 'matches'"):
        geomtx.reconstruct(model, images, alignment="matches")
    without = geomtx.DUSt3R(geomtx.DUSt3RConfig.tiny(depth=2, head="linear"))
    with pytest.raises(ValueError, match=r"^alignment must be of points for a DUSt3R, which has no descriptors"):
        geomtx.reconstruct(without, images, alignment=SparseOptions())
    assert model.decoded == 0


@pytest.mark.parametrize("has_descriptors", [True, False])
def test_two_photos_are_matched_where_they_show_the_same(has_descriptors):
    """Also of another size, in pixels of the photos."""
    torch.manual_seed(4)
    model = ExactMatcher()
    model.has_descriptors = has_descriptors
    images = torch.stack([torch.full((3, *SIZE), index / 100) for index in range(2)])
    views = geomtx.Views.from_images(images, patch_size=16)
    found = match_photos(model, views)
    assert len(found.confidence) > 10
    x, y = found.coords1_px.long().unbind(1)
    seen = transform_points(model.truth.cam_from_world[1], model.truth.points[0][y, x])
    coords = LONG_FOCAL * seen[:, :2] / seen[:, 2:] + torch.tensor([SIZE[1] / 2, SIZE[0] / 2])
    assert (coords - found.coords2_px).norm(dim=1).median() < 1
    torch.testing.assert_close(found.confidence, torch.full_like(found.confidence, 30))
    assert not len(match_photos(model, views, min_confidence=30).confidence)
    masked = views.with_masks([torch.zeros(SIZE, dtype=torch.bool), torch.ones(SIZE, dtype=torch.bool)])
    assert not len(match_photos(model, masked).confidence)
    with pytest.raises(ValueError, match=r"^views must be two photos to be matched, got 1$"):
        match_photos(model, images[:1])
    with pytest.raises(ValueError, match=r"^model must be one that sees pairs, such as a MASt3R, got a Linear$"):
        match_photos(nn.Linear(2, 2), images)
