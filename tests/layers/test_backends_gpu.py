"""Every backend on an NVIDIA GPU, against "math" in float64."""

import importlib.util

import pytest
import torch

from geomtx.layers import backends
from geomtx.layers.backends import resolve_backend
from layers.attention_cases import HEAD_DIMS, MASKS, draw, forward_error, gradient_errors

pytestmark = pytest.mark.cuda

NAMES = ("math", "sdpa", "sdpa_flash", "sdpa_cudnn", "sdpa_efficient", "flex", "xformers", "flash3")


def backend_here(name: str, head_dim: int = 64) -> backends.AttentionBackend:
    """Skips the test, with the reason, where this machine or its GPU doesn't have it."""
    module = backends._MODULES.get(name, ("torch",))[0]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"needs {module}")
    if name == "flash3":
        if torch.cuda.get_device_capability()[0] != 9:
            pytest.skip("FlashAttention-3 is for Hopper GPUs")
        if head_dim < 64:
            pytest.skip("not every build of FlashAttention-3 has head dimensions under 64")
    if name == "sdpa_cudnn" and torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("cuDNN's attention is for GPUs from Ampere on")
    return resolve_backend(name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_definition(name, mask, head_dim, dtype):
    backend, inputs = backend_here(name, head_dim), draw(mask, head_dim, dtype, "cuda")
    assert forward_error(backend, *inputs) < 8
    errors = gradient_errors(backend, *inputs)
    assert max(errors.values()) < 16, errors


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", ["math", "sdpa", "sdpa_efficient", "flex"])
def test_equals_the_definition_in_float32(name, mask, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)  # float32 means float32
    backend, inputs = backend_here(name), draw(mask, 64, torch.float32, "cuda")
    assert forward_error(backend, *inputs) < 64
    assert max(gradient_errors(backend, *inputs).values()) < 128


@pytest.mark.parametrize("name", ["sdpa_flash", "sdpa_cudnn"])
def test_kernels_of_half_precision_refuse_float32(name):
    with pytest.raises(ValueError, match=r"^q, k and v must suit PyTorch's kernel .*got torch.float32 on cuda"):
        backend_here(name)(*draw("none", 64, torch.float32, "cuda"))


def test_flex_refuses_head_dimensions_that_it_cannot_compile():
    with pytest.raises(ValueError, match=r'^head dimension for backend "flex" must be at least 16, got 8$'):
        resolve_backend("flex")(*draw("none", 8, torch.float16, "cuda"))
