import importlib.machinery
import sys
import types

import pytest
import torch
from torch import Tensor

from geomtx.layers import backends
from geomtx.layers.backends import available_backends, resolve_backend
from reference import attend

# Scenes, heads, queries, keys, width: nothing here is a multiple of 8.
B, H, N, M, D = 2, 3, 7, 11, 5
MASKS = {"none": None, "keys": (B, 1, 1, M), "pairs": (1, 1, N, M), "all": (B, H, N, M)}


def draw(mask: str, num_queries: int = N, num_keys: int = M) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    q = torch.randn(B, H, num_queries, D, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(B, H, num_keys, D, dtype=torch.float64, requires_grad=True) for _ in range(2))
    shape = MASKS[mask]
    if shape is None:
        return q, k, v, None
    allowed = torch.rand(*shape) < 0.6
    allowed[..., 0] = True  # every query sees a key
    return q, k, v, allowed


def assert_equals_definition(backend, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
    """Forward and gradients."""
    results = []
    weights = torch.randn(B, H, q.shape[2], D, dtype=torch.float64)
    for function in (backend, attend):
        out = function(q, k, v, mask)
        results.append((out, *torch.autograd.grad((out * weights).sum(), (q, k, v))))
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, rtol=0, atol=1e-12)


@pytest.fixture
def fake_xformers(monkeypatch) -> list[dict]:
    """A module in place of xformers that keeps its kernels' rules, and records the calls."""
    calls = []

    def memory_efficient_attention(q: Tensor, k: Tensor, v: Tensor, attn_bias: Tensor | None = None) -> Tensor:
        assert q.shape == (B, q.shape[1], H, D), "queries are (B, N, H, D)"
        assert k.shape == v.shape == (B, k.shape[1], H, D)
        if attn_bias is not None:
            assert attn_bias.shape == (B, H, q.shape[1], k.shape[1]), "a bias has its full size"
            assert attn_bias.dtype == q.dtype
            assert attn_bias.stride(-1) == 1
            assert all(stride % 8 == 0 for stride in attn_bias.stride()[:-1]), "rows of a bias are aligned"
        calls.append({"bias": attn_bias})
        scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / D**0.5
        scores = scores if attn_bias is None else scores + attn_bias
        return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v)

    package, ops = types.ModuleType("xformers"), types.ModuleType("xformers.ops")
    package.__spec__ = importlib.machinery.ModuleSpec("xformers", None)
    package.ops = ops
    ops.memory_efficient_attention = memory_efficient_attention
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    return calls


@pytest.fixture
def no_xformers(monkeypatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        backends.importlib.util, "find_spec", lambda name, *args: None if name == "xformers" else find_spec(name, *args)
    )


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", ["auto", "sdpa", "math"])
def test_equals_the_definition(name, mask):
    assert_equals_definition(resolve_backend(name), *draw(mask))


@pytest.mark.parametrize("name", ["sdpa", "math"])
@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 1), (1, 13), (13, 1), (33, 65)])
def test_equals_the_definition_at_any_length(name, num_queries, num_keys):
    assert_equals_definition(resolve_backend(name), *draw("none", num_queries, num_keys))


@pytest.mark.parametrize("name", ["sdpa", "math"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_within_its_rounding(name, dtype):
    q, k, v, mask = draw("keys")
    out = resolve_backend(name)(q.to(dtype), k.to(dtype), v.to(dtype), mask)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), attend(q, k, v, mask), rtol=0, atol=10 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("mask", MASKS)
def test_xformers_wrapper_equals_the_definition(fake_xformers, mask):
    assert_equals_definition(resolve_backend("xformers"), *draw(mask))
    assert len(fake_xformers) == 1
    assert (fake_xformers[0]["bias"] is None) == (mask == "none")


@pytest.mark.parametrize("num_keys", [8, 9, 16])
def test_xformers_wrapper_aligns_masks_of_any_length(fake_xformers, num_keys):
    q, k, v, _ = draw("none", 3, num_keys)
    mask = torch.rand(B, 1, 1, num_keys) < 0.5
    mask[..., 0] = True
    assert_equals_definition(resolve_backend("xformers"), q, k, v, mask)


def test_xformers_is_available_when_installed(fake_xformers):
    assert available_backends() == {"sdpa": True, "math": True, "xformers": True}


def test_xformers_absent_names_the_extra(no_xformers):
    assert available_backends() == {"sdpa": True, "math": True, "xformers": False}
    with pytest.raises(ImportError, match=r'^backend "xformers" is not installed; .*geomtx\[xformers\]'):
        resolve_backend("xformers")


@pytest.mark.usefixtures("unchecked")
def test_unknown_backend():
    with pytest.raises(ValueError, match=r"^backend must be one of 'auto', 'sdpa', 'math', 'xformers', got 'flash'$"):
        resolve_backend("flash")


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["sdpa", "math", "xformers"])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_definition_on_a_gpu(name, masked):
    if name == "xformers":
        pytest.importorskip("xformers.ops", reason="needs xformers", exc_type=ImportError)
    q, k, v = (torch.randn(2, 4, 61, 32, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    mask = torch.rand(2, 1, 1, 61, device="cuda") < 0.6 if masked else None
    if mask is not None:
        mask[..., 0] = True
    out = resolve_backend(name)(q, k, v, mask)
    torch.testing.assert_close(out.double(), attend(q.double(), k.double(), v.double(), mask), rtol=0, atol=0.04)
