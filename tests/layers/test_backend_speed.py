import pytest
import torch
from torch import Tensor, nn

from geomtx.layers import backend_speed, backends
from geomtx.layers.attention import Attention
from geomtx.layers.backend_speed import (
    CANDIDATES,
    SHAPES,
    BackendTime,
    choose_backends,
    fastest_backend,
    measure_backends,
)
from geomtx.layers.backends import attend_auto, attend_sdpa

CPU = torch.device("cpu")


def measure(**options) -> dict[str, BackendTime]:
    return measure_backends(CPU, torch.float32, **{"head_dim": 16, "num_tokens": 33, "num_heads": 2, **options})


def test_times_of_what_runs_and_problems_of_what_does_not():
    times = measure()
    assert tuple(times) == CANDIDATES
    for name in ("sdpa", "sdpa_flash"):
        assert 0 < times[name].milliseconds < 1e4
        assert times[name].problem is None
    assert times["sdpa_cudnn"].milliseconds is None
    assert times["sdpa_cudnn"].problem.startswith("q, k and v must suit PyTorch's kernel CUDNN_ATTENTION")


def test_so_many_sequences(monkeypatch):
    shapes = []

    def look(q, k, v, mask):
        shapes.append((q.shape, k.shape, v.shape))
        return attend_sdpa(q, k, v, mask)

    monkeypatch.setitem(backends._BACKENDS, "math", look)
    assert measure(names=["math"], num_sequences=3)["math"].problem is None
    assert set(shapes) == {((3, 2, 33, 16),) * 3}


@pytest.mark.parametrize(
    ("change", "differs"),
    [(1.0, False), (1 + 1e-7, False), (1.001, True), (float("nan"), True), (float("inf"), True)],
)
def test_another_result_is_a_problem(monkeypatch, change, differs):
    monkeypatch.setitem(backends._BACKENDS, "math", lambda *inputs: change * attend_sdpa(*inputs))
    time = measure(names=["math"])["math"]
    assert time.problem == ("differs from sdpa" if differs else None)
    assert (time.milliseconds is None) == differs


def test_any_error_is_a_problem_of_one_line(monkeypatch):
    def fail(*_: Tensor | None) -> Tensor:
        raise KeyError("first\nsecond")

    monkeypatch.setitem(backends._BACKENDS, "math", fail)
    assert "\n" not in measure(names=["math"])["math"].problem
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    assert measure(names=["flash3"])["flash3"].problem.startswith('backend "flash3" is not installed')


def test_slower_is_measured_as_slower(monkeypatch):
    def slow(*inputs: Tensor | None) -> Tensor:
        return [attend_sdpa(*inputs) for _ in range(200)][-1]

    monkeypatch.setitem(backends._BACKENDS, "math", slow)
    times = measure(names=["sdpa", "math"])
    assert times["math"].milliseconds > 2 * times["sdpa"].milliseconds


def test_the_caller_s_random_numbers_and_gradients_stay():
    state = torch.get_rng_state()
    measure(names=["sdpa"])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("milliseconds", "expected"),
    [
        ({"sdpa": 1.0, "sdpa_flash": 0.9, "flash3": 0.5}, "flash3"),
        ({"sdpa": 1.0, "sdpa_flash": 0.99, "flash3": None}, "sdpa"),  # not clearly faster
        ({"sdpa": 1.0, "sdpa_flash": 2.0}, "sdpa"),
        ({"sdpa": None, "sdpa_flash": 2.0}, "sdpa"),  # nothing to compare with
        ({"sdpa": None}, "sdpa"),
        ({"math": 2.0}, "sdpa"),  # nothing to compare with either
        ({}, "sdpa"),
    ],
)
def test_fastest(milliseconds, expected):
    assert fastest_backend({name: BackendTime(ms, None) for name, ms in milliseconds.items()}) == expected


@pytest.fixture
def measured(monkeypatch) -> list[tuple]:
    """Made-up times, by which "math" is the fastest from the second of `SHAPES` on; the calls that asked for them."""
    calls = []

    def made_up(device, dtype, *, head_dim, num_tokens, num_heads, num_sequences):
        calls.append((device, dtype, head_dim, (num_sequences, num_tokens), num_heads))
        return {"sdpa": BackendTime(1.0, None), "math": BackendTime(0.5 if num_tokens == SHAPES[1][1] else 2.0, None)}

    monkeypatch.setattr(backend_speed, "measure_backends", made_up)
    monkeypatch.setattr(backend_speed, "_CHOSEN", set())
    monkeypatch.setattr(backends, "_PREFERRED", {})
    return calls


def test_a_model_s_attention_takes_what_was_the_fastest(measured):
    model = nn.ModuleList([Attention(32, 2), Attention(32, 2), Attention(64, 2), Attention(96, 2, backend="sdpa")])
    replaced = Attention(128, 2)
    replaced.attend = lambda q, k, v, mask=None: attend_auto(q, k, v, mask)
    model.append(replaced)
    for _ in range(2):
        choose_backends(model, torch.bfloat16)
    assert measured == [(CPU, torch.bfloat16, dim, shape, 2) for dim in (16, 32) for shape in SHAPES]
    expected = tuple((tokens // 2, name) for (_, tokens), name in zip(SHAPES, ("sdpa", "math"), strict=True))[::-1]
    assert dict(backends._PREFERRED) == {(CPU, torch.bfloat16, dim): expected for dim in (16, 32)}
    choose_backends(model, torch.float32)
    assert len(measured) == 8
