import torch

from geomtx.layers import Modulation
from reference import normalize, randomize, without_gradient


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
