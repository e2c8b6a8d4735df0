import pytest
import torch

from geomtx.layers import LayerScale, Modulation
from reference import normalize, randomize, without_gradient


def test_adds_a_branch_with_a_factor_a_channel():
    scale = LayerScale(3, init=0.5)
    x, branch = torch.randn(2, 2, 5, 3)
    torch.testing.assert_close(scale(x, branch), x + 0.5 * branch)
    with torch.no_grad():
        scale.gamma.copy_(torch.tensor([1.0, -2.0, 0.0]))
    torch.testing.assert_close(scale(x, branch), x + branch * torch.tensor([1.0, -2.0, 0.0]))


def test_gradients():
    scale = LayerScale(3)
    x, branch = torch.randn(2, 2, 5, 3, requires_grad=True)
    scale(x, branch).sum().backward()
    torch.testing.assert_close(scale.gamma.grad, branch.detach().sum(dim=(0, 1)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    scale = LayerScale(64, init=0.3).to(dtype)
    x, branch = torch.randn(2, 50, 64).to(dtype)
    exact = x.double() + branch.double() * scale.gamma.double()
    out = scale(x, branch)
    assert out.dtype == dtype
    assert ((out.double() - exact).abs() / exact.abs().clamp(min=1e-3)).max() < torch.finfo(dtype).eps


def test_equals_the_formula():
    """Shift, scale and gate, in that order, from SiLU and a linear layer."""
    modulation = randomize(Modulation(6, norm_eps=1e-3)).double()
    x, condition = torch.randn(2, 4, 6).double(), torch.randn(2, 4, 6).double()
    activated = condition / (1 + (-condition).exp())
    weight, bias = modulation.project.weight.unflatten(0, (3, 6)), modulation.project.bias.unflatten(0, (3, 6))
    shift, scale, gate = (activated @ weight[i].T + bias[i] for i in range(3))
    expected = gate * (normalize(x, eps=1e-3) * (1 + scale) + shift)
    torch.testing.assert_close(modulation(x, condition), expected, rtol=0, atol=1e-13)


def test_the_norm_has_no_parameters_and_all_others_get_gradients():
    modulation = Modulation(6)
    assert {name for name, _ in modulation.named_parameters()} == {"project.weight", "project.bias"}
    modulation(torch.randn(2, 6), torch.randn(2, 6)).square().sum().backward()
    assert without_gradient(modulation) == []
