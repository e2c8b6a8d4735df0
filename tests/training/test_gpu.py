"""What a run is on a GPU: needs one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from geomtx.training.trainer import Trainer
from training.small_run import NUMBERS, is_equal, small_config, weights_of

pytestmark = pytest.mark.cuda

EVERYTHING = {
    "model": {"preset": "tiny", "numbers": NUMBERS},
    "data": {"image_hw": [28, 28], "images": 8, "views": {2: 1}, "num_tracks": 4},
    "schedule": {"steps": 3},
    "log": {"every": 1, "tensorboard": False},
    "ema": 0.9,
}


@pytest.fixture(autouse=True)
def _other_devices() -> Iterator[None]:
    """accelerate keeps the device of a process's first run."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def run(folder: Path, *, cpu: bool, resume: bool = False, until: int | None = None, **changes: Any) -> Trainer:
    AcceleratorState._reset_state(reset_partial_state=True)
    config = small_config(**{**EVERYTHING, **changes})
    trainer = Trainer(config, folder, cpu=cpu, resume=resume, progress=False)
    trainer.train(until=until)
    return trainer


def losses(folder: Path) -> list[float]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [line["objective"] for line in map(json.loads, lines) if line["kind"] == "train"]


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 3e-2)])
def test_a_run_begins_with_the_loss_of_the_cpu(precision: str, tolerance: float, tmp_path: Path):
    """The same weights and scenes: the first loss is computed before any weight has changed."""
    there = run(tmp_path / "there", cpu=False, precision=precision)
    here = run(tmp_path / "here", cpu=True)
    assert there.device.type == "cuda"
    assert {(p.device.type, p.dtype) for p in there.bare_model.parameters()} == {("cuda", torch.float32)}
    assert there.num_skipped == here.num_skipped == 0
    assert len(losses(tmp_path / "there")) == 3
    assert losses(tmp_path / "there")[0] == pytest.approx(losses(tmp_path / "here")[0], rel=tolerance)


def test_stopped_and_resumed_in_bfloat16(tmp_path: Path):
    """Goes on with the same scenes and moments; sums on a GPU come in any order, so not to the last bit."""
    run(tmp_path / "whole", cpu=False, precision="bfloat16")
    stopped = run(tmp_path / "parts", cpu=False, precision="bfloat16", until=1)
    resumed = run(tmp_path / "parts", cpu=False, precision="bfloat16", resume=True)
    assert resumed.step == 3
    assert not is_equal(weights_of(stopped), weights_of(resumed))
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-2)
