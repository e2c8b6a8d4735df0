import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from geomtx import CroCo, CroCoConfig, DUSt3R, DUSt3RConfig, MASt3R, MASt3RConfig
from geomtx.data import RoomStyle
from geomtx.data.synthetic.render import HELD_OUT_SCENES, held_out_seed, render_scenes
from geomtx.losses import MatchingSettings, PairPointSettings
from geomtx.training.config import LossSection, ModelSection
from geomtx.training.config_file import load_config, parse_config
from geomtx.training.tasks.pairs import DUSt3RTask, MASt3RTask, PairBatch, PairLoss
from geomtx.training.tasks.task import build_task
from geomtx.training.trainer import Trainer
from geomtx.types import SceneBatch
from training.small_run import is_equal, weights_of

LEAN = {"encoder_depth": 1, "depth": 2, "head": "linear"}
PAIRS: dict[str, Any] = {
    "model": {"kind": "dust3r", "preset": "tiny", "numbers": LEAN},
    "data": {"image_hw": [16, 32], "images": 8, "views": {2: 1}},
    "optimiser": {"lr": 2e-3},
    "schedule": {"steps": 3},
    "accumulation": 2,
    "ema": 0.9,
    "log": {"every": 2, "tensorboard": False},
}
MATCHING = {
    **PAIRS,
    "model": {"kind": "mast3r", "preset": "tiny", "numbers": {"encoder_depth": 1, "depth": 2}},
    "task": {"num_matches": 32},
}


def pair_trainer(folder: Path, values: dict[str, Any] = PAIRS, *, resume: bool = False, **changes: Any) -> Trainer:
    return Trainer(parse_config({**values, **changes}), folder, resume=resume, cpu=True, progress=False)


@pytest.fixture(scope="module")
def rooms() -> SceneBatch:
    first = HELD_OUT_SCENES["tests"][0] + int(torch.randint(1000, ()))
    style = RoomStyle(spread=(8.0, 15.0), num_solids=(3, 4), shadows=False)  # both views see much of the same
    return render_scenes([held_out_seed(first + i) for i in range(3)], 2, (16, 32), style=style)


@pytest.fixture
def model() -> DUSt3R:
    return DUSt3R(DUSt3RConfig.tiny(**LEAN))


@pytest.fixture
def matcher() -> MASt3R:
    return MASt3R(MASt3RConfig.tiny(encoder_depth=1, depth=2))


# What is prepared and scored


def test_points_are_in_the_first_camera_and_in_their_own_unit(rooms: SceneBatch):
    prepared = DUSt3RTask().prepare(rooms)
    assert prepared.images is rooms.images
    poses = rooms.cameras.cam_from_world[:, 0].double()
    want = torch.einsum("bij,bshwj->bshwi", poses[..., :3], rooms.points.double()) + poses[:, None, None, None, :, 3]
    torch.testing.assert_close(prepared.scenes.points.double(), want, rtol=1e-4, atol=1e-5)


def test_scenes_without_points_have_those_of_their_depth(rooms: SceneBatch):
    want = DUSt3RTask().prepare(rooms).scenes.points
    found = DUSt3RTask().prepare(rooms._replace(points=None)).scenes.points
    torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-3)
    for broken in (rooms._replace(cameras=None), rooms._replace(depth=None, points=None)):
        with pytest.raises(ValueError, match=r"^scenes must have cameras, and depth or points, .* pairs, got "):
            DUSt3RTask().prepare(broken)


def test_the_loss_is_that_of_the_formula(rooms: SceneBatch, model: DUSt3R):
    """Mean of c·e - α·log c of each view, both clouds divided by their mean distances; masked pixels are out."""
    mask = torch.rand(rooms.depth.shape) < 0.7
    batch = DUSt3RTask().prepare(rooms._replace(mask=mask))
    found = DUSt3RTask().predict(model, batch)
    report = DUSt3RTask(alpha=0.3).build_loss(LossSection())(found, batch)
    mean_distance = [
        (each.double().norm(dim=-1) * mask).flatten(1).sum(1) / mask.flatten(1).sum(1)
        for each in (torch.stack([view.points.value for view in found], dim=1), batch.scenes.points)
    ]
    total = 0.0
    for view, prediction in enumerate(found):
        mine, true = (
            points.double() / scale[:, None, None, None]
            for points, scale in zip(
                (prediction.points.value, batch.scenes.points[:, view]), mean_distance, strict=True
            )
        )
        confidence = prediction.points.confidence.double()
        each = confidence * (mine - true).norm(dim=-1) - 0.3 * confidence.log()
        total += float(each[mask[:, view]].mean().detach())
    assert float(report.total.detach()) == pytest.approx(total, rel=1e-5)
    assert report.tasks.keys() == {"points"}


def test_scale_is_free_or_metric(rooms: SceneBatch, model: DUSt3R):
    """A prediction that is twice as large is as good where scale is free, and has another loss where it is metric."""
    batch = DUSt3RTask().prepare(rooms)
    found = DUSt3RTask().predict(model, batch)
    twice = type(found)(*(view._replace(points=view.points._replace(value=2 * view.points.value)) for view in found))
    for task, is_alike in ((DUSt3RTask(), True), (DUSt3RTask(metric=True), False)):
        one, other = (PairLoss(task)(each, batch).total.item() for each in (found, twice))
        assert (one == pytest.approx(other, rel=1e-5)) == is_alike, task
    far = DUSt3RTask(metric=True, points=PairPointSettings(max_metric_scale=1e-3))
    assert torch.equal(PairLoss(far)(found, batch).total, PairLoss(DUSt3RTask())(found, batch).total)


def test_scores_of_right_and_of_shifted_points(rooms: SceneBatch, model: DUSt3R):
    batch = DUSt3RTask().prepare(rooms)
    found = DUSt3RTask().predict(model, batch)
    views = zip(found, batch.scenes.points.unbind(1), strict=True)
    right = type(found)(*(view._replace(points=view.points._replace(value=3 * true)) for view, true in views))
    scores = DUSt3RTask(metric=True).score(right, batch)
    assert scores.keys() == {"point_error", "point_error_second"}
    assert all(score.shape == (3,) and (score < 1e-5).all() for score in scores.values())
    mask = torch.ones_like(rooms.depth, dtype=torch.bool)
    mask[1] = False
    mask[2, 1] = False
    scores = DUSt3RTask().score(found, DUSt3RTask().prepare(rooms._replace(mask=mask)))
    assert [math.isnan(value) for value in scores["point_error"].tolist()] == [False, True, False]
    assert [math.isnan(value) for value in scores["point_error_second"].tolist()] == [False, True, True]


def test_descriptors_that_say_where_a_point_is_are_matched(rooms: SceneBatch, matcher: MASt3R):
    """Directions that are the same for the same pixel of either view, and of matching pixels: the loss falls."""
    task = MASt3RTask(num_matches=32)
    batch = task.prepare(rooms)
    found = task.predict(matcher, batch)
    first = torch.nn.functional.normalize(torch.randn(3, 16, 32, 24), dim=-1)
    second = torch.nn.functional.normalize(torch.randn(3, 16, 32, 24), dim=-1)
    scene, slot = batch.matches.valid.nonzero().unbind(1)
    (x, y), (u, v) = (coords[scene, slot].unbind(-1) for coords in batch.matches[:2])
    second[scene, v, u] = first[scene, y, x]
    views = (first, second)
    right = type(found)(
        *(
            view._replace(descriptors=view.descriptors._replace(value=value))
            for view, value in zip(found, views, strict=True)
        )
    )
    losses = [PairLoss(task)(each, batch) for each in (found, right)]
    assert losses[1].terms["loss_matching"] < losses[0].terms["loss_matching"]
    for report in losses:
        want = report.terms["loss_points"] + 0.075 * report.terms["loss_matching"]
        torch.testing.assert_close(report.total, want)
    assert (task.score(right, batch)["match_precision"] == 1).all()
    assert (task.score(found, batch)["match_precision"] < 0.9).all()
    nothing = task.prepare(rooms._replace(mask=torch.zeros_like(rooms.depth, dtype=torch.bool)))
    assert task.score(found, nothing)["match_precision"].isnan().all()


def test_the_loss_reaches_all_that_is_trained(rooms: SceneBatch, matcher: MASt3R):
    task = MASt3RTask(num_matches=32)
    batch = task.prepare(rooms)
    PairLoss(task)(task.predict(matcher, batch), batch).total.backward()
    without = [name for name, each in matcher.named_parameters() if each.requires_grad and each.grad is None]
    assert without == []


# What models begin with


def test_models_by_numbers(model: DUSt3R):
    section = ModelSection(kind="dust3r", preset="tiny", numbers=LEAN)
    built = DUSt3RTask().build_model(section)
    assert built.config == model.config
    assert DUSt3RTask().rebuild_model(built.config.to_dict()).config == built.config
    with torch.device("meta"):
        assert DUSt3RTask().build_model(ModelSection(kind="dust3r")).config == DUSt3RConfig()
    with pytest.raises(ValueError, match=r"^model.preset must be 'tiny' where model.kind is 'mast3r', .*, got 'nano'$"):
        MASt3RTask().build_model(ModelSection(kind="mast3r", preset="nano"))
    with pytest.raises(ValueError, match=r"^config key must be one of .*, got 'model.numbers.depht'; did you mean"):
        DUSt3RTask().build_model(ModelSection(kind="dust3r", preset="tiny", numbers={"depht": 2}))


def test_a_run_begins_with_a_croco(tmp_path: Path):
    """Encoder and decoder, also of other sizes than the preset's; the heads are the section's."""
    croco = CroCo(CroCoConfig.tiny(depth=3, dim=32))
    source = str(croco.save_pretrained(tmp_path / "croco"))
    for task, kind, numbers in ((DUSt3RTask(), "dust3r", {"head": "linear"}), (MASt3RTask(), "mast3r", {})):
        section = ModelSection(kind=kind, preset="tiny", numbers=numbers, weights=source)
        built = task.build_model(section)
        assert type(built) is task.model_type
        assert (built.config.depth, built.config.dim, built.config.dpt_features) == (3, 32, 16)
        assert is_equal(built.encoder.state_dict(), croco.encoder.state_dict())
        for blocks in (built.decoder.first_blocks, built.decoder.second_blocks):
            assert is_equal(blocks.state_dict(), croco.decoder.blocks.state_dict())
    old = str(CroCo(CroCoConfig.tiny(rope_base=None)).save_pretrained(tmp_path / "old"))
    with pytest.raises(ValueError, match=r"^model.weights must be what 'dust3r' can start from, but rope_base must be"):
        DUSt3RTask().build_model(ModelSection(kind="dust3r", preset="tiny", weights=old))


def test_a_run_begins_with_a_model_of_its_own_or_a_dust3r(model: DUSt3R, matcher: MASt3R, tmp_path: Path):
    own = str(model.half().save_pretrained(tmp_path / "own"))
    loaded = DUSt3RTask().build_model(ModelSection(kind="dust3r", weights=own))
    assert is_equal(loaded.state_dict(), {name: each.float() for name, each in model.state_dict().items()})
    with pytest.raises(ValueError, match=r"^model.weights must be what .*, but model.numbers must be empty for w"):
        DUSt3RTask().build_model(ModelSection(kind="dust3r", weights=own, numbers=LEAN))
    plain = DUSt3R(DUSt3RConfig.tiny())
    source = str(plain.save_pretrained(tmp_path / "plain"))
    grown = MASt3RTask().build_model(ModelSection(kind="mast3r", weights=source, numbers={"descriptor_dim": 8}))
    state = grown.state_dict()
    assert is_equal({name: state[name] for name in plain.state_dict()}, plain.state_dict())
    assert grown.config.descriptor_dim == 8
    other = str(matcher.save_pretrained(tmp_path / "matcher"))
    for task, kind, weights in ((DUSt3RTask(), "dust3r", other), (DUSt3RTask(), "dust3r", "nano")):
        with pytest.raises(ValueError, match=rf"^model.weights must be what '{kind}' can start from, but "):
            task.build_model(ModelSection(kind=kind, weights=weights))


# Runs


@pytest.mark.parametrize("values", [PAIRS, MATCHING], ids=["dust3r", "mast3r"])
def test_stopped_and_resumed_is_as_if_never_stopped(values: dict[str, Any], tmp_path: Path):
    whole = pair_trainer(tmp_path / "whole", values)
    weights = whole.train()
    assert whole.num_skipped == 0
    pair_trainer(tmp_path / "parts", values).train(until=2)
    torch.manual_seed(123)
    resumed = pair_trainer(tmp_path / "parts", values, resume=True)
    resumed.train()
    assert is_equal(weights_of(whole), weights_of(resumed))
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("whole", "parts")]
    assert logs[0] == logs[1]
    loaded = whole.task.model_type.from_pretrained(weights)
    averages = whole.average.averages
    assert all(torch.equal(each, averages[name]) for name, each in loaded.named_parameters() if name in averages)


def test_a_run_learns_and_is_validated(tmp_path: Path):
    """Of one room, over and over, so that it takes few steps."""
    room = render_scenes([held_out_seed(HELD_OUT_SCENES["tests"][0])], 2, (16, 32))

    def draw(seeds: list[int], num_views: int, image_hw: tuple[int, int], **_: Any) -> SceneBatch:
        return room

    config = parse_config(
        {
            **PAIRS,
            "accumulation": 1,
            "ema": 0,
            "optimiser": {"lr": 1e-2},
            "schedule": {"steps": 20},
            "validation": {"every": 20, "scenes": 1, "views": [2]},
        }
    )
    Trainer(config, tmp_path, draw=draw, cpu=True, progress=False).train()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    before, after = (line for line in lines if line["kind"] == "validation")
    assert after["point_error/2v"] < 0.5 * before["point_error/2v"]
    assert {"loss_points", "error_first", "error_second", "point_error", "point_error_second"} <= lines[1].keys()


def test_frozen_encoders_and_adapters(tmp_path: Path):
    """As MonST3R is trained, and with adapters of the decoder alone."""
    lora = {"patterns": ["decoder.*"], "rank": 2}
    trainer = pair_trainer(tmp_path, freeze=["encoder", "decoder"], lora=lora)
    start = weights_of(trainer)
    weights = trainer.train(until=2)
    changed = {name for name, value in weights_of(trainer).items() if not torch.equal(value, start[name])}
    trained = {name.rpartition(".")[2] for name in changed if name.startswith("decoder.")}
    assert trained == {"up", "down"}
    assert not any(name.startswith("encoder.") for name in changed)
    assert any(name.startswith("second_head.") for name in changed)
    merged = DUSt3R.from_pretrained(weights).state_dict()
    assert merged.keys() == DUSt3R(DUSt3RConfig.tiny(**LEAN)).state_dict().keys()


def test_the_shipped_recipe_makes_a_model():
    config = load_config("dust3r_nano")
    model = DUSt3RTask().build_model(config.model)
    assert 0.9e6 < sum(each.numel() for each in model.parameters()) < 1.3e6
    images = torch.rand(1, 3, *config.data.image_hw)
    assert model(images, images).second.points.value.shape == (1, *config.data.image_hw, 3)


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {**PAIRS["data"], "views": {2: 1, 3: 1}}}, r"^data.views must be 2 where .* is 'dust3r', got 3$"),
        ({"validation": {"every": 1}}, r"^validation.views must be 2 where model.kind is 'dust3r', got 4$"),
        ({"loss": {"preset": "paper"}}, r"^loss must be left out for models of pairs, .*, got LossSection"),
        ({"gradient_checkpointing": True}, r"^gradient_checkpointing must be off for a model without an Alternating"),
    ],
)
def test_what_no_run_can_begin_with(changes: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        pair_trainer(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("kind", "task", "message"),
    [
        ("dust3r", {"alpha": 0}, r"^task.alpha must be .*, got 0"),
        ("dust3r", {"points": {"norm": "max"}}, r"^task.points.norm must be one of 'avg_dis', .*, got 'max'$"),
        ("dust3r", {"points": {"max_metric_scale": -1}}, r"^task.points.max_metric_scale must be .*, got -1"),
        ("dust3r", {"matching_weight": 1}, r"^config key must be one of points, metric, alpha, got 'task.matching_wei"),
        ("mast3r", {"num_matches": 0}, r"^task.num_matches must be a whole number, at least 1, got 0$"),
        ("mast3r", {"matching": {"temperature": 0}}, r"^task.matching.temperature must be .*, got 0"),
        ("mast3r", {"matching_weight": -1}, r"^task.matching_weight must be at least 0, got -1"),
    ],
)
def test_options_are_checked_when_the_configuration_is_read(kind: str, task: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        parse_config({"model": {"kind": kind}, "task": task})


def test_options_of_the_losses():
    config = parse_config(
        {
            "model": {"kind": "mast3r"},
            "task": {"metric": True, "points": {"norm": "median_dis"}, "matching": {"confidence": None}},
        }
    )
    assert config.task["metric"] is True
    task = MASt3RTask(PairPointSettings("median_dis"), metric=True, matching=MatchingSettings(confidence=None))
    assert build_task("mast3r", config.task) == task
    assert dataclasses.replace(task, metric=False) != task


def test_heads_are_no_choice_of_models_of_pairs():
    with pytest.raises(ValueError, match=r"^model.heads must be left out for models of pairs, got \('points',\)$"):
        parse_config({"model": {"kind": "dust3r", "weights": "x", "heads": ["points"]}})


def test_scenes_of_other_numbers_of_views(rooms: SceneBatch):
    many = rooms._replace(images=rooms.images[:, :1])
    with pytest.raises(ValueError, match=r"^scenes must have 2 views to train a model of pairs, got 1$"):
        DUSt3RTask().prepare(many)
    assert isinstance(DUSt3RTask().prepare(rooms), PairBatch)
