import pytest
import torch

from geomtx.layers.vgg import VGGFeatures
from geomtx.losses import PERCEPTUAL_TAPS, PerceptualLoss


def make_loss() -> PerceptualLoss:
    return PerceptualLoss(VGGFeatures(19, PERCEPTUAL_TAPS))


def test_it_is_the_sum_written_out():
    loss, a, b = make_loss(), torch.rand(2, 3, 16, 20), torch.rand(2, 3, 16, 20)
    mean = torch.tensor([123.68, 116.779, 103.939])[:, None, None]
    x, y = 255 * a - mean, 255 * b - mean
    total = (x - y).abs().mean((1, 2, 3))
    for f, g, divisor in zip(loss.features(x), loss.features(y), (2.6, 4.8, 3.7, 5.6, 0.15), strict=True):
        total = total + (f - g).abs().mean((1, 2, 3)) / divisor
    torch.testing.assert_close(loss(a, b), total / 255)


def test_equal_pictures_have_none_and_every_picture_has_its_own():
    loss, a, b = make_loss(), torch.rand(2, 3, 3, 16, 16), torch.rand(2, 3, 3, 16, 16)
    assert (loss(a, a) == 0).all()
    torch.testing.assert_close(loss(a, b)[1, 2], loss(a[1, 2], b[1, 2]))
    assert loss(a, b).shape == (2, 3)


def test_the_gradient_reaches_what_was_predicted_alone():
    loss = make_loss()
    a, b = torch.rand(1, 3, 16, 16, requires_grad=True), torch.rand(1, 3, 16, 16, requires_grad=True)
    loss(a, b).sum().backward()
    assert a.grad.isfinite().all()
    assert a.grad.any()
    assert b.grad is None


@pytest.mark.usefixtures("unchecked")
def test_errors():
    with pytest.raises(ValueError, match=r"^features.taps must be one of .*, got \(\(1, 1\),\)$"):
        PerceptualLoss(VGGFeatures(19, ((1, 1),)))
    with pytest.raises(ValueError, match=r"^true must have shape \(1, 3, 16, 16\), got \(1, 3, 16, 17\)$"):
        make_loss()(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 17))
