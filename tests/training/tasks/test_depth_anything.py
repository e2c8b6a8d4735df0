from pathlib import Path

import pytest
import torch

from families import build
from geomtx import DepthAnything3
from geomtx.training.config import LossSection, ModelSection
from geomtx.training.tasks.depth_anything import DepthAnythingTask
from geomtx.training.tasks.running import RunOptions
from training.small_run import is_equal, random_scenes, small_trainer, weights_of


@pytest.fixture
def weights(tmp_path: Path) -> str:
    return str(build("da3").save_pretrained(tmp_path / "start"))


def section_of(weights: str) -> dict[str, object]:
    return {"kind": "depth_anything", "weights": weights}


def test_a_run_starts_from_weights_and_resumes(weights, tmp_path: Path):
    options = {"model": section_of(weights), "gradient_checkpointing": True, "freeze": ["encoder.backbone"]}
    whole = small_trainer(tmp_path / "whole", **options)
    written = whole.train()
    tuned, start = DepthAnything3.from_pretrained(written), DepthAnything3.from_pretrained(weights)
    assert (tuned.heads, tuned.config.reference) == (("camera", "depth"), "first")
    state = start.state_dict()
    changed = {name for name, value in tuned.state_dict().items() if not torch.equal(value, state[name])}
    assert {name.partition(".")[0] for name in changed} == {"encoder", "camera_head", "dense_head"}
    assert not any(name.startswith("encoder.backbone") for name in changed)
    stopped = small_trainer(tmp_path / "stopped", **options)
    stopped.train(until=2)
    resumed = small_trainer(tmp_path / "stopped", resume=True, **options)
    resumed.train()
    assert is_equal(weights_of(whole), weights_of(resumed))


def test_the_loss_reaches_all_that_is_trained(weights):
    task, section = DepthAnythingTask(), ModelSection(**section_of(weights))
    model = task.build_model(section).train()
    batch = task.prepare(random_scenes(2, 3, (28, 42)))
    plain = task.predict(model, batch)
    again = task.predict(model, batch, RunOptions(recompute=True))
    torch.testing.assert_close(again.depth.value, plain.depth.value)
    task.build_loss(LossSection())(again, batch).total.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert {name.partition(".")[0] for name in without} == {"camera_encoder"}
    assert "auc@30" in task.score(plain, batch)
    rebuilt = task.rebuild_model(model.config.to_dict())
    assert rebuilt.config == model.config


def test_what_a_run_can_not_start_from(tmp_path: Path):
    task = DepthAnythingTask()
    with pytest.raises(ValueError, match=r"^model.weights must be given where .* 'depth_anything', got none$"):
        task.build_model(ModelSection(kind="depth_anything"))
    single = str(build("da3, single views").save_pretrained(tmp_path / "single"))
    with pytest.raises(ValueError, match=r"^model.weights must be what 'depth_anything' .* of single views$"):
        task.build_model(ModelSection(kind="depth_anything", weights=single))
    with pytest.raises(ValueError, match=r"^model.weights must be what 'depth_anything' .* of a DepthAnything3"):
        task.build_model(ModelSection(kind="depth_anything", weights="nano"))
