import copy
import math
from typing import Any

import pytest
import torch
from accelerate import Accelerator

import geomtx
from geomtx.geometry.scene_frame import normalize_scene
from geomtx.losses.multitask import MultitaskLoss
from geomtx.training.optim import ClipGroup
from geomtx.training.step import TrainingStep, compute_scores, predict
from geomtx.training.tasks.vggt import VggtTask
from geomtx.types import Predictions, SceneBatch
from training.small_run import NUMBERS, random_scenes

HUGE = 1e9


@pytest.fixture
def model() -> geomtx.VGGT:
    return geomtx.VGGT(geomtx.VGGTConfig.tiny(**NUMBERS, heads=("camera", "depth"))).double()


@pytest.fixture
def tracking_model() -> geomtx.VGGT:
    return geomtx.VGGT(geomtx.VGGTConfig.tiny(**NUMBERS, heads=("camera", "tracks"))).double()


def training_step(model: geomtx.VGGT, *, num_chunks: int = 1, max_norm: float = HUGE, lr: float = 0.1) -> TrainingStep:
    """A step of plain gradient descent."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    accelerator = Accelerator(cpu=True)
    optimiser = accelerator.prepare(torch.optim.SGD(trained, lr=lr))
    groups = [ClipGroup("*", trained, max_norm)]
    return TrainingStep(model, MultitaskLoss(), optimiser, accelerator, groups, num_chunks=num_chunks)


def double(batch: SceneBatch) -> SceneBatch:
    cameras = geomtx.Cameras(*(part.double() for part in batch.cameras))
    tracks = batch.tracks._replace(coords_px=batch.tracks.coords_px.double())
    return batch._replace(images=batch.images.double(), cameras=cameras, depth=batch.depth.double(), tracks=tracks)


def test_more_chunks_than_scenes_are_the_full_batch(model: geomtx.VGGT):
    """Fewer, and scenes that know different things, are in `test_accumulation`."""
    batch = double(random_scenes(2))
    other = copy.deepcopy(model)
    whole = training_step(model)(batch)
    parts = training_step(other, num_chunks=9)(batch)
    torch.testing.assert_close(parts.scalars["objective"], whole.scalars["objective"])
    torch.testing.assert_close(parts.scalars["norm/*"], whole.scalars["norm/*"])
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-8, msg=name)


def test_a_step_is_gradient_descent_on_the_normalised_scene(tracking_model: geomtx.VGGT):
    batch = double(random_scenes(2))
    other = copy.deepcopy(tracking_model)
    report = training_step(tracking_model, lr=0.1)(batch)
    scene = normalize_scene(batch)[0]
    loss = MultitaskLoss()(other(scene.images, scene.tracks.coords_px[:, 0]), scene)
    loss.total.backward()
    assert report.applied
    torch.testing.assert_close(report.scalars["objective"], loss.total.detach())
    for one, two in zip(tracking_model.parameters(), other.parameters(), strict=True):
        if two.grad is not None:
            torch.testing.assert_close(one, two - 0.1 * two.grad)
        assert one.grad is None


def test_clipping_bounds_the_step(model: geomtx.VGGT):
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    report = training_step(model, max_norm=0.5, lr=1.0)(double(random_scenes(2)))
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert report.scalars["norm/*"] > 0.5
    torch.testing.assert_close((after - before).norm().item(), 0.5, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("where", "value", "num_chunks"),
    [
        ("images", math.nan, 1),
        ("images", math.inf, 1),
        ("depth", math.nan, 1),
        ("cameras", math.inf, 1),
        ("depth", math.inf, 2),
        ("cameras", math.nan, 2),
    ],
)
def test_what_is_not_finite_changes_no_weight(where: str, value: float, num_chunks: int, model: geomtx.VGGT):
    batch = random_scenes(2)
    tensor = batch.cameras.cam_from_world if where == "cameras" else getattr(batch, where)
    tensor[0, 1, 0, 0] = value  # in the first of the chunks
    before = copy.deepcopy(model.state_dict())
    step = training_step(model, num_chunks=num_chunks)
    report = step(double(batch))
    assert not report.applied
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    assert step(double(random_scenes(2))).applied


def test_a_gradient_that_is_too_large_changes_no_weight(model: geomtx.VGGT):
    batch = double(random_scenes(2))
    norm = float(training_step(copy.deepcopy(model))(batch).scalars["norm/*"])
    before = copy.deepcopy(model.state_dict())
    for max_norm, applied in ((norm / 5.1, False), (norm / 4.9, True)):
        step = training_step(model)
        groups = [step.clip_groups[0]._replace(max_norm=max_norm)]
        step = TrainingStep(model, step.loss, step.optimiser, step.accelerator, groups, skip_above=5.0)
        report = step(batch)
        assert report.applied is applied
        assert float(report.scalars["norm/*"]) == pytest.approx(norm)
        same = all(torch.equal(before[name], now) for name, now in model.state_dict().items())
        assert same is not applied


def test_what_a_mask_hides_may_be_anything(model: geomtx.VGGT):
    batch = random_scenes(2)
    batch.depth[0, 1, 0, 0], batch.mask[0, 1, 0, 0] = math.nan, False
    assert training_step(model)(double(batch)).applied


def test_a_gradient_that_is_not_finite_is_seen_where_the_loss_is(model: geomtx.VGGT):
    class Cusp(MultitaskLoss):
        """|x|^½ at 0: a finite value of infinite slope."""

        def forward(self, predictions: Predictions, batch: SceneBatch) -> object:
            report = super().forward(predictions, batch)
            return report._replace(total=report.total + (report.total - report.total.detach()).abs().sqrt())

    step = training_step(model)
    step.loss = Cusp()
    report = step(double(random_scenes(1)))
    assert report.scalars["objective"].isfinite()
    assert not report.applied


def test_empty_track_slots_are_queried_nowhere_outside(tracking_model: geomtx.VGGT):
    batch = double(random_scenes(1))
    batch.tracks.coords_px[0, :, 1] = math.nan
    batch.tracks.valid[0, 1] = False
    batch.tracks.visible[0, :, 1] = False
    predictions = predict(tracking_model, batch)
    assert predictions.tracks.coords_px.isfinite().all()
    assert training_step(tracking_model)(batch).applied


class TwoProcesses:
    """What a step asks of accelerate; the other process has the same numbers."""

    num_processes = 2

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def reduce(self, tensor: torch.Tensor, how: str) -> torch.Tensor:
        return 2 * tensor


@pytest.mark.parametrize("frozen", [False, True])
def test_the_head_of_tracks_runs_without_tracks_where_others_wait_for_it(
    frozen: bool, tracking_model: geomtx.VGGT, monkeypatch: pytest.MonkeyPatch
):
    tracking_model.track_head.requires_grad_(not frozen)
    step = training_step(tracking_model)
    seen: dict[str, torch.Tensor] = {}
    for name, parameter in tracking_model.track_head.named_parameters():
        if not frozen:
            parameter.register_post_accumulate_grad_hook(lambda p, n=name: seen.update({n: p.grad.clone()}))
    batch = double(random_scenes(2))._replace(tracks=None)
    step = TrainingStep(tracking_model, step.loss, step.optimiser, TwoProcesses(), step.clip_groups)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    report = step(batch)
    assert report.applied
    assert (report.predictions.tracks is None) is frozen
    assert not any(name.startswith("loss_track") for name in report.scalars)
    assert len(seen) == (0 if frozen else len(list(tracking_model.track_head.parameters())))
    assert all((gradient == 0).all() for gradient in seen.values())


def test_a_batch_that_is_not_usable_changes_no_weight(model: geomtx.VGGT):
    before = copy.deepcopy(model.state_dict())
    step = training_step(model)
    report = step(double(random_scenes(2)), usable=False)
    assert not report.applied
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())


def test_scenes_of_one_view_and_of_cameras_only(model: geomtx.VGGT):
    assert training_step(model)(double(random_scenes(2, num_views=1))).applied
    cameras_only = double(random_scenes(2))._replace(depth=None, mask=None, tracks=None)
    report = training_step(model)(cameras_only)
    assert report.applied
    assert {"loss_camera", "loss_depth"} & report.scalars.keys() == {"loss_camera"}


def test_autocast_runs_the_encoder_in_half_precision(model: geomtx.VGGT):
    model.float()
    seen = set()
    model.encoder.frame_blocks[0].mlp.register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    batch = random_scenes(1)
    predictions = predict(model, batch, torch.bfloat16)
    assert seen == {torch.bfloat16}
    assert predictions.depth.value.dtype == torch.float32
    seen.clear()
    predict(model, batch)
    assert seen == {torch.float32}


def test_scores_are_computed_where_there_is_float64(monkeypatch: pytest.MonkeyPatch):
    class Shapes(VggtTask):
        def score(self, outputs: Any, batch: SceneBatch) -> dict[str, torch.Tensor]:
            return {"sum": (outputs["x"] + batch.images.sum()).double()}

    batch = random_scenes(1)._replace(images=torch.zeros(1, 2, 3, 28, 28, device="meta"))
    outputs = {"x": torch.zeros((), device="meta")}
    assert compute_scores(outputs, batch, task=Shapes())["sum"].is_meta
    monkeypatch.setattr("geomtx.training.step._has_float64", lambda device: False)
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        compute_scores(outputs, batch, task=Shapes())
    on_cpu = batch._replace(images=torch.ones(1, 2, 3, 28, 28))
    assert compute_scores({"x": torch.ones(())}, on_cpu, task=Shapes())["sum"] == 1 + 2 * 3 * 28 * 28
