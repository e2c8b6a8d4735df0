import pytest
import torch
from torch import nn

from geomtx.losses import PERCEPTUAL_TAPS, PerceptualLoss
from geomtx.losses.perceptual import VGGFeatures

# The published list of layers: channels, and M for a pooling.
LAYOUTS = {
    16: [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"],
    19: [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"],
}


def make_reference(num_layers: int) -> nn.Sequential:
    layers, channels = [], 3
    for item in LAYOUTS[num_layers]:
        if item == "M":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, item, 3, padding=1), nn.ReLU()]
            channels = item
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("num_layers", "taps", "indices"),
    [
        (19, ((1, 2), (2, 2), (3, 2), (4, 2), (5, 2)), (3, 8, 13, 22, 31)),
        (16, ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3)), (3, 8, 15, 22, 29)),
    ],
)
def test_it_is_the_network_with_the_common_names(num_layers, taps, indices):
    reference = make_reference(num_layers)
    weights = {f"features.{name}": value for name, value in reference.state_dict().items()}
    network = VGGFeatures(num_layers, taps)
    network.load_weights({**weights, "classifier.0.weight": torch.zeros(1)})
    x = torch.rand(2, 3, 20, 33)
    expected, y = [], x
    for index, layer in enumerate(reference[: max(indices) + 1]):
        y = layer(y)
        if index in indices:
            expected.append(y)
    for got, want in zip(network(x), expected, strict=True):
        torch.testing.assert_close(got, want)
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.usefixtures("unchecked")
def test_errors():
    network = VGGFeatures(16, ((1, 1),))
    before = network.features["0"].weight.clone()
    with pytest.raises(ValueError, match=r"^weights must have features.0.bias, got none$"):
        network.load_weights({"features.0.weight": torch.zeros(64, 3, 3, 3)})
    assert torch.equal(network.features["0"].weight, before)
    with pytest.raises(ValueError, match=r"^weights of features.0.weight must have shape \(64, 3, 3, 3\), got"):
        network.load_weights({"features.0.weight": torch.zeros(1), "features.0.bias": torch.zeros(64)})
    with pytest.raises(ValueError, match=r"^x must have at least 16 pixels a side, got \(16, 15\)$"):
        network(torch.rand(1, 3, 16, 15))
    with pytest.raises(ValueError, match=r"^num_layers must be one of 16, 19, got 11$"):
        VGGFeatures(11, ((1, 1),))
    with pytest.raises(ValueError, match=r"^tap must be one of .*, got \(3, 4\)$"):
        VGGFeatures(16, ((3, 4),))


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
def test_errors_of_perceptual():
    with pytest.raises(ValueError, match=r"^features.taps must be one of .*, got \(\(1, 1\),\)$"):
        PerceptualLoss(VGGFeatures(19, ((1, 1),)))
    with pytest.raises(ValueError, match=r"^true must have shape \(1, 3, 16, 16\), got \(1, 3, 16, 17\)$"):
        make_loss()(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 17))
