"""Runs with `lora`."""

from pathlib import Path
from typing import Any

import pytest
import torch

import geomtx
from geomtx.layers.lora import adapted_layers, merge_lora
from geomtx.training.config_file import parse_config
from training.small_run import is_equal, small_config, small_trainer, weights_of

LORA = {
    "freeze": ["encoder"],
    "lora": {"patterns": ["encoder.*_blocks.*.attention.qkv", "encoder.*.mlp.*"], "rank": 2, "alpha": 4},
    "optimiser": {"lr": 1e-2, "clip": {"encoder.*": 1.0, "*_head.*": 1.0}},
    "ema": 0.5,
    "accumulation": 2,
    "gradient_checkpointing": True,
}


def test_adapters_train_where_all_else_is_frozen(tmp_path: Path):
    trainer = small_trainer(tmp_path, **LORA)
    before = weights_of(trainer)
    trained = {name for name, p in trainer.bare_model.named_parameters() if p.requires_grad}
    assert {name.rpartition(".")[2] for name in trained if name.startswith("encoder.")} == {"down", "up"}
    assert all(a.rank == 2 and a.alpha == 4 for _, a in adapted_layers(trainer.bare_model).values())
    trainer.train()
    after = weights_of(trainer)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in trained if name.startswith("encoder.")} <= changed
    assert changed <= trained


def test_the_weights_are_merged_and_averaged_and_the_run_goes_on(tmp_path: Path):
    trainer = small_trainer(tmp_path, **LORA)
    loaded = geomtx.VGGT.from_pretrained(trainer.train())
    assert adapted_layers(trainer.bare_model), "saving takes no adapter off"
    with trainer.average.applied():
        images = torch.rand(2, 3, 28, 28)
        trainer.bare_model.eval()
        with torch.no_grad():
            want = trainer.bare_model(images)
            torch.testing.assert_close(loaded(images).depth.value, want.depth.value)
        merge_lora(trainer.bare_model)
        assert is_equal(loaded.state_dict(), trainer.bare_model.state_dict())


def test_stopped_and_resumed_is_as_if_never_stopped(tmp_path: Path):
    whole = small_trainer(tmp_path / "whole", **LORA)
    whole.train()
    small_trainer(tmp_path / "parts", **LORA).train(until=3)
    torch.manual_seed(123)
    resumed = small_trainer(tmp_path / "parts", resume=True, **LORA)
    resumed.train()
    assert is_equal(weights_of(whole), weights_of(resumed))
    assert is_equal(whole.average.averages, resumed.average.averages)
    files = [tmp_path / name / "weights" / "model.safetensors" for name in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("lora", [None, {**LORA["lora"], "rank": 3}])
def test_a_checkpoint_with_other_adapters(lora: dict[str, Any] | None, tmp_path: Path):
    small_trainer(tmp_path, **LORA).train(until=1)
    clip = {"encoder.*": 1.0, "*_head.*": 1.0}
    with pytest.raises(ValueError, match=r"^checkpoint must be of this model, with its adapters, got .* in encoder\."):
        small_trainer(tmp_path, resume=True, **{**LORA, "lora": lora, "optimiser": {"clip": clip}})


def test_from_the_weights_of_a_run_another_goes_on_with_new_adapters(tmp_path: Path):
    weights = small_trainer(tmp_path / "first", **LORA).train(until=1)
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
