import torch

from geomtx.layers import LayerScale


def test_scales_channels():
    scale = LayerScale(3, init=0.5)
    x = torch.randn(2, 5, 3)
    assert torch.equal(scale(x), 0.5 * x)
    with torch.no_grad():
        scale.gamma.copy_(torch.tensor([1.0, -2.0, 0.0]))
    assert torch.equal(scale(x), torch.stack([x[..., 0], -2 * x[..., 1], 0 * x[..., 2]], dim=-1))


def test_gradient_is_the_sum_over_tokens():
    scale = LayerScale(3)
    x = torch.randn(2, 5, 3)
    scale(x).sum().backward()
    torch.testing.assert_close(scale.gamma.grad, x.sum(dim=(0, 1)))
