import pytest
import torch

from geomtx.layers import LayerScale


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
