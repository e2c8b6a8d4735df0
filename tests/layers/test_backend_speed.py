import pytest
import torch
from torch import Tensor

from geomtx.layers import backends
from geomtx.layers.backend_speed import (
    CANDIDATES,
    BackendTime,
    fastest_backend,
    measure_backends,
)
from geomtx.layers.backends import attend_sdpa

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
