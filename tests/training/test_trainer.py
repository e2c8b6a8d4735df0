import json
import logging
import math
import shutil
from pathlib import Path

import pytest
import torch

import geomtx
from geomtx.data.synthetic.render import is_held_out, render_scenes
from geomtx.geometry.scene_frame import normalize_scene
from geomtx.losses.multitask import MultitaskLoss
from geomtx.metrics.evaluate import evaluate_predictions, summarize
from geomtx.training.config_file import load_config
from geomtx.training.step import predict
from geomtx.training.trainer import SkippedSteps, SkipReason, Trainer, explain_skip, validate
from geomtx.types import SceneBatch
from training.small_run import CAMERA_ONLY, NUMBERS, is_equal, random_scenes, small_config, small_trainer, weights_of

TRACKS = {"preset": "tiny", "numbers": NUMBERS}
EVERYTHING = {
    "model": TRACKS,
    "data": {"image_hw": [28, 28], "images": 4, "views": {2: 1, 4: 1}, "num_tracks": 4, "augment": True},
    "validation": {"every": 4, "scenes": 1, "views": [2]},
    "ema": 0.9,
    "gradient_checkpointing": True,
    "accumulation": 2,
    "monitor": {"every": 2},
    "log": {"every": 2, "tensorboard": True},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A run with everything on, at its end."""
    trainer = small_trainer(tmp_path_factory.mktemp("everything") / "whole", **EVERYTHING)
    trainer.train()
    return trainer


def test_stopped_and_resumed_is_as_if_never_stopped(whole: Trainer, tmp_path: Path):
    """With everything on, stopped in the middle of what a line of the log is the mean of."""
    stopped = small_trainer(tmp_path, **EVERYTHING)
    stopped.train(until=3)
    torch.manual_seed(123)  # another process begins with other random numbers
    resumed = small_trainer(tmp_path, resume=True, **EVERYTHING)
    assert resumed.step == 3
    resumed.train()
    assert is_equal(weights_of(whole), weights_of(resumed))
    assert not is_equal(weights_of(whole), weights_of(stopped))
    folders = (whole.folder.weights.parent, tmp_path)
    files = [folder / "weights" / "model.safetensors" for folder in folders]
    assert files[0].read_bytes() == files[1].read_bytes()
    logs = [(folder / "log.jsonl").read_text() for folder in folders]
    assert logs[0] == logs[1]
    assert torch.equal(*(torch.rand(4, generator=_rng(folder)) for folder in folders))


def _rng(folder: Path) -> torch.Generator:
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["processes"][0]["rng"]["torch"]
    return torch.Generator().set_state(state)


def test_the_folder_has_what_a_run_leaves(whole: Trainer):
    weights = whole.folder.weights
    folder = weights.parent
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint.pt", "config.yaml", "log.jsonl", "tensorboard", "weights",
    ]  # fmt: skip
    loaded = geomtx.VGGT.from_pretrained(weights)
    averages = whole.average.averages
    assert all(torch.equal(p, averages[n]) for n, p in loaded.named_parameters() if n in averages)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["kind"]) for line in lines] == [
        (0, "validation"), (2, "train"), (4, "train"), (4, "validation"),
    ]  # fmt: skip
    for name in ("objective", "loss_camera", "loss_T", "loss_depth", "loss_point", "norm/*", "lr", "auc@30", "skipped"):
        assert math.isfinite(lines[1][name])
    assert {"auc@30/2v", "abs_rel/2v", "objective/2v"} <= lines[3].keys()
    assert "cosine/camera-depth" in lines[1]


def test_the_monitor_changes_nothing(tmp_path: Path):
    without = small_trainer(tmp_path / "a", schedule={"steps": 2})
    without.train()
    watched = small_trainer(tmp_path / "b", schedule={"steps": 2}, monitor={"every": 1})
    watched.train()
    assert is_equal(weights_of(without), weights_of(watched))


def test_checkpoints_of_the_past_are_kept_if_asked_for(tmp_path: Path):
    small_trainer(tmp_path, model=CAMERA_ONLY, checkpoint={"every": 1, "keep_every": 2}, schedule={"steps": 4}).train()
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == [
        "checkpoint-0000002.pt", "checkpoint-0000004.pt", "checkpoint.pt",
    ]  # fmt: skip
    assert torch.load(tmp_path / "checkpoint-0000002.pt", weights_only=True)["step"] == 2


@pytest.mark.usefixtures("unchecked")  # which takes a quarter of the time
def test_a_small_model_learns_two_scenes_by_heart(tmp_path: Path):
    """With some of its parts frozen."""
    scenes = render_scenes([3, 4], 2, (28, 28))
    numbers = {**NUMBERS, "layer_scale": 0.3}
    trainer = small_trainer(
        tmp_path,
        lambda seeds, num_views, image_hw, device=None: scenes,
        model={"preset": "tiny", "numbers": {**numbers, "heads": ["camera", "depth"]}},
        freeze=["encoder.backbone", "encoder.frame_blocks.0"],
        optimiser={"lr": 1e-2, "weight_decay": 0.0},
        schedule={"steps": 90, "warmup": 0.1},
        log={"every": 90, "tensorboard": False},
    )
    frozen = {name: p.detach().clone() for name, p in trainer.bare_model.named_parameters() if not p.requires_grad}

    def losses() -> dict[str, float]:
        return validate(trainer.bare_model, trainer.loss, [(2, scenes)])

    before = losses()
    trainer.train()
    after = losses()
    assert after["loss_camera/2v"] < before["loss_camera/2v"] / 10
    assert after["loss_reg_depth/2v"] < before["loss_reg_depth/2v"] / 5
    assert after["auc@30/2v"] > 0.7
    assert frozen
    assert all(torch.equal(dict(trainer.bare_model.named_parameters())[name], p) for name, p in frozen.items())


class Spoiled:
    """Draws scenes; in some steps, a pixel of view 0 is NaN."""

    def __init__(self, bad_calls: set[int]) -> None:
        self.bad_calls = bad_calls
        self.calls = 0

    def __call__(
        self, seeds: list[int], num_views: int, image_hw: tuple[int, int], *, device: torch.device | None = None
    ) -> SceneBatch:
        scenes = random_scenes(len(seeds), num_views, image_hw)
        if self.calls in self.bad_calls:
            scenes.images[0, 0, 0, 0, 0] = math.nan
        self.calls += 1
        return scenes


def test_bad_batches_are_skipped_counted_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    trainer = small_trainer(tmp_path, Spoiled({1, 2, 4}), model=CAMERA_ONLY, schedule={"steps": 6}, ema=0.9)
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="geomtx"):
        trainer.train()
    assert trainer.num_skipped == 3
    assert trainer.average.num_steps == 3
    assert [message.split(",")[0] for message in caplog.messages] == [f"Step {n} was skipped" for n in (2, 3, 5)]
    assert all(value.isfinite().all() for value in weights_of(trainer).values())
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines] == [1, 2, 3]
    assert all(math.isfinite(line["objective"]) for line in lines)


def test_steps_with_too_large_a_gradient_are_skipped_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    optimiser = {"lr": 2e-3, "clip": {"encoder.*": 1e-6, "*_head.*": 1e6}, "skip_above": 5}
    trainer = small_trainer(tmp_path / "a", optimiser=optimiser, max_skipped=10)
    before = weights_of(trainer)
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="geomtx"):
        trainer.train(until=3)
    assert trainer.num_skipped == 3
    assert caplog.messages[0].startswith("Step 1 was skipped, as these norms are too large: norm/encoder.* ")
    assert is_equal(before, weights_of(trainer))
    assert json.loads((tmp_path / "a" / "log.jsonl").read_text().splitlines()[0])["skipped"] == 2
    message = (
        r"^norms of the gradient must be at most optimiser\.skip_above times those of optimiser\.clip, got 2 steps"
    )
    with pytest.raises(ValueError, match=message):
        small_trainer(tmp_path / "b", optimiser=optimiser, max_skipped=1).train()
    with pytest.raises(ValueError, match=r"^optimiser\.skip_above must be at least 1, got 0\.5$"):
        small_config(optimiser={"skip_above": 0.5})


def test_too_many_bad_batches_in_a_row_end_the_run(tmp_path: Path):
    trainer = small_trainer(
        tmp_path,
        Spoiled({0, 2, 3, 4}),
        model=CAMERA_ONLY,
        schedule={"steps": 6},
        max_skipped=2,
        checkpoint={"every": 2},
    )
    message = r"^batches must be scenes, got 3 steps in a row that are not, up to step 5 \(images must be in \[0, 1\]"
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2, "none from between skipped steps"


def test_a_checkpoint_that_was_due_is_made_up_for(tmp_path: Path):
    trainer = small_trainer(tmp_path, Spoiled({1}), model=CAMERA_ONLY, checkpoint={"every": 2}, schedule={"steps": 6})
    steps = []
    save = trainer.folder.save
    trainer.folder.save = lambda state, config: (steps.append(state["step"]), save(state, config))
    trainer.train()
    assert steps == [3, 4, 6]


def _break(trainer: Trainer, step: int) -> None:
    """Its weights are NaN after so many steps."""
    take = trainer._take_step

    def take_and_break(batch: SceneBatch) -> object:
        report = take(batch)
        if trainer.step == step:
            next(trainer.bare_model.camera_head.parameters()).data.fill_(math.nan)
        return report

    trainer._take_step = take_and_break


@pytest.mark.parametrize("step", [3, 4])
def test_weights_that_are_not_finite_are_not_written(step: int, tmp_path: Path):
    """In the middle of the run, where a checkpoint is due, or at its end."""
    trainer = small_trainer(tmp_path, model=CAMERA_ONLY, checkpoint={"every": 2}, ema=0.9)
    _break(trainer, step)
    with pytest.raises(ValueError, match=r"^weights must be finite, got NaN or infinity in camera_head\."):
        trainer.train()
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2
    assert all(p.isfinite().all() for p in geomtx.VGGT.from_pretrained(tmp_path / "weights").parameters())
    assert all(json.loads(line)["step"] <= 6 for line in (tmp_path / "log.jsonl").read_text().splitlines())


def test_a_request_to_stop_ends_after_the_step_with_a_checkpoint(tmp_path: Path):
    class Stopping(Spoiled):
        def __call__(self, *args: object, **kwargs: object) -> SceneBatch:
            trainer.stop_requested = self.calls == 2
            return super().__call__(*args, **kwargs)

    trainer = small_trainer(tmp_path, Stopping(set()), model=CAMERA_ONLY)
    trainer.train()
    assert trainer.step == 3
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 3


def test_training_never_sees_held_out_scenes(tmp_path: Path):
    seen: dict[bool, set[int]] = {True: set(), False: set()}

    def draw(
        seeds: list[int], num_views: int, image_hw: tuple[int, int], *, device: torch.device | None = None
    ) -> SceneBatch:
        for seed in seeds:
            seen[is_held_out(seed)].add(seed)
        return random_scenes(len(seeds), num_views, image_hw)

    validation = {"every": 2, "scenes": 3, "views": [2]}
    trainer = small_trainer(tmp_path, draw, model=CAMERA_ONLY, validation=validation, schedule={"steps": 4})
    trainer.train()
    assert len(seen[True]) == 3
    assert len(seen[False]) == 4 * 2


def test_what_cannot_be_resumed(tmp_path: Path):
    small_trainer(tmp_path / "run").train(until=1)
    with pytest.raises(ValueError, match=r"^output folder must have no run in it, got '.*run'; --resume goes on"):
        small_trainer(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"^checkpoint must be a file, got '.*checkpoint\.pt', which doesn't"):
        small_trainer(tmp_path / "other", resume=True)
    model = {"preset": "tiny", "numbers": {"dim": 64, "depth": 4, "heads": ["camera"]}}
    with pytest.raises(ValueError, match=r"^checkpoint must be of a model with heads \['camera'\], dim 64, depth 4, .*got '.*' with heads \['camera', 'depth'\], dim 32, depth 1"):  # fmt: skip # noqa: E501
        small_trainer(tmp_path / "run", resume=True, model=model)
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"^checkpoint must be a file of a training run, got '.*', which is broken$"):
        small_trainer(tmp_path / "run", resume=True)
    torch.save({"weight": torch.zeros(1)}, checkpoint)
    with pytest.raises(ValueError, match=r"^checkpoint must be .*, got '.*', which holds something else$"):
        small_trainer(tmp_path / "run", resume=True)


def test_another_configuration_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    small_trainer(tmp_path, model=CAMERA_ONLY).train(until=1)
    with caplog.at_level(logging.WARNING, logger="geomtx"):
        small_trainer(tmp_path, resume=True, model=CAMERA_ONLY, optimiser={"lr": 1e-3}, seed=3)
    assert "The run goes on with another configuration than it began with: optimiser.lr, seed." in caplog.messages


def test_keys_that_are_newer_than_a_checkpoint_are_no_change(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    small_trainer(tmp_path, model=CAMERA_ONLY).train(until=1)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del state["config"]["task"], state["config"]["lora"], state["config"]["model"]["kind"]
    torch.save(state, tmp_path / "checkpoint.pt")
    with caplog.at_level(logging.WARNING, logger="geomtx"):
        small_trainer(tmp_path, resume=True, model=CAMERA_ONLY)
    assert not [message for message in caplog.messages if "another configuration" in message]
    with caplog.at_level(logging.WARNING, logger="geomtx"):
        small_trainer(tmp_path, resume=True, model=CAMERA_ONLY, optimiser={"lr": 2e-3, "skip_above": 5})
    assert "The run goes on with another configuration than it began with: optimiser.skip_above." in caplog.messages


def test_what_can_be_changed_on_the_way(tmp_path: Path):
    """The optimiser's numbers, what is frozen and averaged weights are those of the configuration given last."""
    small_trainer(tmp_path, freeze=["encoder"]).train(until=1)
    groups = {"camera_head.*": {"lr": 0.5}}
    changed = {"optimiser": {"lr": 2e-3, "weight_decay": 0.3, "betas": [0.5, 0.9], "groups": groups}, "ema": 0.9}
    trainer = small_trainer(tmp_path, resume=True, **changed)
    found = {(group["lr_factor"], group["weight_decay"], group["betas"]) for group in trainer.optimiser.param_groups}
    assert found == {(factor, decay, (0.5, 0.9)) for factor in (0.5, 1.0) for decay in (0.0, 0.3)}
    before = weights_of(trainer)
    assert is_equal(trainer.average.averages, {name: before[name] for name in trainer.average.averages})
    trainer.train(until=2)
    encoder = "encoder.frame_blocks.0.mlp.expand.weight"
    assert not torch.equal(before[encoder], weights_of(trainer)[encoder])


def test_the_launcher_decides_on_neither_precision_nor_accumulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    trainer = small_trainer(tmp_path)
    assert trainer.accelerator.mixed_precision == "no"
    assert trainer.accelerator.gradient_accumulation_steps == 1


def test_a_head_of_tracks_needs_tracks(tmp_path: Path):
    """Left out by itself, and resumed so; refused where it is asked for."""
    small_trainer(tmp_path / "out", model=TRACKS, log={"tensorboard": False}).train(until=1)
    resumed = small_trainer(tmp_path / "out", resume=True, model=TRACKS, log={"tensorboard": False})
    assert resumed.bare_model.heads == ("camera", "depth", "points")
    assert small_trainer(tmp_path / "frozen", model=TRACKS, freeze=["track_head"]).bare_model.track_head is not None
    message = r"^data\.num_tracks must be positive where the head of tracks is trained, got 0; else leave 'tracks' out"
    with pytest.raises(ValueError, match=message):
        small_trainer(tmp_path / "run", model={**TRACKS, "numbers": {**TRACKS["numbers"], "heads": ["tracks"]}})


def test_weights_to_start_from(tmp_path: Path):
    model = geomtx.VGGT(small_config().model.model_config())
    model.save_pretrained(tmp_path / "start")
    trainer = small_trainer(tmp_path / "run", model={"weights": str(tmp_path / "start"), "heads": ["camera"]})
    assert trainer.bare_model.heads == ("camera",)
    want = {name: value for name, value in model.state_dict().items() if not name.startswith("depth_head.")}
    assert is_equal(weights_of(trainer), want)


def test_weights_to_start_from_are_not_needed_to_go_on(tmp_path: Path):
    start = tmp_path / "start"
    geomtx.VGGT(small_config().model.model_config()).save_pretrained(start)
    changes = {"model": {"weights": str(start), "heads": ["camera"]}}
    small_trainer(tmp_path / "run", **changes).train(until=1)
    shutil.rmtree(start)
    trainer = small_trainer(tmp_path / "run", resume=True, **changes)
    assert trainer.bare_model.heads == ("camera",)
    stored = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["model"]
    assert is_equal(weights_of(trainer), stored)
    message = r"^checkpoint must be of a model with heads \['depth'\], got '.*' with heads \['camera'\]$"
    with pytest.raises(ValueError, match=message):
        small_trainer(tmp_path / "run", resume=True, model={"weights": str(start), "heads": ["depth"]})


def test_the_configuration_that_is_written_is_the_last(tmp_path: Path):
    small_trainer(tmp_path, model=CAMERA_ONLY).train(until=1)
    small_trainer(tmp_path, resume=True, model=CAMERA_ONLY, optimiser={"lr": 7e-4}, ema=0.5)
    written = load_config(str(tmp_path / "config.yaml"), [])
    assert (written.optimiser.lr, written.ema) == (7e-4, 0.5)


def test_the_seed_decides_on_the_weights(tmp_path: Path):
    one, two, other = (small_trainer(tmp_path / str(i), seed=seed) for i, seed in enumerate((1, 1, 2)))
    assert is_equal(weights_of(one), weights_of(two))
    assert not is_equal(weights_of(one), weights_of(other))


def test_tf32_is_on_where_asked_for(tmp_path: Path):
    before = torch.get_float32_matmul_precision()
    try:
        small_trainer(tmp_path / "a")
        assert torch.get_float32_matmul_precision() == before
        small_trainer(tmp_path / "b", tf32=True)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_half_precision_trains_and_keeps_float32_weights(tmp_path: Path):
    trainer = small_trainer(tmp_path, precision="bfloat16", schedule={"steps": 2})
    before = weights_of(trainer)
    trainer.train()
    after = weights_of(trainer)
    assert {value.dtype for value in after.values()} == {torch.float32}
    assert not is_equal(before, after)
    assert trainer.num_skipped == 0


def test_heads_and_sizes_that_do_not_fit(tmp_path: Path):
    with pytest.raises(ValueError, match=r"^data\.image_hw must be a multiple of 7, got 30$"):
        small_trainer(tmp_path, data={"image_hw": [28, 30]})
    with pytest.raises(ValueError, match=r"^freeze must match a name of the model, got 'aggregator'"):
        small_trainer(tmp_path, freeze=["aggregator"])
    with pytest.raises(ValueError, match=r"^optimiser\.clip must have each trained parameter in one pattern, got none"):
        small_trainer(tmp_path, optimiser={"clip": {"encoder.*": 1.0}})
    with pytest.raises(ValueError, match=r"^detach must be one of 'camera', 'depth', got 'points'$"):
        small_trainer(tmp_path, detach=["points"])


def scalars(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("values", "problem", "what", "details"),
    [
        ({"objective": 1.0, "norm": 7.0}, "images must be …", "its batch is no scene", "images must be …"),
        ({"objective": math.nan, "norm": 7.0}, None, "these are not finite", "objective"),
        ({"objective": 1.0, "norm": math.inf}, None, "these are not finite", "norm"),
        ({"objective": 1.0, "norm": 7.0}, None, "these norms are too large", "norm 7"),
        ({"objective": 1.0, "norm": 5.0}, None, "these are not finite", "another process's"),
    ],
)
def test_reasons(values: dict[str, float], problem: str | None, what: str, details: str):
    reason = explain_skip(scalars(**values), problem, {"norm": 5.0})
    assert (reason.what, reason.details) == (what, details)


def test_steps_are_counted_said_and_end_the_run_if_too_many_follow_each_other(caplog: pytest.LogCaptureFixture):
    skipped = SkippedSteps(2)
    reason = SkipReason("its batch is no scene", "batches must be scenes", "x is y")
    with caplog.at_level(logging.WARNING, logger="geomtx"):
        skipped.add(3, reason)
        skipped.add(4, reason)
    assert caplog.messages == [f"Step {step} was skipped, as its batch is no scene: x is y." for step in (3, 4)]
    skipped.in_a_row = 0
    skipped.add(6, reason)
    skipped.add(7, reason)
    message = (
        r"^batches must be scenes, got 3 steps in a row that are not, up to step 8 \(x is y\); the last checkpoint"
    )
    with pytest.raises(ValueError, match=message):
        skipped.add(8, reason)
    assert (skipped.total, skipped.in_a_row) == (5, 3)


@pytest.fixture
def model() -> geomtx.VGGT:
    return geomtx.VGGT(geomtx.VGGTConfig.tiny(**NUMBERS, heads=("camera", "depth"))).train()


def test_scores_are_those_of_evaluation(model: geomtx.VGGT):
    batches = [(3, random_scenes(2, num_views=3)), (3, random_scenes(1, num_views=3))]
    got = validate(model, MultitaskLoss(), batches)
    assert model.training
    model.eval()
    with torch.no_grad():
        evaluations = [evaluate_predictions(predict(model, normalize_scene(batch)[0]), batch) for _, batch in batches]
    want = summarize(evaluations)
    for name, other in (("auc@30", "auc_30"), ("abs_rel", "depth_abs_rel"), ("delta_1.25", "depth_delta")):
        assert got[f"{name}/3v"] == pytest.approx(want[other], rel=1e-5), name


def test_a_scene_without_truth_spoils_no_mean(model: geomtx.VGGT):
    scenes = random_scenes(2)
    scenes.mask[1] = False
    half = scenes._replace(camera_mask=torch.tensor([[True, True], [True, False]]))
    got = validate(model, MultitaskLoss(), [(2, half)])
    alone = validate(model, MultitaskLoss(), [(2, random_scenes(1)), (2, half)])
    assert all(math.isfinite(value) for value in (*got.values(), *alone.values()))
    first = type(scenes)(
        scenes.images[:1], geomtx.Cameras(*(part[:1] for part in scenes.cameras)), None, scenes.depth[:1]
    )
    for name in ("auc@30/2v", "abs_rel/2v"):
        assert got[name] == pytest.approx(validate(model, MultitaskLoss(), [(2, first)])[name], rel=1e-5)
