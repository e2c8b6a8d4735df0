import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

import geomtx
from geometry.random_cameras import random_intrinsics, random_rigid
from geomtx import Cameras, DenseMap, MultitaskLoss, Predictions, SceneBatch, TrackLabels
from geomtx.losses import CameraTerm, DenseTerm, Term, TermLoss, TrackTerm, bearing_loss
from geomtx.types import TrackIterations

B, S, H, W, N = 2, 3, 20, 24, 5
NAN = float("nan")
PRESETS = [MultitaskLoss, MultitaskLoss.paper, MultitaskLoss.released]
NAMES = {
    "camera": {"loss_camera", "loss_T", "loss_R", "loss_FL"},
    "depth": {"loss_depth", "loss_conf_depth", "loss_reg_depth", "loss_grad_depth"},
    "points": {"loss_point", "loss_conf_point", "loss_reg_point", "loss_grad_point"},
    "tracks": {"loss_track", "loss_position", "loss_visibility", "loss_confidence"},
}


def random_batch() -> SceneBatch:
    visible = torch.rand(B, S, N) > 0.3
    visible[:, 0] = True
    batch = SceneBatch(
        torch.rand(B, S, 3, H, W),
        Cameras(random_rigid(B, S), random_intrinsics(B, S)),
        depth=torch.rand(B, S, H, W, dtype=torch.float64) + 0.5,
        mask=torch.rand(B, S, H, W) > 0.3,
        tracks=TrackLabels(torch.rand(B, S, N, 2).double() * 20, visible, torch.ones(B, N, dtype=torch.bool)),
    )
    return geomtx.normalize_scene(batch)[0]


def random_predictions() -> Predictions:
    """Leaves that take gradients."""

    def leaf(*shape: int, start: float = 0.0) -> Tensor:
        return (torch.randn(*shape, dtype=torch.float64).abs() + start).requires_grad_()

    return Predictions(
        pose_encodings=leaf(4, B, S, 9),
        depth=DenseMap(leaf(B, S, H, W), leaf(B, S, H, W, start=1.0)),
        points=DenseMap(leaf(B, S, H, W, 3), leaf(B, S, H, W, start=1.0)),
        track_iterations=TrackIterations(leaf(4, B, S, N, 2), leaf(B, S, N), leaf(B, S, N)),
    )


def leaves(predictions: Predictions) -> list[Tensor]:
    parts = (predictions.depth, predictions.points, predictions.track_iterations)
    return [predictions.pose_encodings, *(x for part in parts for x in part)]


def test_all_tasks_are_there_with_their_names():
    report = MultitaskLoss()(random_predictions(), random_batch())
    assert list(report.tasks) == ["camera", "depth", "points", "tracks"]
    assert report.terms.keys() == set().union(*NAMES.values())
    assert all(value.shape == () and value.requires_grad for value in (report.total, *report.terms.values()))


@pytest.mark.parametrize("preset", PRESETS)
def test_the_total_is_the_sum_of_weighted_tasks(preset):
    loss = preset()
    report = loss(random_predictions(), random_batch())
    torch.testing.assert_close(report.total, sum(report.tasks.values()))
    totals = {"camera": "loss_camera", "depth": "loss_depth", "points": "loss_point", "tracks": "loss_track"}
    for task, value in report.tasks.items():
        torch.testing.assert_close(value, loss.tasks[task].weight * report.terms[totals[task]])


@pytest.mark.parametrize("name", ["depth", "point"])
def test_dense_totals_are_the_sum_of_what_is_logged(name):
    terms = MultitaskLoss()(random_predictions(), random_batch()).terms
    parts = [value for key, value in terms.items() if key.endswith(f"_{name}") and key != f"loss_{name}"]
    assert len(parts) == 3
    torch.testing.assert_close(terms[f"loss_{name}"], sum(parts))


def test_bearing_is_added_with_its_weight():
    predictions, batch = random_predictions(), random_batch()
    plain, with_bearing = DenseTerm("points")(predictions, batch), DenseTerm("points", bearing=0.5)(predictions, batch)
    expected = bearing_loss(predictions.points.value, batch.points, batch.mask)
    torch.testing.assert_close(with_bearing.parts["loss_bearing"], expected)
    torch.testing.assert_close(with_bearing.total - plain.total, 0.5 * expected)


def test_terms_are_those_of_the_functions():
    predictions, batch = random_predictions(), random_batch()
    terms = MultitaskLoss()(predictions, batch).terms
    target = geomtx.encode_pose(*batch.cameras, (H, W))
    camera = geomtx.camera_loss(predictions.pose_encodings, target)
    depth = geomtx.aleatoric_loss(*predictions.depth, batch.depth, batch.mask)
    points = geomtx.aleatoric_loss(*predictions.points, batch.points, batch.mask)
    tracks = geomtx.track_loss(predictions.track_iterations, batch.tracks)
    expected = {
        "loss_camera": camera.total,
        "loss_T": camera.translation,
        "loss_R": camera.rotation,
        "loss_FL": camera.fov,
        "loss_conf_depth": depth.confidence,
        "loss_reg_depth": depth.regression,
        "loss_grad_depth": geomtx.gradient_loss(predictions.depth.value, batch.depth, batch.mask),
        "loss_conf_point": points.confidence,
        "loss_reg_point": points.regression,
        "loss_grad_point": geomtx.normal_loss(predictions.points.value, batch.points, batch.mask),
        "loss_track": tracks.total,
        "loss_position": tracks.position,
        "loss_visibility": tracks.visibility,
        "loss_confidence": tracks.confidence,
    }
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, msg=name)


def test_every_option_reaches_its_function():
    """Each number, changed, changes what its term gives."""
    predictions, batch = random_predictions(), random_batch()
    # Some quaternion is nearer to -q, some error is above 100.
    predictions = predictions._replace(pose_encodings=-predictions.pose_encodings)
    batch.depth[0, 0, 0, 0] = 300.0
    batch.points[0, 0, 0, 0] = 300.0
    batch.mask[0, 0, 0, 0] = True
    batch.cameras.cam_from_world[0, 1, 0, 3] = 300.0
    changes = {
        CameraTerm(): {
            "kind": "l2",
            "decay": 0.9,
            "sign_invariant": False,
            "part_weights": (1.0, 2.0, 0.5),
            "clamp": 100.0,
            "min_depth_pixels": H * W,
        },
        CameraTerm(kind="huber"): {"delta": 0.5},
        DenseTerm("depth"): {
            "gamma": 0.5,
            "alpha": 0.5,
            "quantile": 0.9,
            "clamp": 100.0,
            "regression": False,
            "gradient": None,
            "gradient_confidence": True,
            "min_pixels": B * S * H * W,
        },
        DenseTerm("depth", gradient_confidence=True): {"legacy_unmasked_log": True},
        DenseTerm("points"): {"gradient": "normal", "bearing": 0.5},
        DenseTerm("points", gradient="normal"): {"gradient_confidence": True},
        TrackTerm(): {
            "decay": 0.5,
            "kind": "huber",
            "threshold_px": 15.0,
            "visibility_weight": 2.0,
            "confidence_weight": 2.0,
            "visible_boost": 0.1,
            "min_points": B * S * N + 1,
        },
        TrackTerm(kind="huber"): {"delta": 1.0},
    }
    for term, options in changes.items():
        for name, value in options.items():
            assert replace(term, **{name: value})(predictions, batch).total != term(predictions, batch).total, name


@pytest.mark.parametrize("preset", PRESETS)
def test_every_prediction_learns_of_its_own_task_only(preset):
    predictions = random_predictions()
    report = preset()(predictions, random_batch())
    owners = ["camera", "depth", "depth", "points", "points", "tracks", "tracks", "tracks"]
    for task, value in report.tasks.items():
        gradients = torch.autograd.grad(value, leaves(predictions), retain_graph=True, allow_unused=True)
        assert [owner for owner, g in zip(owners, gradients, strict=True) if g is not None] == [
            owner for owner in owners if owner == task
        ]
        assert all(g.isfinite().all() and (g != 0).any() for g in gradients if g is not None)


@pytest.mark.parametrize("preset", PRESETS)
def test_what_masks_hide_has_no_influence(preset):
    predictions, batch = random_predictions(), random_batch()
    known = torch.tensor([[True, True, False], [True, False, True]])
    batch = batch._replace(camera_mask=known)
    dirty = batch._replace(
        cameras=Cameras(*(torch.where(known[..., None, None], x, NAN) for x in batch.cameras)),
        depth=torch.where(batch.mask, batch.depth, NAN),
        points=torch.where(batch.mask[..., None], batch.points, NAN),
    )
    clean, report = preset()(predictions, batch), preset()(predictions, dirty)
    assert report.total == clean.total
    report.total.backward()
    assert all(x.grad is None or x.grad.isfinite().all() for x in leaves(predictions))


@pytest.mark.parametrize("preset", PRESETS)
def test_nothing_known_gives_a_zero_with_a_graph(preset):
    predictions, batch = random_predictions(), random_batch()
    labels = batch.tracks._replace(valid=torch.zeros(B, N, dtype=torch.bool))
    nothing = {"camera_mask": torch.zeros(B, S).bool(), "mask": torch.zeros(B, S, H, W).bool(), "tracks": labels}
    report = preset()(predictions, batch._replace(**nothing))
    assert report.total == 0
    report.total.backward()
    touched = [x for x in leaves(predictions) if x.grad is not None]
    assert touched
    assert all((x.grad == 0).all() for x in touched)


@pytest.mark.parametrize("task", NAMES)
def test_a_task_without_prediction_or_labels_is_skipped(task):
    predictions, batch = random_predictions(), random_batch()
    prediction = {"camera": "pose_encodings", "tracks": "track_iterations"}.get(task, task)
    label = {"camera": "cameras"}.get(task, task)
    full = MultitaskLoss()(predictions, batch)
    for report in (
        MultitaskLoss()(predictions._replace(**{prediction: None}), batch),
        MultitaskLoss()(predictions, batch._replace(**{label: None})),
        MultitaskLoss(**{task: None})(predictions, batch),
    ):
        assert report.tasks == {name: value for name, value in full.tasks.items() if name != task}
        assert report.terms.keys() == full.terms.keys() - NAMES[task]


def test_cameras_alone_are_enough():
    batch = random_batch()._replace(depth=None, points=None, mask=None, tracks=None)
    for preset in PRESETS:
        assert list(preset()(random_predictions(), batch).tasks) == ["camera"]


def test_no_mask_is_a_full_mask():
    predictions, batch = random_predictions(), random_batch()
    full = batch._replace(mask=torch.ones_like(batch.mask))
    for preset in PRESETS:
        assert preset()(predictions, batch._replace(mask=None)).total == preset()(predictions, full).total


def test_nothing_in_common():
    batch = random_batch()._replace(cameras=None, depth=None, points=None, mask=None)
    predictions = random_predictions()._replace(track_iterations=None, points=None)
    message = (
        r"^predictions must share a task \(camera, depth, points, tracks\) with the batch, "
        r"got predictions of pose_encodings, depth for images, tracks$"
    )
    with pytest.raises(ValueError, match=message):
        MultitaskLoss()(predictions, batch)
    with pytest.raises(ValueError, match=r"\(none is on\) .* of nothing for"):
        MultitaskLoss(camera=None, depth=None, points=None, tracks=None)(Predictions(), batch)


def test_predictions_of_another_size():
    predictions, batch = random_predictions(), random_batch()
    smaller = batch._replace(depth=batch.depth[..., 1:])
    with pytest.raises(ValueError, match=r"^target must have shape \(2, 3, 20, 24\), got \(2, 3, 20, 23\)$"):
        MultitaskLoss()(predictions, smaller)


# Presets


def test_weights_of_the_presets():
    weights = [{name: term.weight for name, term in preset().tasks.items()} for preset in PRESETS]
    assert weights == [
        {"camera": 5.0, "depth": 1.0, "points": 1.0, "tracks": 0.05},
        {"camera": 1.0, "depth": 1.0, "points": 1.0, "tracks": 0.05},
        {"camera": 5.0, "depth": 1.0},
    ]


def test_the_default_unlearns_over_confident_errors_and_the_published_one_does_not():
    batch = random_batch()
    for loss, learns in ((MultitaskLoss(), True), (MultitaskLoss.released(), False)):
        depth = DenseMap((batch.depth + 5).requires_grad_(), torch.full_like(batch.depth, 300.0).requires_grad_())
        conf = loss(Predictions(depth=depth), batch).terms["loss_conf_depth"]
        of_value, of_confidence = torch.autograd.grad(conf, depth)
        assert (of_value[batch.mask] > 0).all() == learns
        assert (of_confidence[batch.mask] > 0).all() == learns
        assert (of_value == 0).all() != learns


def test_the_published_one_wants_100_pixels():
    predictions, batch = random_predictions(), random_batch()
    for count, learns in ((99, False), (100, True)):
        mask = torch.zeros_like(batch.mask)
        mask.view(-1)[:count] = True
        terms = MultitaskLoss.released()(predictions, batch._replace(mask=mask)).terms
        assert (terms["loss_depth"] != 0) == learns
    for count, learns in ((100, False), (101, True)):
        mask = torch.zeros_like(batch.mask)
        mask[0, 0].view(-1)[:count] = True
        terms = MultitaskLoss.released()(predictions, batch._replace(mask=mask)).terms
        assert (terms["loss_camera"] != 0) == learns
    known = torch.tensor([[True, False, True], [False, True, True]])
    mask = torch.ones_like(batch.mask)
    both = MultitaskLoss.released()(predictions, batch._replace(mask=mask, camera_mask=known))
    only = MultitaskLoss.released()(predictions, batch._replace(mask=None, camera_mask=known))
    assert both.tasks["camera"] == only.tasks["camera"]


def test_the_paper_sums_over_nine_components():
    predictions, batch = random_predictions(), random_batch()
    loss = MultitaskLoss.paper(camera=replace(MultitaskLoss.paper().tasks["camera"], decay=1.0))
    target = geomtx.encode_pose(*batch.cameras, (H, W)).expand_as(predictions.pose_encodings)
    each = nn.functional.huber_loss(predictions.pose_encodings, target, delta=0.1, reduction="none")
    torch.testing.assert_close(loss(predictions, batch).tasks["camera"], each.sum(-1).mean())


def test_presets_can_be_changed():
    loss = MultitaskLoss.released(camera=None, points=DenseTerm("points", weight=3.0))
    report = loss(random_predictions(), random_batch())
    assert list(report.tasks) == ["depth", "points"]
    assert report.tasks["points"] == 3 * report.terms["loss_point"]
    assert "camera: CameraTerm(weight=1.0, kind='huber'" in repr(MultitaskLoss.paper())


# Terms of one's own


@dataclass(frozen=True)
class SmallDepth:
    """Punishes depth as such; nothing of the library's."""

    weight: float = 0.5

    def __call__(self, predictions: Predictions, batch: SceneBatch) -> TermLoss | None:
        if predictions.depth is None:
            return None
        mean = predictions.depth.value.mean()
        return TermLoss(mean, {"mean_depth": mean})


def test_another_term():
    assert isinstance(SmallDepth(), Term)
    loss = MultitaskLoss(others={"small": SmallDepth()})
    predictions, batch = random_predictions(), random_batch()
    report = loss(predictions, batch)
    torch.testing.assert_close(report.tasks["small"], 0.5 * predictions.depth.value.mean())
    torch.testing.assert_close(report.total, MultitaskLoss()(predictions, batch).total + report.tasks["small"])
    assert report.terms["mean_depth"] == 2 * report.tasks["small"]


def test_another_term_has_another_name():
    with pytest.raises(ValueError, match=r"^others must be named differently than camera, .*, got 'depth'$"):
        MultitaskLoss(others={"depth": SmallDepth()})


@pytest.mark.usefixtures("unchecked")
def test_bad_options():
    with pytest.raises(ValueError, match=r"^task must be one of 'depth', 'points', got 'point'$"):
        DenseTerm("point")
    with pytest.raises(ValueError, match=r"^bearing must be 0 for the task 'depth', which has no directions, got 0.5$"):
        DenseTerm("depth", bearing=0.5)
    with pytest.raises(ValueError, match=r"^gradient must be one of 'gradient', None, got 'normal'$"):
        DenseTerm("depth", gradient="normal")
    with pytest.raises(ValueError, match=r"^gradient must be one of 'gradient', 'normal', None, got 'grad'$"):
        DenseTerm("points", gradient="grad")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("term", "values", "message"),
    [
        (CameraTerm, {"decay": -1}, "decay must be positive, got -1"),
        (CameraTerm, {"delta": 0}, "delta must be positive, got 0"),
        (CameraTerm, {"clamp": math.inf}, "clamp must be finite, got inf"),
        (CameraTerm, {"kind": "l3"}, "kind must be one of 'l1', 'l2', 'huber', got 'l3'"),
        (CameraTerm, {"part_weights": (1, 1)}, r"part_weights must be three, got \(1, 1\)"),
        (CameraTerm, {"part_weights": (1, -1, 1)}, "part_weights must be at least 0, got -1"),
        (CameraTerm, {"min_depth_pixels": -1}, "min_depth_pixels must be at least 0, got -1"),
        (DenseTerm, {"quantile": 2}, r"quantile must be in \(0, 1\], got 2"),
        (DenseTerm, {"quantile": 0.0}, r"quantile must be in \(0, 1\], got 0.0"),
        (DenseTerm, {"gamma": math.nan}, "gamma must be at least 0, got nan"),
        (DenseTerm, {"weight": math.inf}, "weight must be finite, got inf"),
        (DenseTerm, {"clamp": 0}, "clamp must be positive, got 0"),
        (TrackTerm, {"kind": "l2"}, "kind must be one of 'l1', 'huber', got 'l2'"),
        (TrackTerm, {"decay": 0}, "decay must be positive, got 0"),
        (TrackTerm, {"visible_boost": -1}, "visible_boost must be at least 0, got -1"),
        (TrackTerm, {"confidence_weight": -1}, "confidence_weight must be at least 0, got -1"),
    ],
)
def test_numbers_out_of_range(term, values, message):
    with pytest.raises(ValueError, match=rf"^{message}$"):
        term(**({"task": "points"} if term is DenseTerm else {}), **values)


# Without a mask


@pytest.mark.parametrize("unknown", [0.0, float("nan")])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("preset", PRESETS)
def test_without_a_mask_depth_says_what_is_known(unknown, normalized, preset):
    predictions, batch = random_predictions(), random_batch()
    mask = torch.rand(batch.depth.shape) < 0.5
    mask[:, 0] |= torch.rand(batch.depth[:, 0].shape) < 0.9
    batch = batch._replace(depth=torch.where(mask, batch.depth.abs() + 0.1, unknown), mask=mask)
    bare = batch._replace(mask=None)
    if normalized:
        batch, bare = (geomtx.normalize_scene(part)[0] for part in (batch, bare))
    assert preset()(predictions, bare).total == preset()(predictions, batch).total


def test_the_published_one_counts_the_pixels_of_depth_without_a_mask():
    predictions, batch = random_predictions(), random_batch()
    nothing = batch._replace(depth=torch.zeros_like(batch.depth), mask=None)
    assert MultitaskLoss.released()(predictions, nothing).terms["loss_camera"] == 0


# With a model


def test_it_trains_a_model():
    """All losses get smaller in a few steps on one batch, under autocast."""
    numbers = {"patch_size": 7, "depth": 1, "taps": (0, 0, 0, 0), "vit_depth": 1, "camera_depth": 1}
    numbers |= {"camera_iterations": 2, "track_depth": 1, "track_iterations": 2}
    model = geomtx.VGGT(geomtx.VGGTConfig.tiny(**numbers))
    images = torch.rand(1, 2, 3, 28, 28)
    b, s, _, h, w = images.shape
    cameras = random_rigid(1, s).float().repeat(b, 1, 1, 1)
    batch = SceneBatch(
        images,
        Cameras(cameras, torch.tensor([[w, 0, w / 2], [0, w, h / 2], [0, 0, 1]]).expand(b, s, 3, 3)),
        depth=torch.rand(b, s, 1, 1).expand(b, s, h, w) + 0.5,
        tracks=TrackLabels(torch.full((b, s, 3, 2), 15.0), torch.ones(b, s, 3).bool(), torch.ones(b, 3).bool()),
    )
    batch, _ = geomtx.normalize_scene(batch)
    loss, optimizer = MultitaskLoss(), torch.optim.AdamW(model.parameters(), lr=2e-3)
    totals = []
    for _ in range(6):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            report = loss(model(images, torch.full((b, 3, 2), 17.0)), batch)
        assert report.total.dtype == torch.float32
        optimizer.zero_grad()
        report.total.backward()
        optimizer.step()
        totals.append(torch.stack(list(report.tasks.values())).detach())
    assert (totals[-1] < totals[0]).all()


@pytest.mark.cuda
@pytest.mark.parametrize("preset", PRESETS)
def test_the_same_on_a_gpu(preset):
    def move(x: Tensor | None) -> Tensor | None:
        return x if x is None else x.detach().to("cuda").requires_grad_(x.requires_grad)

    batch, predictions = random_batch(), random_predictions()
    there = tree_map(move, predictions)
    expected, found = preset()(predictions, batch), preset()(there, tree_map(move, batch))
    assert found.total.is_cuda
    assert found.terms.keys() == expected.terms.keys()
    for name, term in expected.terms.items():
        torch.testing.assert_close(found.terms[name].cpu(), term, rtol=1e-9, atol=1e-12, msg=name)
    expected.total.backward()
    found.total.backward()
    pairs = [(a, b) for a, b in zip(tree_leaves(there), tree_leaves(predictions), strict=True) if b is not None]
    assert [a.grad is None for a, _ in pairs] == [b.grad is None for _, b in pairs]
    gradients = [(a.grad, b.grad) for a, b in pairs if b.grad is not None]
    assert len(gradients) >= 2
    for mine, theirs in gradients:
        torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-7, atol=1e-10)
