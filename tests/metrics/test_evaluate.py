import math

import pytest
import torch
from torch.utils._pytree import tree_map

import geomtx
from geomtx import Cameras, DenseMap, Predictions, Tracks
from geomtx.data.synthetic.render import render_scenes
from geomtx.geometry import compose_rigid, transform_points
from geomtx.geometry.scene_frame import normalize_scene
from geomtx.metrics import Evaluation, depth_scores, evaluate_predictions, pairwise_pose_errors, pose_auc, summarize
from geomtx.types import SceneBatch

POSE = tuple(f"{name}_{t}" for name in ("auc", "rra", "rta") for t in (5, 15, 30))
POINTS = tuple(f"{name}_{m}" for name in ("head", "unprojected") for m in ("accuracy", "completeness", "overall"))
SHARES = (*POSE, "depth_delta", "track_jaccard", "track_delta", "track_visibility")
ERRORS = ("ate", "depth_abs_rel", *POINTS)
HW = (24, 32)


@pytest.fixture(scope="module")
def scenes() -> SceneBatch:
    """Two scenes of three views, in their own world."""
    return render_scenes([11, 12], 3, HW, num_tracks=20, dtype=torch.float64)


def perfect(batch: SceneBatch) -> Predictions:
    """The truth as a model would say it, but in another world and unit, which nothing may depend on."""
    batch, _ = normalize_scene(batch)
    moved = torch.tensor([[0, 0, 1, 0.3], [1, 0, 0, -0.5], [0, 1, 0, 2]], dtype=torch.float64)
    b, s = batch.images.shape[:2]
    back = geomtx.invert_rigid(moved).expand(b, s, 3, 4)
    cam_from_world = compose_rigid(batch.cameras.cam_from_world, back).clone()
    cam_from_world[..., 3] *= 2.5
    points = transform_points(moved, batch.points.flatten(0, 3)).reshape(batch.points.shape) * 2.5
    visible = batch.tracks.visible.double()
    return Predictions(
        cameras=Cameras(cam_from_world, batch.cameras.intrinsics),
        depth=DenseMap(batch.depth * 2.5, torch.ones_like(batch.depth)),
        points=DenseMap(points, torch.ones_like(batch.depth)),
        tracks=Tracks(batch.tracks.coords_px, visible, visible),
    )


def test_the_truth_in_another_world_and_unit(scenes):
    found = evaluate_predictions(perfect(scenes), scenes)
    assert {*SHARES, *ERRORS, "failed"} == set(Evaluation._fields)
    for name in SHARES:
        assert getattr(found, name).tolist() == [1, 1], name
    for name in ERRORS:
        value = getattr(found, name)
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, torch.zeros(2).double(), rtol=0, atol=1e-6)
    assert found.failed.tolist() == [False, False]


def test_numbers_are_those_of_the_single_measures(scenes):
    truth = perfect(scenes)
    cameras = truth.cameras.cam_from_world + torch.randn(2, 3, 3, 4).double() * 0.05
    depth = truth.depth.value * (1 + 0.3 * torch.rand(2, 3, *HW).double())
    found = evaluate_predictions(
        truth._replace(cameras=Cameras(cameras, truth.cameras.intrinsics), depth=truth.depth._replace(value=depth)),
        scenes,
    )
    errors = pairwise_pose_errors(cameras, scenes.cameras.cam_from_world)
    expected = pose_auc(errors.larger_deg(), (15,))[:, 0]
    torch.testing.assert_close(found.auc_15, expected)
    assert (expected < 1).all()
    scores = depth_scores(depth, scenes.depth, scenes.mask)
    torch.testing.assert_close(found.depth_abs_rel, scores.abs_rel, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.depth_delta, scores.delta_1)
    assert (found.unprojected_overall > 0.01).all()
    assert (found.head_overall < 1e-6).all()


@pytest.mark.parametrize("factor", [-1.0, 0.0])
def test_depth_behind_the_camera_fails(scenes, factor):
    truth = perfect(scenes)
    depth = truth.depth.value.clone()
    depth[1] *= factor
    found = evaluate_predictions(truth._replace(depth=truth.depth._replace(value=depth)), scenes)
    assert found.depth_delta.tolist() == [1, 0]
    assert found.depth_abs_rel[1].isnan()
    assert found.failed.tolist() == [False, True]


def test_the_share_of_right_depths_is_that_below_1_25(scenes):
    """Depths are up to 1.7 times too far, so that many are within 1.25² and not within 1.25."""
    truth = perfect(scenes)
    depth = truth.depth.value * (1 + 0.7 * torch.rand_like(truth.depth.value))
    scores = depth_scores(depth, scenes.depth, scenes.mask)
    assert (scores.delta_1 < scores.delta_2 - 0.05).all()
    found = evaluate_predictions(truth._replace(depth=truth.depth._replace(value=depth)), scenes)
    torch.testing.assert_close(found.depth_delta, scores.delta_1, rtol=0, atol=1e-3)


def test_tracks_are_seen_above_the_threshold_of_visibility(scenes):
    """Every visibility lies between 0 and the threshold, or between it and 1."""
    truth = perfect(scenes)
    unsure = truth.tracks._replace(visibility=0.3 + 0.4 * truth.tracks.visibility)
    assert evaluate_predictions(truth._replace(tracks=unsure), scenes).track_visibility.tolist() == [1, 1]
    for threshold, seen in ((0.2, True), (0.8, False)):
        found = evaluate_predictions(truth._replace(tracks=unsure), scenes, visibility_threshold=threshold)
        share = (scenes.tracks.visible[:, 1:] == seen).double().mean((1, 2))
        torch.testing.assert_close(found.track_visibility, share)


def test_empty_track_slots_are_not_scored(scenes):
    truth = perfect(scenes)
    empty = torch.arange(scenes.tracks.valid.shape[1]) % 2 == 0
    tracks = scenes.tracks._replace(
        valid=scenes.tracks.valid & ~empty,
        visible=scenes.tracks.visible & ~empty,
        coords_px=torch.where(empty[:, None], 0.0, scenes.tracks.coords_px),
    )
    wrong = truth.tracks._replace(
        coords_px=torch.where(empty[:, None], -500.0, truth.tracks.coords_px),
        visibility=torch.where(empty, 1.0, truth.tracks.visibility),
    )
    found = evaluate_predictions(truth._replace(tracks=wrong), scenes._replace(tracks=tracks))
    for name in ("track_jaccard", "track_delta", "track_visibility"):
        assert getattr(found, name).tolist() == [1, 1]


def test_lengths_are_in_units_of_the_scene(scenes):
    """Whatever the unit of the batch."""
    predictions = perfect(scenes)
    noisy = predictions.points.value + torch.randn(2, 3, *HW, 3).double()
    predictions = predictions._replace(points=predictions.points._replace(value=noisy))
    cameras = scenes.cameras.cam_from_world.clone()
    cameras[..., 3] *= 1000
    in_millimetres = scenes._replace(
        cameras=scenes.cameras._replace(cam_from_world=cameras),
        depth=scenes.depth * 1000,
        points=None if scenes.points is None else scenes.points * 1000,
    )
    a, b = (evaluate_predictions(predictions, batch) for batch in (scenes, in_millimetres))
    torch.testing.assert_close(a.head_overall, b.head_overall, rtol=1e-4, atol=0)
    assert (a.head_overall > 0.05).all()


@pytest.mark.parametrize("part", ["cameras", "depth", "points", "tracks"])
def test_what_is_not_there_is_nan_and_nothing_else(scenes, part):
    touched = {
        "cameras": {*POSE, "ate", *POINTS[3:]},
        "depth": {"depth_abs_rel", "depth_delta", *POINTS[3:]},
        "points": set(POINTS[:3]),
        "tracks": {"track_jaccard", "track_delta", "track_visibility"},
    }[part]
    found = evaluate_predictions(perfect(scenes)._replace(**{part: None}), scenes)
    assert {name for name in Evaluation._fields[:-1] if getattr(found, name).isnan().all()} == touched
    assert not found.failed.any()


def test_a_batch_of_pictures_only(scenes):
    found = evaluate_predictions(perfect(scenes), SceneBatch(scenes.images))
    assert all(getattr(found, name).isnan().all() for name in Evaluation._fields[:-1])
    assert found.failed.shape == (2,)


@pytest.mark.parametrize("part", ["cameras", "depth", "points", "tracks"])
def test_predictions_that_are_not_finite_are_counted(scenes, part):
    predictions = perfect(scenes)
    value = getattr(predictions, part)
    broken = value[0].clone()
    broken[1, 1] = math.nan
    found = evaluate_predictions(predictions._replace(**{part: value._replace(**{value._fields[0]: broken})}), scenes)
    assert found.failed.tolist() == [False, True]
    untouched = evaluate_predictions(predictions, scenes)
    for name in Evaluation._fields[:-1]:
        torch.testing.assert_close(getattr(found, name)[0], getattr(untouched, name)[0])
    if part == "cameras":
        assert found.auc_30[1].item() == pytest.approx(1 / 3), "two of the three pairs"
        assert found.unprojected_overall[1].isnan()
    if part == "depth":
        assert found.depth_abs_rel[1].isnan()
        assert found.depth_delta[1].isnan()
    if part == "points":
        assert found.head_overall[1].isnan()
    if part == "tracks":
        assert found.track_delta[1] < 1
    summary = summarize([found])
    assert (summary["scenes"], summary["failed"]) == (2, 1)


def test_garbage_that_the_truth_hides_changes_nothing(scenes):
    predictions = perfect(scenes)
    mask = torch.rand(2, 3, *HW) < 0.7
    masked = scenes._replace(mask=mask)
    expected = evaluate_predictions(predictions, masked)
    depth = torch.where(mask, predictions.depth.value, math.nan)
    points = torch.where(mask[..., None], predictions.points.value, math.inf)
    hidden = masked._replace(depth=torch.where(mask, scenes.depth, math.nan))
    if scenes.points is not None:
        hidden = hidden._replace(points=torch.where(mask[..., None], scenes.points, math.nan))
    found = evaluate_predictions(
        predictions._replace(
            depth=predictions.depth._replace(value=depth), points=predictions.points._replace(value=points)
        ),
        hidden,
    )
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0, equal_nan=True)
    assert not found.failed.any()


def test_without_a_mask_depth_says_what_is_known(scenes):
    """Of the unit, too, which lengths are measured in."""
    predictions = perfect(scenes)
    cameras = predictions.cameras.cam_from_world + 0.05 * torch.randn(2, 3, 3, 4).double()
    predictions = predictions._replace(cameras=predictions.cameras._replace(cam_from_world=cameras))
    mask = torch.rand(2, 3, *HW) < 0.7
    mask[..., : HW[1] // 2] = False
    for unknown in (0.0, math.nan):
        bare = scenes._replace(mask=None, depth=torch.where(mask, scenes.depth, unknown))
        expected = evaluate_predictions(predictions, bare._replace(mask=mask))
        torch.testing.assert_close(evaluate_predictions(predictions, bare), expected)
    assert (expected.ate > 0).all()


@pytest.mark.parametrize("views", [1, 2])
def test_few_views(scenes, views):
    cut = [part if part is None else part[:, :views] for part in (scenes.images, *scenes[3:6])]
    tracks = scenes.tracks._replace(
        coords_px=scenes.tracks.coords_px[:, :views], visible=scenes.tracks.visible[:, :views]
    )
    batch = SceneBatch(cut[0], Cameras(*(c[:, :views] for c in scenes.cameras)), None, *cut[1:], tracks=tracks)
    found = evaluate_predictions(perfect(batch), batch)
    assert found.ate.isnan().all(), "two cameras always fit"
    assert found.auc_5.isnan().all() == (views == 1)
    assert (found.depth_delta == 1).all()
    assert (found.head_overall < 1e-6).all()


def test_summary_over_batches_of_any_size():
    def evaluation(*values: float) -> Evaluation:
        column = torch.tensor(values, dtype=torch.float64)
        failed = column.isnan()
        return Evaluation(*[column] * 20, torch.full_like(column, math.nan), failed=failed)

    summary = summarize([evaluation(1.0), evaluation(2.0, math.nan, 6.0)])
    assert summary["ate"] == 3.0
    assert math.isnan(summary["track_visibility"])
    assert (summary["scenes"], summary["failed"]) == (4, 1)
    assert math.isnan(summarize([])["auc_5"])


def test_a_model_in_low_precision(tiny_model, scenes):
    images = scenes.images[:, :, :, :14, :28].bfloat16()
    batch = scenes._replace(
        images=images, depth=scenes.depth[..., :14, :28],
        points=None if scenes.points is None else scenes.points[..., :14, :28, :],
        mask=None if scenes.mask is None else scenes.mask[..., :14, :28], tracks=None,
    )  # fmt: skip
    found = evaluate_predictions(tiny_model.bfloat16()(images), batch)
    for name in (*POSE, "ate", "depth_abs_rel", "depth_delta", *POINTS):
        value = getattr(found, name)
        assert value.dtype == torch.float64
        assert value.isfinite().all(), name
        assert not value.requires_grad
    assert (found.auc_5 < 1).all()


@pytest.mark.cuda
def test_the_same_on_a_gpu(scenes):
    predictions = perfect(scenes)
    cameras = predictions.cameras.cam_from_world + torch.randn(2, 3, 3, 4).double() * 0.05
    noisy = predictions.points.value + 0.1 * torch.randn(2, 3, *HW, 3).double()
    predictions = predictions._replace(
        cameras=predictions.cameras._replace(cam_from_world=cameras), points=predictions.points._replace(value=noisy)
    )
    there = [tree_map(lambda x: x.cuda() if torch.is_tensor(x) else x, value) for value in (predictions, scenes)]
    found = evaluate_predictions(*there)
    assert {value.device.type for value in found} == {"cuda"}
    expected = evaluate_predictions(predictions, scenes)
    torch.testing.assert_close(tuple(v.cpu() for v in found), tuple(expected), rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("cameras", r"^predictions.cameras.cam_from_world must have shape \(2, 3, 3, 4\), got \(2, 2, 3, 4\)$"),
        ("depth", r"^predictions.depth.value must have shape \(2, 3, 24, 32\), got \(2, 2, 24, 32\)$"),
        ("points", r"^predictions.points.value must have shape \(2, 3, 24, 32, 3\), got \(2, 2, 24, 32, 3\)$"),
        ("tracks", r"^predictions.tracks.coords_px must have shape \(2, 3, 20, 2\), got \(2, 2, 20, 2\)$"),
    ],
)
def test_predictions_of_another_batch_are_refused(scenes, part, message):
    value = getattr(perfect(scenes), part)
    with pytest.raises(ValueError, match=message):
        evaluate_predictions(Predictions(**{part: type(value)(*(x[:, :2] for x in value))}), scenes)
