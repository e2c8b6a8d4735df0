import torch
from torch.nn import functional as F

from geomtx.layers.conv import ResidualConv
from reference import randomize, without_gradient


def test_skip_carries_the_rectified_input():
    unit, x = randomize(ResidualConv(4)).double(), torch.randn(2, 4, 5, 7).double()

    def conv(x, layer):  # a 3x3 convolution padded by 1, written as a product with unfolded windows
        windows = F.unfold(F.pad(x, (1, 1, 1, 1)), 3)
        out = torch.einsum("nkl,ok->nol", windows, layer.weight.flatten(1)) + layer.bias[:, None]
        return out.unflatten(-1, x.shape[-2:])

    rectified = x.clamp(min=0)
    expected = conv(conv(rectified, unit.conv1).clamp(min=0), unit.conv2) + rectified
    torch.testing.assert_close(unit(x), expected, rtol=0, atol=1e-12)


def test_does_not_write_into_its_input():
    unit, x = ResidualConv(4), torch.randn(1, 4, 3, 3)
    before = x.clone()
    unit(x)
    assert torch.equal(x, before)


def test_every_parameter_gets_a_gradient():
    unit = randomize(ResidualConv(4))
    unit(torch.randn(2, 4, 5, 5)).square().sum().backward()
    assert without_gradient(unit) == []
