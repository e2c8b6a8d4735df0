import copy

import pytest
import torch
from torch.nn import functional as F

from geomtx import DenseHead, DPTDecoder
from heads.random_tokens import cast, random_tokens
from reference import randomize, without_gradient


def head(value_dim: int = 1, activation: str = "exp", **options) -> DenseHead:
    decoder = DPTDecoder(16, 8, channels=(8, 12, 16, 4), taps=(0, 1, 2, 3))
    return randomize(DenseHead(decoder, value_dim, activation=activation, hidden_dim=6, **options)).double().eval()


@pytest.mark.parametrize("value_dim", [1, 2, 3])
@pytest.mark.parametrize("activation", ["linear", "exp", "signed_expm1"])
def test_equals_the_formulas(value_dim, activation):
    """3x3 to the hidden channels, ReLU, 1x1; the last channel is the confidence."""
    model, tokens = head(value_dim, activation), random_tokens()
    features = model.decoder.decode(tokens)
    hidden = F.conv2d(features.flatten(0, 1), model.hidden.weight, model.hidden.bias, padding=1).clamp(min=0)
    raw = torch.einsum("nchw,oc->nhwo", hidden, model.out.weight[..., 0, 0]) + model.out.bias
    raw = raw.unflatten(0, (2, 3))
    value, confidence = model(tokens)
    expected = raw[..., :value_dim]
    if activation == "exp":
        expected = expected.exp()
    if activation == "signed_expm1":
        expected = expected.sign() * (expected.abs().exp() - 1)
    expected = expected[..., 0] if value_dim == 1 else expected
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(confidence, 1 + raw[..., value_dim].exp(), rtol=0, atol=1e-12)


def test_shapes():
    value, confidence = head(1)(random_tokens(2, 3))
    assert value.shape == confidence.shape == (2, 3, 28, 42)
    value, confidence = head(3)(random_tokens(2, 3))
    assert value.shape == (2, 3, 28, 42, 3)
    assert confidence.shape == (2, 3, 28, 42)


def test_every_parameter_gets_a_gradient():
    model, tokens = head(3), random_tokens()
    value, confidence = model(tokens)
    ((value * torch.randn_like(value)).sum() + confidence.sum()).backward()
    assert without_gradient(model) == []


@pytest.mark.parametrize("how", ["weights", "autocast"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_ends_in_float32(dtype, how):
    model, tokens = head(), random_tokens()
    if how == "weights":
        outputs = copy.deepcopy(model).to(dtype)(cast(tokens, dtype))
    else:
        with torch.autocast("cpu", dtype):
            outputs = copy.deepcopy(model).float()(cast(tokens, torch.float32))
    for ours, reference in zip(outputs, model(tokens), strict=True):
        assert ours.dtype == torch.float32
        assert not torch.equal(ours, ours.to(dtype).float()), "the last layer is not rounded"
        assert ((ours - reference).norm() / reference.norm()) < 10 * torch.finfo(dtype).eps


def test_float64_stays_float64():
    assert {part.dtype for part in head()(random_tokens())} == {torch.float64}


def test_confidence_is_above_one():
    assert (head()(random_tokens()).confidence > 1).all()


@pytest.mark.usefixtures("unchecked")
def test_unknown_activation():
    with pytest.raises(
        ValueError, match=r"^activation must be one of 'linear', 'exp', 'signed_expm1', got 'softplus'$"
    ):
        head(activation="softplus")
