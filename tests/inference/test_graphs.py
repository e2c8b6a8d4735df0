"""Compiled blocks, and passes that are recorded as graphs."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import geomtx
from geomtx.inference import graphs
from geomtx.inference.engine import Execution, Inputs, execute
from geomtx.inference.graphs import CompiledBlock, check_can_capture, check_can_compile, run_captured
from inference.model_state import state_of
from lean import build_lean
from reference import named_tensors, randomize

SCRIPT = Path(__file__).parents[1] / "compile_reconstruction.py"

# Recorded passes


class Graph:
    """Stands for a recording: its replay runs the pass again, into the outputs of the first."""

    def replay(self) -> None:
        for output, new in zip(*(list(named_tensors(v).values()) for v in (self.outputs, self.run())), strict=True):
            output.copy_(new)


class Stream:
    def wait_stream(self, _) -> None: ...


class Recorder:
    """Stands for a device that records; counts the recordings."""

    CUDAGraph = Graph
    Stream = Stream

    def __init__(self) -> None:
        self.recorded = 0

    def current_stream(self) -> Stream:
        return Stream()

    def device(self, _):
        return contextlib.nullcontext()

    def stream(self, _):
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def graph(self, graph, *, stream):
        self.recorded += 1
        yield


@pytest.fixture
def recorder(monkeypatch) -> Recorder:
    recorder = Recorder()
    record = graphs._record

    def record_and_link(run, given, device):
        recording = record(run, given, device)
        recording.graph.outputs = recording.outputs
        recording.graph.run = lambda: run(**recording.inputs)
        return recording

    monkeypatch.setattr(graphs, "_record", record_and_link)
    monkeypatch.setattr(torch, "get_device_module", lambda _: recorder)
    return recorder


def run(model, num_views, heads=("camera",), images=None):
    """Record, or replay, the plain pass."""
    images = torch.rand(1, num_views, 3, 28, 42) if images is None else images
    with torch.no_grad():
        return run_captured(model, partial(model, heads=heads), {"images": images, "patch_mask": None}, heads)


def test_every_size_is_recorded_once(lean_model, recorder):
    for num_views, recorded in ((2, 1), (2, 1), (3, 2), (2, 2)):
        run(lean_model, num_views)
        assert recorder.recorded == recorded
    run(lean_model, 2, heads=("depth",))
    assert recorder.recorded == 3


def test_outputs_are_those_of_the_inputs_and_stay(lean_model, recorder):
    images = torch.rand(2, 1, 2, 3, 28, 42)
    got = [run(lean_model, 2, ("camera", "depth"), images=part) for part in images]
    with torch.no_grad():
        for part, predictions in zip(images, got, strict=True):
            expected = named_tensors(lean_model(part, heads=("camera", "depth")))
            assert {n: torch.equal(t, expected[n]) for n, t in named_tensors(predictions).items()} == dict.fromkeys(
                expected, True
            )
    assert recorder.recorded == 1


def test_new_values_of_weights_count_and_weights_elsewhere_are_recorded_anew(lean_model, recorder):
    run(lean_model, 2)
    randomize(lean_model)
    run(lean_model, 2)
    assert recorder.recorded == 1
    lean_model.double()
    run(lean_model.float(), 2)
    assert recorder.recorded == 2
    assert len(graphs._RECORDINGS[lean_model].passes) == 1


def test_few_recordings_are_kept(lean_model, recorder):
    for num_views in (1, 2, 3, 4, 1, 5):
        run(lean_model, num_views)
    assert recorder.recorded == 5
    run(lean_model, 1)
    assert recorder.recorded == 5  # it was used after the others
    run(lean_model, 2)
    assert recorder.recorded == 6


def test_recordings_go_with_their_model(recorder):
    model = build_lean(heads=("camera",))
    run(model, 2)
    key_count = len(graphs._RECORDINGS)
    for recording in graphs._RECORDINGS[model].passes.values():
        del recording.graph.run  # which a real graph has not
    del model, recording
    assert len(graphs._RECORDINGS) == key_count - 1


def test_not_everywhere(lean_model):
    with pytest.raises(ValueError, match=r"^compile must not be 'graphs' on a device that records none, got cpu$"):
        check_can_capture(torch.device("cpu"))
    with pytest.raises(ValueError, match=r"^compile must not be 'graphs'"):
        geomtx.reconstruct(lean_model, torch.rand(2, 3, 28, 42), compile="graphs")


def test_reconstruct(lean_model, recorder):
    views = torch.rand(2, 3, 28, 42)
    expected = geomtx.reconstruct(lean_model, views)
    for _ in range(2):
        scene = geomtx.reconstruct(lean_model, views, compile="graphs", memory=10**10)
        assert torch.equal(scene.predictions.depth.value, expected.predictions.depth.value)
    assert recorder.recorded == 1
    geomtx.reconstruct(lean_model, views, compile="graphs", memory="low")
    assert recorder.recorded == 1
    with pytest.raises(ValueError, match=r"^dtype must be the model's own torch.float32 with compile='graphs', got "):
        geomtx.reconstruct(lean_model, views, compile="graphs", dtype=torch.bfloat16)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replayed_on_a_gpu(lean_model, dtype):
    model = lean_model.to("cuda", dtype)
    for num_views in (2, 3, 2):
        views = torch.rand(num_views, 3, 28, 42)
        queries = [(0, 20, 30), (1, 10, 10)]
        expected = named_tensors(geomtx.reconstruct(model, views, query_points=queries).predictions)
        got = named_tensors(geomtx.reconstruct(model, views, query_points=queries, compile="graphs").predictions)
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, rtol=1e-3, atol=1e-3, msg=name)
    assert len(graphs._RECORDINGS[model].passes) == 2


# Compiled blocks


def measure() -> dict[str, dict[str, float]]:
    """Errors and counts, measured in a process without the hook that checks shapes."""
    run = subprocess.run([sys.executable, SCRIPT, "eager"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.timeout(600)
def test_the_same_result_and_nothing_is_compiled_twice():
    measured = measure()
    assert {name: error for name, error in measured["errors"].items() if not error < 1e-9} == {}
    assert measured["breaks"] == {}
    graphs_after = measured["graphs"]
    # ViT, frame and global blocks: not one for each of them.
    assert 2 <= graphs_after["first"] <= 5
    assert (
        graphs_after["a second scene"]
        == graphs_after["more views, another size"]
        == graphs_after["another model"]
        == graphs_after["first"]
    )
    assert graphs_after["in pieces"] > graphs_after["another model"]
    # The last piece of a sequence may be a single token, which is a program of its own.
    assert graphs_after["more views in pieces"] <= graphs_after["in pieces"] + 2
    assert graphs_after["masked"] > graphs_after["more views in pieces"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the compiled functions, one entry a call; nothing is compiled."""
    calls: list[str] = []

    def stand_in(function, **options):
        assert options["dynamic"] is True
        return lambda *a, **k: calls.append(function.__name__) or function(*a, **k)

    graphs._compile.cache_clear()
    monkeypatch.setattr(torch, "compile", stand_in)
    yield calls
    graphs._compile.cache_clear()


def test_every_block_of_the_encoder_is_compiled_and_the_model_is_as_before(lean_model, images, calls):
    before = state_of(lean_model)
    inputs = Inputs(*lean_model.check_inputs(images, None, None, None))
    with torch.no_grad():
        got = execute(lean_model, inputs, Execution(run_block=CompiledBlock))
        assert calls.count("forward") == 1 + 2 + 2
        assert state_of(lean_model) == before
        calls.clear()
        assert torch.equal(got.depth.value, lean_model(images).depth.value)
    assert calls == []


@pytest.mark.parametrize("memory", ["auto", "low"])
def test_reconstruct_with_compiled_blocks(lean_model, calls, memory):
    views = torch.rand(3, 3, 28, 42)
    expected = geomtx.reconstruct(lean_model, views, heads=("camera", "depth"), memory=memory)
    assert calls == []
    scene = geomtx.reconstruct(lean_model, views, heads=("camera", "depth"), memory=memory, compile=True)
    assert set(calls) == {"forward"} | ({"project_keys", "attend_to"} if memory == "low" else set())
    assert torch.equal(scene.predictions.depth.value, expected.predictions.depth.value)


def test_nothing_to_compile():
    with pytest.raises(ValueError, match=r"^model must have transformer blocks to compile, got Linear$"):
        check_can_compile(nn.Linear(2, 2))
