"""`Trainer(config, folder, model=…, loss=…)`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import geomtx
from geomtx.losses import HeadTerm
from geomtx.losses.multitask import LossReport, MultitaskLoss
from geomtx.training.prepare import build_loss
from geomtx.training.trainer import Trainer
from geomtx.types import Predictions, SceneBatch
from training.small_run import NUMBERS, is_equal, small_config, weights_of
from training.toy_task import GreyTask, grey_loss


def build_vggt() -> geomtx.VGGT:
    torch.manual_seed(5)
    return geomtx.VGGT(geomtx.VGGTConfig.tiny(**NUMBERS, heads=("depth",)))


def depth_loss(predictions: Predictions, batch: SceneBatch) -> LossReport:
    total = (predictions.depth.value.log() - batch.depth.clamp(min=0.1).log()).abs().mean()
    return LossReport(total, {"log": total}, {"loss_log": total})


class Plain(nn.Module):
    """Without a configuration, and without a way to save itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.movedim(-3, -1)).squeeze(-1)


def own(folder: Path, model: nn.Module, loss: Any, *, resume: bool = False, **options: Any) -> Trainer:
    config = small_config(schedule={"steps": 2}, validation={"every": 2, "scenes": 2, "views": [2]})
    return Trainer(config, folder, model=model, loss=loss, resume=resume, cpu=True, progress=False, **options)


def test_a_model_and_a_loss_of_ones_own(tmp_path: Path):
    """The configuration's section on the model doesn't count."""
    model = build_vggt()
    trainer = own(tmp_path, model, depth_loss)
    assert trainer.bare_model is model
    before = weights_of(trainer)
    weights = trainer.train()
    assert not is_equal(before, weights_of(trainer))
    assert is_equal(geomtx.VGGT.from_pretrained(weights).state_dict(), model.state_dict())
    assert '"loss_log"' in (tmp_path / "log.jsonl").read_text()
    assert '"loss_log/2v"' in (tmp_path / "log.jsonl").read_text()


def test_it_goes_on_where_it_is_given_again(tmp_path: Path):
    whole = own(tmp_path / "whole", build_vggt(), depth_loss)
    whole.train()
    own(tmp_path / "parts", build_vggt(), depth_loss).train(until=1)
    again = build_vggt()
    nn.init.zeros_(again.depth_head.decoder.norm.weight)
    resumed = own(tmp_path / "parts", again, depth_loss, resume=True)
    resumed.train()
    assert is_equal(weights_of(whole), weights_of(resumed))
    assert (tmp_path / "whole" / "log.jsonl").read_text() == (tmp_path / "parts" / "log.jsonl").read_text()


def test_another_model_is_told(tmp_path: Path):
    own(tmp_path, build_vggt(), depth_loss).train(until=1)
    other = geomtx.VGGT(geomtx.VGGTConfig.tiny(**NUMBERS, heads=("depth", "points")))
    message = r"^checkpoint must be of this model, with its adapters, got nothing for \(.*\) in point_head\."
    with pytest.raises(ValueError, match=message):
        own(tmp_path, other, MultitaskLoss(), resume=True)


def test_a_model_that_cannot_save_itself_is_saved_by_names(tmp_path: Path):
    trainer = own(tmp_path, Plain(), _plain_loss, task=PlainTask())
    weights = trainer.train()
    assert is_equal(load_file(weights / "model.safetensors"), weights_of(trainer))
    resumed = own(tmp_path, Plain(), _plain_loss, task=PlainTask(), resume=True)
    assert is_equal(weights_of(resumed), weights_of(trainer))


class SavesItself(Plain):
    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text('{"mine": true}')


@pytest.mark.parametrize("options", [{"resume": True}, {"overwrite": True}])
def test_a_model_that_saves_itself_decides_what_it_replaces(options: dict[str, bool], tmp_path: Path):
    weights = own(tmp_path, SavesItself(), _plain_loss, task=PlainTask()).train(until=1)
    (weights / "config.json").write_text("{}")
    own(tmp_path, SavesItself(), _plain_loss, task=PlainTask(), **options).train()
    assert (weights / "config.json").read_text() == '{"mine": true}'


class PlainTask(GreyTask):
    def score(self, outputs: Any, batch: SceneBatch) -> dict[str, Tensor]:
        return {}


def _plain_loss(outputs: Any, batch: SceneBatch) -> LossReport:
    return grey_loss(outputs, batch)


def with_a_head_of_grey() -> geomtx.VGGT:
    model = build_vggt()
    decoder = geomtx.DPTDecoder(2 * model.config.dim, 16, channels=(8, 8, 16, 16), taps=model.config.taps)
    model.add_head("grey", geomtx.DenseHead(decoder, 1, hidden_dim=8))
    return model


def _grey_error(maps: geomtx.DenseMap, batch: SceneBatch) -> Tensor:
    return (maps.value.flatten() - batch.images.mean(2).flatten()).square().mean()


def test_an_added_head_is_trained_with_the_others_saved_and_resumed(tmp_path: Path):
    """By the configuration's loss and the head's, in bfloat16, with adapters on the encoder."""
    options = {
        "freeze": ["encoder"],
        "lora": {"patterns": ["encoder.*.attention.*"], "rank": 2},
        "precision": "bfloat16",
        "schedule": {"steps": 2},
        "ema": 0.5,
    }

    def run(folder: str, *, resume: bool = False) -> Trainer:
        config = small_config(**options)
        loss = build_loss(config.loss, others={"grey": HeadTerm("grey", _grey_error, weight=2.0)})
        model = with_a_head_of_grey()
        return Trainer(config, tmp_path / folder, model=model, loss=loss, resume=resume, cpu=True, progress=False)

    whole = run("whole")
    before = weights_of(whole)
    assert whole.loss.tasks.keys() == {"camera", "depth", "points", "tracks", "grey"}
    weights = whole.train()
    after = weights_of(whole)
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("extra_heads.grey."))
    run("parts").train(until=1)
    resumed = run("parts", resume=True)
    resumed.train()
    assert is_equal(after, weights_of(resumed))
    head = with_a_head_of_grey().extra_heads["grey"]
    loaded = geomtx.VGGT.from_pretrained(weights, extra_heads={"grey": head})
    assert set(loaded.heads) == {"depth", "grey"}
    averages = whole.average.averages
    named = {name: p for name, p in loaded.named_parameters() if name in averages}
    assert any(name.startswith("extra_heads.grey.") for name in named)
    assert all(torch.equal(parameter, averages[name]) for name, parameter in named.items())
    assert '"loss_grey"' in (tmp_path / "whole" / "log.jsonl").read_text()
