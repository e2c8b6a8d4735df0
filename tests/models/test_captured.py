import contextlib

import pytest
import torch

import geomtx
from geomtx.models import captured
from geomtx.models.captured import check_can_capture, run_captured
from reference import named_tensors, randomize


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
    record = captured._record

    def record_and_link(model, given, options):
        recording = record(model, given, options)
        recording.graph.outputs = recording.outputs
        recording.graph.run = lambda: model(**recording.inputs, **options)
        return recording

    monkeypatch.setattr(captured, "_record", record_and_link)
    monkeypatch.setattr(torch, "get_device_module", lambda _: recorder)
    return recorder


def run(model, num_views, **options):
    with torch.no_grad():
        return run_captured(model, {"images": torch.rand(1, num_views, 3, 56, 84), "patch_mask": None}, options)


def test_every_size_is_recorded_once(tiny_model, recorder):
    for num_views, recorded in ((2, 1), (2, 1), (3, 2), (2, 2)):
        run(tiny_model, num_views, heads=("camera",))
        assert recorder.recorded == recorded
    run(tiny_model, 2, heads=("depth",))
    assert recorder.recorded == 3


def test_outputs_are_those_of_the_inputs_and_stay(tiny_model, recorder):
    images = torch.rand(2, 1, 2, 3, 56, 84)
    with torch.no_grad():
        got = [run_captured(tiny_model, {"images": part}, {"heads": ("camera", "depth")}) for part in images]
        for part, predictions in zip(images, got, strict=True):
            expected = named_tensors(tiny_model(part, heads=("camera", "depth")))
            assert {n: torch.equal(t, expected[n]) for n, t in named_tensors(predictions).items()} == dict.fromkeys(
                expected, True
            )
    assert recorder.recorded == 1


def test_new_values_of_weights_count_and_weights_elsewhere_are_recorded_anew(tiny_model, recorder):
    run(tiny_model, 2, heads=("camera",))
    randomize(tiny_model)
    run(tiny_model, 2, heads=("camera",))
    assert recorder.recorded == 1
    tiny_model.double()
    run(tiny_model.float(), 2, heads=("camera",))
    assert recorder.recorded == 2
    assert len(captured._RECORDINGS[tiny_model].passes) == 1


def test_few_recordings_are_kept(tiny_model, recorder):
    for num_views in (1, 2, 3, 4, 1, 5):
        run(tiny_model, num_views, heads=("camera",))
    assert recorder.recorded == 5
    run(tiny_model, 1, heads=("camera",))
    assert recorder.recorded == 5  # it was used after the others
    run(tiny_model, 2, heads=("camera",))
    assert recorder.recorded == 6


def test_recordings_go_with_their_model(recorder):
    model = geomtx.VGGT(geomtx.VGGTConfig.tiny(heads=("camera",)))
    run(model, 2, heads=("camera",))
    key_count = len(captured._RECORDINGS)
    for recording in captured._RECORDINGS[model].passes.values():
        del recording.graph.run  # which a real graph has not
    del model, recording
    assert len(captured._RECORDINGS) == key_count - 1


def test_not_everywhere(tiny_model):
    with pytest.raises(ValueError, match=r"^compile must not be 'graphs' on a device that records none, got cpu$"):
        check_can_capture(torch.device("cpu"))
    with pytest.raises(ValueError, match=r"^compile must not be 'graphs'"):
        geomtx.reconstruct(tiny_model, torch.rand(2, 3, 56, 84), compile="graphs")


def test_reconstruct(tiny_model, recorder):
    views = torch.rand(2, 3, 56, 84)
    expected = geomtx.reconstruct(tiny_model, views)
    for _ in range(2):
        scene = geomtx.reconstruct(tiny_model, views, compile="graphs", memory=10**10)
        assert torch.equal(scene.predictions.depth.value, expected.predictions.depth.value)
    assert recorder.recorded == 1
    geomtx.reconstruct(tiny_model, views, compile="graphs", memory="low")
    assert recorder.recorded == 1
    with pytest.raises(ValueError, match=r"^dtype must be the model's own torch.float32 with compile='graphs', got "):
        geomtx.reconstruct(tiny_model, views, compile="graphs", dtype=torch.bfloat16)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replayed_on_a_gpu(tiny_model, dtype):
    model = tiny_model.to("cuda", dtype)
    for num_views in (2, 3, 2):
        views = torch.rand(num_views, 3, 56, 84)
        queries = [(0, 20, 30), (1, 10, 10)]
        expected = named_tensors(geomtx.reconstruct(model, views, query_points=queries).predictions)
        got = named_tensors(geomtx.reconstruct(model, views, query_points=queries, compile="graphs").predictions)
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, rtol=1e-3, atol=1e-3, msg=name)
    assert len(captured._RECORDINGS[model].passes) == 2
