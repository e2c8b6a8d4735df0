from pathlib import Path
from typing import Any

import pytest
import torch

from geomtx import CroCo, CroCoConfig
from geomtx.losses import completion_loss
from geomtx.training.config import LossSection, ModelSection
from geomtx.training.config_file import parse_config
from geomtx.training.tasks.croco import CompletionLoss, CroCoTask
from geomtx.training.tasks.pairs import DUSt3RTask
from geomtx.training.trainer import Trainer
from training.small_run import is_equal, random_scenes, weights_of

NUMBERS = {"encoder_depth": 1, "depth": 2, "patch_size": 7, "image_size": 28}
CROCO: dict[str, Any] = {
    "model": {"kind": "croco", "preset": "tiny", "numbers": NUMBERS},
    "task": {"ratio": 0.75},
    "data": {"image_hw": [28, 28], "images": 8, "views": {2: 1}},
    "optimiser": {"lr": 2e-3},
    "schedule": {"steps": 3},
    "accumulation": 2,
    "validation": {"every": 3, "scenes": 2, "views": [2]},
    "log": {"every": 1, "tensorboard": False},
}


def croco_trainer(folder: Path, *, resume: bool = False, **changes: Any) -> Trainer:
    return Trainer(parse_config({**CROCO, **changes}), folder, resume=resume, cpu=True, progress=False)


@pytest.fixture
def model() -> CroCo:
    return CroCo(CroCoConfig.tiny(**NUMBERS))


def test_what_is_hidden_is_completed(model: CroCo):
    """Cameras and depth are not looked at; the loss is that of the patches that were hidden."""
    task = CroCoTask(ratio=0.75, normalize=False)
    batch = task.prepare(random_scenes(3))
    assert batch.cameras is batch.depth is batch.tracks is None
    outputs = task.predict(model.train(), batch)
    assert outputs.hidden.sum(1).tolist() == [12, 12, 12]
    assert not torch.equal(task.predict(model, batch).hidden, outputs.hidden), "drawn anew"
    first, second = batch.images.unbind(1)
    torch.testing.assert_close(outputs.patches, model(first, second, outputs.hidden))
    report = task.build_loss(LossSection())(outputs, batch)
    want = completion_loss(outputs.patches, 2 * first - 1, outputs.hidden, normalize=False)
    torch.testing.assert_close(report.total, want)
    assert not torch.isclose(CompletionLoss()(outputs, batch).total, want), "by default patches are normalised"
    report.total.backward()
    assert [name for name, each in model.named_parameters() if each.grad is None] == []
    assert task.score(outputs, batch) == {}


def test_a_run_from_random_weights_to_a_model_of_pairs(tmp_path: Path):
    """Stopped and resumed; a DUSt3R begins with the folder of its weights."""
    whole = croco_trainer(tmp_path / "whole")
    weights = whole.train()
    croco_trainer(tmp_path / "parts").train(until=2)
    torch.manual_seed(123)
    resumed = croco_trainer(tmp_path / "parts", resume=True)
    resumed.train()
    assert is_equal(weights_of(whole), weights_of(resumed))
    section = ModelSection(kind="dust3r", preset="tiny", numbers={"head": "linear"}, weights=str(weights))
    started = DUSt3RTask().build_model(section)
    assert is_equal(started.encoder.state_dict(), whole.bare_model.encoder.state_dict())
    again = croco_trainer(tmp_path / "again", model={"kind": "croco", "weights": str(weights)})
    assert is_equal(weights_of(again), weights_of(whole))


def test_what_no_run_can_begin_with(model: CroCo, tmp_path: Path):
    source = str(model.save_pretrained(tmp_path / "croco"))
    with pytest.raises(ValueError, match=r"^model.weights must be what 'croco' .*, but model.numbers must be empty fo"):
        CroCoTask().build_model(ModelSection(kind="croco", weights=source, numbers=NUMBERS))
    with pytest.raises(ValueError, match=r"^model.weights must be what 'croco' can start from, but "):
        CroCoTask().build_model(ModelSection(kind="croco", weights="nano"))
    with pytest.raises(ValueError, match=r"^scenes must have 2 views to train a model of pairs, got 3$"):
        CroCoTask().prepare(random_scenes(1, 3))
    with pytest.raises(ValueError, match=r"^task.ratio must be in 0 … 1, got 2"):
        parse_config({**CROCO, "task": {"ratio": 2}})
