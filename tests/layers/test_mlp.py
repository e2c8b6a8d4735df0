import torch

from geomtx.layers import MLP, Float32Linear
from reference import gelu, randomize, without_gradient


def test_equals_the_formula_with_exact_gelu():
    mlp, x = randomize(MLP(6, 10, 4)).double(), torch.randn(2, 3, 6).double()
    hidden = gelu(x @ mlp.expand.weight.T + mlp.expand.bias)
    torch.testing.assert_close(mlp(x), hidden @ mlp.contract.weight.T + mlp.contract.bias, rtol=0, atol=1e-13)


def test_output_is_as_wide_as_the_input_by_default():
    assert MLP(6, 10)(torch.randn(5, 6)).shape == (5, 6)


def test_second_layer_can_be_a_float32_island():
    assert MLP(6, 10, 4, out_type=Float32Linear).bfloat16()(torch.randn(5, 6).bfloat16()).dtype == torch.float32


def test_every_parameter_gets_a_gradient():
    mlp = MLP(6, 10, 4)
    mlp(torch.randn(5, 6)).square().sum().backward()
    assert without_gradient(mlp) == []
