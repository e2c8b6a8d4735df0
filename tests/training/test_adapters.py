"""Runs with `lora`."""

import copy
from pathlib import Path

import pytest
import torch

import geomtx
from geomtx.layers.lora import adapted_layers, merge_lora
from geomtx.training.config_file import parse_config
from geomtx.training.trainer import Trainer
from training.small_run import is_equal, small_config, small_trainer, weights_of

LORA = {
    "freeze": ["encoder"],
    "lora": {"patterns": ["encoder.*_blocks.*.attention.qkv", "encoder.*.mlp.*"], "rank": 2, "alpha": 4},
    "optimiser": {"lr": 1e-2, "clip": {"encoder.*": 1.0, "*_head.*": 1.0}},
    "ema": 0.5,
    "accumulation": 2,
    "gradient_checkpointing": True,
    "schedule": {"steps": 3},
    "checkpoint": {"every": 2, "keep_every": 2},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, dict[str, torch.Tensor]]:
    """A run at its end, and the weights it began with."""
    trainer = small_trainer(tmp_path_factory.mktemp("adapters") / "whole", **LORA)
    before = weights_of(trainer)
    trainer.train()
    return trainer, before


def test_adapters_train_where_all_else_is_frozen(whole: tuple[Trainer, dict[str, torch.Tensor]]):
    trainer, before = whole
    trained = {name for name, p in trainer.bare_model.named_parameters() if p.requires_grad}
    assert {name.rpartition(".")[2] for name in trained if name.startswith("encoder.")} == {"down", "up"}
    assert all(a.rank == 2 and a.alpha == 4 for _, a in adapted_layers(trainer.bare_model).values())
    after = weights_of(trainer)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in trained if name.startswith("encoder.")} <= changed
    assert changed <= trained


def test_the_weights_are_merged_and_averaged(whole: tuple[Trainer, dict[str, torch.Tensor]]):
    trainer, _ = whole
    assert adapted_layers(trainer.bare_model), "saving takes no adapter off"
    loaded = geomtx.VGGT.from_pretrained(trainer.folder.weights)
    model = copy.deepcopy(trainer.bare_model).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(trainer.average.averages.get(name, parameter))
        images = torch.rand(2, 3, 28, 28)
        torch.testing.assert_close(loaded(images).depth.value, model(images).depth.value)
    merge_lora(model)
    assert is_equal(loaded.state_dict(), model.state_dict())


def test_stopped_and_resumed_is_as_if_never_stopped(whole: tuple[Trainer, dict[str, torch.Tensor]], tmp_path: Path):
    """With the checkpoint of its second step in place of its last one."""
    trainer, _ = whole
    kept = trainer.folder.path / "checkpoint-0000002.pt"
    (tmp_path / "checkpoint.pt").write_bytes(kept.read_bytes())
    torch.manual_seed(123)
    resumed = small_trainer(tmp_path, resume=True, **LORA)
    assert resumed.step == 2
    resumed.train()
    assert is_equal(weights_of(trainer), weights_of(resumed))
    assert is_equal(trainer.average.averages, resumed.average.averages)
    files = [folder / "model.safetensors" for folder in (trainer.folder.weights, tmp_path / "weights")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_checkpoint_and_weights_of_a_stopped_run(tmp_path: Path):
    """Other adapters don't fit the checkpoint; another run may begin from the weights with new ones."""
    weights = small_trainer(tmp_path / "first", **LORA).train(until=1)
    clip = {"encoder.*": 1.0, "*_head.*": 1.0}
    message = r"^checkpoint must be of this model, with its adapters, got .* in encoder\."
    for lora in (None, {**LORA["lora"], "rank": 3}):
        with pytest.raises(ValueError, match=message):
            small_trainer(tmp_path / "first", resume=True, **{**LORA, "lora": lora, "optimiser": {"clip": clip}})
    trainer = small_trainer(tmp_path / "second", model={"weights": str(weights)}, **LORA)
    merge_lora(trainer.bare_model)
    assert is_equal(weights_of(trainer), geomtx.VGGT.from_pretrained(weights).state_dict())


def test_adapters_that_cannot_be(tmp_path: Path):
    with pytest.raises(ValueError, match=r"^lora\.patterns must match a name of the model, got 'encoder\.qvk'"):
        small_trainer(tmp_path, lora={"patterns": ["encoder.qvk"]})
    with pytest.raises(ValueError, match=r"^lora: patterns must match linear layers, got '\*\.attention', which"):
        small_trainer(tmp_path, lora={"patterns": ["*.attention"]})
    for lora, message in (
        ({}, r"lora\.patterns must be given, got none"),
        ({"patterns": []}, r"lora\.patterns must name linear layers, got none"),
        ({"patterns": ["*"], "rank": 0}, r"lora\.rank must be positive, got 0"),
        ({"patterns": ["*"], "alpha": -1}, r"lora\.alpha must be positive, got -1\.0"),
        ({"patterns": ["*"], "rnk": 2}, r"config key must be one of .*, got 'lora\.rnk'; did you mean 'rank'\?"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            parse_config({"lora": lora})
    assert not list(tmp_path.iterdir())
    assert small_config().lora is None
