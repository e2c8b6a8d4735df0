import importlib.machinery
import pickle
import sys
import types

import pytest
import torch
from torch import Tensor

from geomtx.layers import backends
from geomtx.layers.backends import (
    CANDIDATES,
    BackendTime,
    attend_sdpa,
    available_backends,
    fastest_backend,
    measure_backends,
    resolve_backend,
)
from layers.attention_cases import HEAD_DIMS, MASKS, B, H, N, draw, forward_error, gradient_errors
from reference import attend

ON_CPU = ["auto", "math", "sdpa", "sdpa_flash", "flex"]  # the last is slow: it is traced anew in every test
NOT_INSTALLED_WITH_TORCH = {"xformers": "xformers", "flash3": "flash_attn_interface"}

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def fake_module(monkeypatch, name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    monkeypatch.setitem(sys.modules, name, module)
    return module


@pytest.fixture
def fake_xformers(monkeypatch) -> list[dict]:
    """A module in place of xformers that keeps its kernels' rules, and records the calls."""
    calls = []

    def memory_efficient_attention(q: Tensor, k: Tensor, v: Tensor, attn_bias: Tensor | None = None) -> Tensor:
        assert q.shape == (B, q.shape[1], H, q.shape[3]), "queries are (B, N, H, D)"
        assert k.shape == v.shape == (B, k.shape[1], H, q.shape[3])
        if attn_bias is not None:
            assert attn_bias.shape == (B, H, q.shape[1], k.shape[1]), "a bias has its full size"
            assert attn_bias.dtype == q.dtype
            assert attn_bias.stride(-1) == 1
            assert all(stride % 8 == 0 for stride in attn_bias.stride()[:-1]), "rows of a bias are aligned"
        calls.append({"bias": attn_bias})
        scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[3] ** 0.5
        scores = scores if attn_bias is None else scores + attn_bias
        return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v)

    package = fake_module(monkeypatch, "xformers")
    package.ops = fake_module(monkeypatch, "xformers.ops")
    package.ops.memory_efficient_attention = memory_efficient_attention
    return calls


@pytest.fixture(params=["output", "tuple"])
def fake_flash3(monkeypatch, request) -> list[torch.Size]:
    """A module in place of FlashAttention-3, of a version that returns the sums too or not; records the calls."""
    calls = []

    def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        assert q.dtype in (torch.float16, torch.bfloat16)
        assert q.shape[0::2] == k.shape[0::2] == (B, H), "queries are (B, N, H, D)"
        assert not causal
        calls.append(q.shape)
        scores = torch.einsum("bnhd,bmhd->bhnm", q.float(), k.float()) / q.shape[3] ** 0.5
        out = torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v.float()).to(q.dtype)
        return (out, scores.logsumexp(-1)) if request.param == "tuple" else out

    fake_module(monkeypatch, "flash_attn_interface").flash_attn_func = flash_attn_func
    return calls


@pytest.fixture
def nothing_installed(monkeypatch) -> None:
    find_spec = importlib.util.find_spec
    absent = NOT_INSTALLED_WITH_TORCH.values()
    monkeypatch.setattr(
        backends.importlib.util, "find_spec", lambda name, *args: None if name in absent else find_spec(name, *args)
    )


@pytest.mark.parametrize("mask", MASKS)
def test_math_is_the_definition(mask):
    inputs = draw(mask, 5)
    torch.testing.assert_close(resolve_backend("math")(*inputs), attend(*inputs), rtol=0, atol=1e-12)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", ON_CPU)
def test_equals_the_definition(name, mask):
    assert forward_error(resolve_backend(name), *draw(mask, HEAD_DIMS[0])) < 64


@pytest.mark.parametrize("head_dim", [5, HEAD_DIMS[-1]])
@pytest.mark.parametrize("name", ON_CPU)
def test_equals_the_definition_for_any_width(name, head_dim):
    assert forward_error(resolve_backend(name), *draw("pairs", head_dim)) < 64


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", [name for name in ON_CPU if name != "flex"])  # without gradients on a CPU
def test_gradients_equal_the_definition_s(name, mask):
    errors = gradient_errors(resolve_backend(name), *draw(mask, HEAD_DIMS[0]))
    assert max(errors.values()) < 128, errors


@pytest.mark.parametrize("name", [name for name in ON_CPU if name != "flex"])
def test_gradients_equal_the_definition_s_for_wide_heads(name):
    errors = gradient_errors(resolve_backend(name), *draw("pairs", HEAD_DIMS[-1]))
    assert max(errors.values()) < 128, errors


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "mask"),
    [(name, mask) for name in ON_CPU for mask in MASKS if name != "flex" or mask in ("none", "pairs")],
)
def test_half_precision_stays_within_its_rounding(name, mask, dtype):
    inputs = draw(mask, HEAD_DIMS[1], dtype)
    assert forward_error(resolve_backend(name), *inputs) < 8
    if name != "flex":
        errors = gradient_errors(resolve_backend(name), *inputs)
        assert max(errors.values()) < 16, errors


@pytest.mark.parametrize("name", ON_CPU)
@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 13), (13, 1), (33, 65)])
def test_equals_the_definition_at_any_length(name, num_queries, num_keys):
    q, k, v, _ = draw("none", 16)
    q, k, v = (x.repeat(1, 1, 2, 1)[:, :, :length] for x, length in ((q, num_queries), (k, num_keys), (v, num_keys)))
    assert forward_error(resolve_backend(name), q, k, v, None) < 64


@pytest.mark.parametrize("mask", MASKS)
def test_xformers_wrapper_equals_the_definition(fake_xformers, mask):
    inputs = draw(mask, 32)
    assert forward_error(resolve_backend("xformers"), *inputs) < 64
    assert max(gradient_errors(resolve_backend("xformers"), *inputs).values()) < 128
    assert len(fake_xformers) == 2
    assert (fake_xformers[0]["bias"] is None) == (mask == "none")


@pytest.mark.parametrize("num_keys", [8, 9, 16])
def test_xformers_wrapper_aligns_masks_of_any_length(fake_xformers, num_keys):
    q, k, v, mask = draw("keys", 5)
    inputs = (q, k[:, :, :num_keys], v[:, :, :num_keys], mask[..., :num_keys])
    assert forward_error(resolve_backend("xformers"), *inputs) < 64


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_flash3_wrapper_equals_the_definition(fake_flash3, mask, dtype):
    inputs = draw(mask, 64, dtype)
    assert forward_error(resolve_backend("flash3"), *inputs) < 8
    assert max(gradient_errors(resolve_backend("flash3"), *inputs).values()) < 16
    # What it can't do, a mask, is left to PyTorch.
    assert fake_flash3 == ([(B, N, H, 64)] * 2 if mask == "none" else [])


@pytest.mark.usefixtures("fake_flash3")
@pytest.mark.parametrize("mask", ["none", "keys"])
def test_flash3_refuses_other_precisions(mask):
    with pytest.raises(ValueError, match=r'^dtype of q for backend "flash3" must be one of .*, got torch.float32$'):
        resolve_backend("flash3")(*draw(mask, 64, torch.float32))


@pytest.mark.parametrize("name", ["sdpa_cudnn", "sdpa_efficient"])
@pytest.mark.parametrize("masked", ["none", "keys"])
def test_kernels_that_a_device_lacks(name, masked):
    """The CPU has no such kernels, and nothing else takes their place."""
    which = {"sdpa_cudnn": "CUDNN_ATTENTION", "sdpa_efficient": "EFFICIENT_ATTENTION"}[name]
    message = rf"^q, k and v must suit PyTorch's kernel {which}, got torch.float64 on cpu, q \(2, 3, 37, 32\) with"
    with pytest.raises(ValueError, match=message):
        resolve_backend(name)(*draw(masked, 32))


def test_other_errors_of_kernels_stay_what_they_are():
    q, k, v, _ = draw("none", 32)
    with pytest.raises(RuntimeError, match="same dtype"):
        resolve_backend("sdpa_flash")(q, k.float(), v, None)


def test_the_flash_kernel_is_the_one_that_runs():
    q, k, v, _ = draw("none", 32)
    assert "FlashAttention" in type(resolve_backend("sdpa_flash")(q.requires_grad_(), k, v, None).grad_fn).__name__


def test_a_forced_kernel_leaves_the_others_allowed():
    for name in ("sdpa_flash", "sdpa_cudnn"):
        if name == "sdpa_flash":
            resolve_backend(name)(*draw("none", 32))
        else:
            with pytest.raises(ValueError, match="must suit"):
                resolve_backend(name)(*draw("none", 32))
        assert torch.backends.cuda.math_sdp_enabled()
        assert torch.backends.cuda.mem_efficient_sdp_enabled()


def test_flex_refuses_head_dimensions_that_no_accelerator_compiles():
    q = torch.empty(1, 2, 7, 8, device="meta")
    with pytest.raises(ValueError, match=r'^head dimension for backend "flex" must be at least 16, got 8$'):
        resolve_backend("flex")(q, q, q, None)


@pytest.mark.usefixtures("fake_xformers", "fake_flash3")
def test_available_when_installed():
    assert set(available_backends().values()) == {True}


@pytest.mark.usefixtures("nothing_installed")
def test_absent_backends_name_what_brings_them():
    missing = {name for name, there in available_backends().items() if not there}
    assert missing == NOT_INSTALLED_WITH_TORCH.keys()
    with pytest.raises(ImportError, match=r'^backend "xformers" is not installed; .*geomtx\[xformers\]'):
        resolve_backend("xformers")
    with pytest.raises(ImportError, match=r'^backend "flash3" is not installed; .*flash_attn_interface'):
        resolve_backend("flash3")


@pytest.mark.usefixtures("unchecked")
def test_unknown_backend():
    with pytest.raises(ValueError, match=r"^backend must be one of 'auto', 'math', 'sdpa', .*'flex', got 'flash'$"):
        resolve_backend("flash")


@pytest.mark.parametrize("name", ON_CPU)
def test_backends_are_functions_that_pickle(name):
    assert pickle.loads(pickle.dumps(resolve_backend(name))) is resolve_backend(name)


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

    def record(q, k, v, mask):
        shapes.append((q.shape, k.shape, v.shape))
        return attend_sdpa(q, k, v, mask)

    monkeypatch.setitem(backends._BACKENDS, "math", record)
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
