from typing import NamedTuple

import pytest
import torch

from geomtx.layers import Float32Conv2d, Float32Linear, at_least_float32
from geomtx.layers.precision import float32_island

LAYERS = {
    "linear": (lambda **o: Float32Linear(6, 4, **o), torch.nn.Linear, (3, 6)),
    "conv": (lambda **o: Float32Conv2d(6, 4, 3, padding=1, **o), torch.nn.Conv2d, (2, 6, 5, 5)),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_computes_in_float32_or_better(kind, dtype, bias):
    build, plain, shape = LAYERS[kind]
    layer, x = build(bias=bias).to(dtype), torch.randn(shape, dtype=torch.float64).to(dtype)
    out = layer(x)
    assert out.dtype == torch.promote_types(dtype, torch.float32)
    exact = plain.forward(layer.double(), x.double())
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=1e-14 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_is_off_inside(kind, dtype):
    build, _, shape = LAYERS[kind]
    layer, x = build(), torch.randn(shape)
    with torch.autocast("cpu", dtype):
        assert torch.nn.functional.linear(x, torch.randn(2, shape[-1])).dtype == dtype  # it is on outside
        out = layer(x)
    assert torch.equal(out, layer(x))


def test_wider_of_input_and_weights_wins():
    layer = Float32Linear(6, 4)
    assert layer(torch.randn(2, 6, dtype=torch.bfloat16)).dtype == torch.float32
    assert layer(torch.randn(2, 6, dtype=torch.float64)).dtype == torch.float64
    assert layer.double()(torch.randn(2, 6)).dtype == torch.float64


@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_reach_half_precision_weights(kind):
    build, _, shape = LAYERS[kind]
    layer = build().bfloat16()
    layer(torch.randn(shape)).square().sum().backward()
    for parameter in layer.parameters():
        assert parameter.grad.dtype == torch.bfloat16
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()


def test_at_least_float32():
    for dtype in (torch.float16, torch.bfloat16):
        assert at_least_float32(torch.ones(2, dtype=dtype)).dtype == torch.float32
    for dtype in (torch.float32, torch.float64):
        x = torch.ones(2, dtype=dtype)
        assert at_least_float32(x) is x


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_island_of_a_function(dtype):
    """All floating-point tensors, in tuples too, meet in the widest precision; nothing else is touched."""

    @float32_island
    def product(pair: Pair, factor: float, *, mask: torch.Tensor, more: torch.Tensor | None = None) -> torch.Tensor:
        """What it does."""
        seen.append([pair.first.dtype, pair.second.dtype, mask.dtype, type(pair), factor])
        return pair.first @ pair.second

    seen: list[list[object]] = []
    a, b, mask = torch.randn(3, 3), torch.randn(3, 3), torch.ones(3, dtype=torch.bool)
    assert product(Pair(a.to(dtype), b.to(dtype)), 2.0, mask=mask).dtype == torch.float32
    assert product(Pair(a.to(dtype), b), 2.0, mask=mask, more=b.double()).dtype == torch.float64
    with torch.autocast("cpu", dtype):
        assert torch.equal(product(Pair(a, b), 2.0, mask=mask), a @ b.clone()) is False  # autocast is on outside
        out = product(Pair(a, b), 2.0, mask=mask)
    assert torch.equal(out, a @ b)
    wanted = [torch.float32, torch.float64, torch.float32, torch.float32]
    assert seen == [[wide, wide, torch.bool, Pair, 2.0] for wide in wanted]
    assert product.__doc__ == "What it does."
