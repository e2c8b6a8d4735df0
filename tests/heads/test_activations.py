import math

import pytest
import torch

from geomtx.heads.activations import activate_confidence, value_activation


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("linear", lambda x: x),
        ("exp", math.exp),
        ("signed_expm1", lambda x: math.copysign(math.exp(abs(x)) - 1, x)),
    ],
)
def test_number_by_number(name, function):
    x = torch.tensor([-5.0, -1.0, -1e-3, 0.0, 1e-3, 0.5, 5.0], dtype=torch.float64)
    assert value_activation(name)(x).tolist() == pytest.approx([function(v) for v in x.tolist()], abs=1e-13)


def test_signed_expm1_keeps_small_numbers_and_is_odd():
    tiny = torch.tensor([1e-10, -3e-12])
    torch.testing.assert_close(value_activation("signed_expm1")(tiny), tiny, rtol=1e-6, atol=0)
    x = torch.randn(20)
    assert torch.equal(value_activation("signed_expm1")(-x), -value_activation("signed_expm1")(x))


def test_confidence_is_above_one():
    x = torch.tensor([-3.0, 0.0, 4.0], dtype=torch.float64)
    assert activate_confidence(x).tolist() == pytest.approx([1 + math.exp(v) for v in x.tolist()], abs=1e-13)


@pytest.mark.parametrize("name", ["linear", "exp", "signed_expm1"])
def test_gradcheck(name):
    x = torch.tensor([-2.0, -0.3, 0.4, 3.0], dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(value_activation(name), (x,))
    torch.autograd.gradcheck(activate_confidence, (x,))
