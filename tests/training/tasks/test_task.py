import importlib
import json
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import geomtx
from geomtx.models.vggt.config import VGGTConfig
from geomtx.training.config_file import load_config, parse_config, save_config
from geomtx.training.tasks import task as tasks
from geomtx.training.tasks.task import Task, build_task
from geomtx.training.tasks.vggt import VggtTask
from geomtx.training.trainer import Trainer
from training.small_run import is_equal, weights_of
from training.toy_task import GreyConfig, GreyModel, GreyTask

GREY = {
    "model": {"kind": "grey", "numbers": {"width": 6}},
    "task": {"noise": 0.2},
    "data": {"image_hw": [28, 28], "images": 8, "views": {2: 1, 4: 1}},
    "validation": {"every": 4, "scenes": 2, "views": [2]},
    "optimiser": {"lr": 2e-2},
    "schedule": {"steps": 4},
    "accumulation": 2,
    "ema": 0.9,
    "log": {"every": 2, "tensorboard": False},
}


@pytest.fixture(autouse=True)
def grey_kind(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(tasks._HOMES, "grey", ("training.toy_task", "GreyTask"))


def trainer(folder: Path, *, resume: bool = False, **changes: Any) -> Trainer:
    return Trainer(parse_config({**GREY, **changes}), folder, resume=resume, cpu=True, progress=False)


def test_another_kind_of_model_learns_and_is_scored(tmp_path: Path):
    run = trainer(
        tmp_path,
        schedule={"steps": 40},
        optimiser={"lr": 0.04},
        validation={"every": 40, "scenes": 4, "views": [2]},
        data={"image_hw": [14, 14], "images": 4, "views": {2: 1}},
    )
    assert run.task == GreyTask(noise=0.2)
    first = run.validate()
    weights = run.train()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "validation"][-1]
    assert last["error/2v"] < first["error/2v"] / 2
    assert {"objective/2v", "loss_grey/2v"} <= last.keys()
    assert {"objective", "loss_grey", "error", "norm/*"} <= lines[1].keys()
    loaded = GreyModel.from_pretrained(weights)
    assert loaded.config == GreyConfig(width=6)
    averages = run.average.averages
    assert all(torch.equal(parameter, averages[name]) for name, parameter in loaded.named_parameters())
    assert torch.equal(loaded.calls, run.bare_model.calls), "what is no parameter is kept, too"


def test_stopped_and_resumed_is_as_if_never_stopped(tmp_path: Path):
    """What the task draws included."""
    whole = trainer(tmp_path / "whole")
    whole.train()
    trainer(tmp_path / "parts").train(until=3)
    torch.manual_seed(123)
    resumed = trainer(tmp_path / "parts", resume=True)
    resumed.train()
    assert resumed.bare_model.config == GreyConfig(width=6)
    assert is_equal(weights_of(whole), weights_of(resumed))
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("whole", "parts")]
    assert logs[0] == logs[1]
    files = [tmp_path / name / "weights" / "model.safetensors" for name in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_checkpoint_of_another_kind_or_size(tmp_path: Path):
    trainer(tmp_path).train(until=1)
    message = r"^checkpoint must be of a model with width 9, got '.*checkpoint\.pt' with width 6$"
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, resume=True, model={"kind": "grey", "numbers": {"width": 9}})
    message = r"^checkpoint must be of a model of kind vggt, got '.*checkpoint\.pt' of grey$"
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, resume=True, model={"preset": "tiny"}, task={})


@pytest.mark.parametrize(
    ("numbers", "why"),
    [
        ({"width": 8}, "has a configuration that makes no model: .*, got 'width'"),
        (None, "doesn't fit the model: .* missing"),
    ],
)
def test_weights_of_another_kind(numbers: dict[str, int] | None, why: str, tmp_path: Path):
    """With their own configuration, or with one that isn't theirs; nothing is written."""
    GreyModel(GreyConfig()).save_pretrained(tmp_path / "grey")
    config = numbers or VGGTConfig.tiny().to_dict()
    (tmp_path / "grey" / "config.json").write_text(json.dumps(config))
    values = {**GREY, "model": {"weights": str(tmp_path / "grey")}, "task": {}}
    with pytest.raises(ValueError, match=rf"^model\.weights must be what 'vggt' can start from, but .*grey {why}"):
        Trainer(parse_config(values), tmp_path / "run", cpu=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("kind", "hint"),
    [("DepthAnything3", r"; model\.kind=depth_anything is for such models$"), ("Pi3", "as geomtx.load_model does$")],
)
def test_weights_of_a_family_name_the_kind_that_trains_it(kind: str, hint: str, tmp_path: Path):
    config = {"DepthAnything3": geomtx.DepthAnything3Config, "Pi3": geomtx.Pi3Config}[kind]
    getattr(geomtx, kind)(config.tiny()).save_pretrained(tmp_path / "weights")
    values = {**GREY, "model": {"weights": str(tmp_path / "weights")}, "task": {}}
    with pytest.raises(ValueError, match=rf"but weights must be of a VGGT, got .* of a {kind}; .*{hint}"):
        Trainer(parse_config(values), tmp_path / "run", cpu=True)


def test_a_task_of_ones_own(tmp_path: Path):
    """Given in place of the one that the configuration names."""
    config = parse_config({**GREY, "model": {"numbers": {}}, "task": {}})
    run = Trainer(config, tmp_path, task=GreyTask(), cpu=True, progress=False)
    assert isinstance(run.bare_model, GreyModel)
    run.train(until=2)
    assert run.step == 2


def test_what_needs_the_encoder_of_a_vggt(tmp_path: Path):
    message = r"must be off for a model without an AlternatingEncoder, got GreyModel$"
    with pytest.raises(ValueError, match=f"^gradient_checkpointing {message}"):
        trainer(tmp_path, gradient_checkpointing=True)
    with pytest.raises(ValueError, match=f"^monitor {message}"):
        trainer(tmp_path, monitor={"every": 1})


def test_options_are_checked_when_the_configuration_is_read(tmp_path: Path):
    config = parse_config(GREY)
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml", ["task.noise=0.2"]) == config
    with pytest.raises(ValueError, match=r"^config key must be .* noise, got 'task\.noize'; did you mean 'noise'\?$"):
        parse_config({**GREY, "task": {"noize": 1}})
    with pytest.raises(ValueError, match=r"^task\.noise must be a number, got 'loud'$"):
        parse_config({**GREY, "task": {"noise": "loud"}})
    with pytest.raises(ValueError, match=r"^task\.noise must be at least 0, got -1\.0$"):
        parse_config({**GREY, "task": {"noise": -1}})
    with pytest.raises(ValueError, match=r"^model\.kind must be one of 'vggt', .*, got 'vgt'$"):
        parse_config({"model": {"kind": "vgt"}})
    with pytest.raises(ValueError, match=r"^task must be empty where model\.kind is 'vggt', got noise, x$"):
        parse_config({"task": {"noise": 1, "x": 2}})


def test_tasks_by_name():
    assert build_task("vggt", {}) == VggtTask()
    assert isinstance(VggtTask(), Task)
    assert isinstance(GreyTask(), Task)


@pytest.mark.parametrize(("kind", "home"), [(kind, home) for kind, home in tasks._HOMES.items() if kind != "grey"])
def test_a_task_is_imported_only_when_it_is_asked_for(
    kind: str, home: tuple[str, str], monkeypatch: pytest.MonkeyPatch
):
    seen = []
    fake = types.SimpleNamespace(**{home[1]: GreyTask})
    monkeypatch.setattr(importlib, "import_module", lambda name: (seen.append(name), fake)[1])
    assert build_task(kind, {"noise": 0.5}) == GreyTask(0.5)
    assert seen == [home[0]]
