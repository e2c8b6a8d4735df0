import contextlib
import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import geomtx
from geomtx.models import compiled
from geomtx.models.compiled import compiled_parts
from geomtx.scene import progress
from geomtx.training.recomputation import recompute_blocks

SCRIPT = Path(__file__).parents[1] / "compile_reconstruction.py"


def measure() -> dict[str, dict[str, float]]:
    """Errors and counts, measured in a process without the hook that checks shapes."""
    environment = {name: value for name, value in os.environ.items() if name != "GEOMTX_CHECK_SHAPES"}
    run = subprocess.run([sys.executable, SCRIPT, "eager"], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.timeout(600)
def test_the_same_result_and_nothing_is_compiled_twice():
    measured = measure()
    assert {name: error for name, error in measured["errors"].items() if not error < 1e-9} == {}
    assert measured["breaks"] == {}
    graphs = measured["graphs"]
    # ViT, frame, global and camera blocks, and decoders: not one for each of them.
    assert 4 <= graphs["first"] <= 7
    assert graphs["a second scene"] == graphs["more views, another size"] == graphs["another model"] == graphs["first"]
    assert graphs["in pieces"] > graphs["another model"]
    # The last piece of a sequence may be a single token, which is a program of its own.
    assert graphs["more views in pieces"] <= graphs["in pieces"] + 2
    assert graphs["masked"] > graphs["more views in pieces"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the compiled functions, one entry a call; nothing is compiled."""
    calls: list[str] = []

    def stand_in(function, **options):
        assert options["dynamic"] is True
        return lambda *a, **k: calls.append(function.__name__) or function(*a, **k)

    compiled._compile.cache_clear()
    monkeypatch.setattr(torch, "compile", stand_in)
    yield calls
    compiled._compile.cache_clear()


def test_every_block_and_decoder_is_compiled_and_the_model_is_as_before(tiny_model, images, calls):
    before = {name: dict(vars(module)) for name, module in tiny_model.named_modules()}
    names = list(tiny_model.state_dict())
    with torch.no_grad(), compiled_parts(tiny_model):
        tiny_model(images)
        assert list(tiny_model.state_dict()) == names
    config = tiny_model.config
    assert calls.count("forward") == 2 + 4 + 4 + config.camera_iterations * config.camera_depth
    assert calls.count("merge") == 2
    assert {name: dict(vars(module)) for name, module in tiny_model.named_modules()} == before
    calls.clear()
    copy.deepcopy(tiny_model)(images).depth.value.mean().backward()
    assert calls == []


def test_a_method_of_the_block_itself_comes_back_also_after_an_error(tiny_model, images, calls):
    recompute_blocks(tiny_model.encoder)
    own = tiny_model.encoder.frame_blocks[0].forward
    with pytest.raises(RuntimeError, match="stop"), compiled_parts(tiny_model):
        raise RuntimeError("stop")
    assert tiny_model.encoder.frame_blocks[0].forward is own


def test_nothing_to_compile():
    message = r"^model must have transformer blocks or dense decoders to compile, got Linear$"
    with pytest.raises(ValueError, match=message):
        compiled_parts(nn.Linear(2, 2)).__enter__()


class Bar:
    """Stands for the progress bar."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.total = self.done = 0
        monkeypatch.setattr(progress, "tqdm", self.start)

    @contextlib.contextmanager
    def start(self, *, total: int, **_: object) -> Iterator["Bar"]:
        self.total = total
        yield self

    def update(self, count: int) -> None:
        self.done += count


@pytest.mark.parametrize(("memory", "steps"), [("auto", 12), ("low", 8)])
def test_reconstruct(tiny_model, calls, monkeypatch, memory, steps):
    bar = Bar(monkeypatch)
    views = torch.rand(3, 3, 56, 84)
    expected = geomtx.reconstruct(tiny_model, views, heads=("camera", "depth"), memory=memory)
    assert calls == []
    scene = geomtx.reconstruct(tiny_model, views, heads=("camera", "depth"), memory=memory, compile=True, progress=True)
    assert set(calls) == {"forward", "merge"} | ({"project_keys", "attend_to"} if memory == "low" else set())
    assert torch.equal(scene.predictions.depth.value, expected.predictions.depth.value)
    assert (bar.total, bar.done) == (steps, steps)


@pytest.mark.usefixtures("unchecked")
def test_what_compile_can_not_be(tiny_model):
    with pytest.raises(ValueError, match=r"^compile must be one of False, True, 'graphs', got 'fast'$"):
        geomtx.reconstruct(tiny_model, torch.rand(2, 3, 56, 84), compile="fast")
    with pytest.raises(ValueError, match=r"^compile must be one of False, True, 'graphs', got 1$"):
        geomtx.reconstruct(tiny_model, torch.rand(2, 3, 56, 84), compile=1)
