import copy
import math

import pytest
import torch
from torch.nn import functional as F

from geomtx import VGGT, DenseHead, DPTDecoder, reconstruct
from geomtx.heads import PixelShuffleHead, RGBHead
from geomtx.heads.dense import activate_confidence, value_activation
from geomtx.types import Tokens
from heads.random_tokens import cast, random_tokens
from lean import lean_config
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
        ValueError, match=r"^activation must be one of 'linear', 'exp', 'signed_expm1', 'norm_expm1', got 'softplus'$"
    ):
        head(activation="softplus")


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


def test_confidence_is_above_one_of_activations():
    x = torch.tensor([-3.0, 0.0, 4.0], dtype=torch.float64)
    assert activate_confidence(x).tolist() == pytest.approx([1 + math.exp(v) for v in x.tolist()], abs=1e-13)


@pytest.mark.parametrize("name", ["linear", "exp", "signed_expm1"])
def test_gradcheck(name):
    x = torch.tensor([-2.0, -0.3, 0.4, 3.0], dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(value_activation(name), (x,))
    torch.autograd.gradcheck(activate_confidence, (x,))


def make_head() -> RGBHead:
    return RGBHead(DPTDecoder(16, 8, channels=(8, 8, 8, 8), taps=(0, 1, 2, 3)), hidden_dim=8)


def make_tokens(views: int = 3) -> Tokens:
    layers = {index: torch.randn(2, views, 1 + 12, 16) for index in range(4)}
    return Tokens(layers, 1, (24, 32), (3, 4))


def test_pictures_are_colours_and_start_at_about_grey():
    head, tokens = make_head(), make_tokens()
    grey = head(tokens)
    assert grey.shape == (2, 3, 3, 24, 32)
    assert (grey - 0.5).abs().max() < 0.3
    torch.nn.init.normal_(head.out.weight)
    pictures = head(tokens)
    assert pictures.std() > 0.01
    assert 0 <= pictures.min() <= pictures.max() <= 1


def test_every_view_by_itself_and_every_parameter_has_a_gradient():
    head, tokens = make_head(), make_tokens()
    torch.nn.init.normal_(head.out.weight)
    torch.testing.assert_close(head(tokens.take_views(slice(1, None))), head(tokens)[:, 1:])
    head(tokens).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.parameters())


@pytest.mark.usefixtures("unchecked")
def test_tokens_of_another_width():
    with pytest.raises(ValueError, match=r"^tokens must have shape \(B, S, P, 16\), got \(2, 3, 13, 8\)$"):
        make_head()(make_tokens()._replace(layers={index: torch.randn(2, 3, 13, 8) for index in range(4)}))


def shuffle_head(value_dim: int, **options) -> PixelShuffleHead:
    decoder = DPTDecoder(16, 8, channels=(8, 12, 16, 4), taps=(0, 1, 2, 3), stride=None, rectified_skip=False)
    return randomize(PixelShuffleHead(decoder, value_dim, factor=2, **options)).double().eval()


@pytest.mark.parametrize("value_dim", [1, 3])
def test_pixel_shuffle_equals_the_formulas(value_dim):
    """One 1x1 convolution a map; channel 2·row + column of a pixel is the one at (row, column) of its four."""
    model, tokens = shuffle_head(value_dim, activation="exp"), random_tokens(patch=8)
    decoder = model.decoder
    reduced = decoder.reduce_taps(decoder.project_all(tokens).maps)
    assert reduced[0].shape == (6, 8, 8, 12)
    merged = decoder.fuse(reduced)
    assert merged.shape == (6, 8, 8, 12)
    features = decoder.decode(tokens).flatten(0, 1)
    assert features.shape == merged.shape  # nothing comes between but the encoding of positions
    torch.testing.assert_close(features - merged, (features - merged)[:1].expand(6, -1, -1, -1), rtol=0, atol=1e-12)

    def spread(conv, channels):
        raw = torch.einsum("nchw,oc->nohw", features, conv.weight[..., 0, 0]) + conv.bias[:, None, None]
        out = raw.new_empty(6, channels, 16, 24)
        for channel in range(channels):
            for row in range(2):
                for column in range(2):
                    out[:, channel, row::2, column::2] = raw[:, 4 * channel + 2 * row + column]
        return out.unflatten(0, (2, 3))

    value, confidence = model(tokens)
    expected = spread(model.value, value_dim).exp()
    expected = expected[:, :, 0] if value_dim == 1 else expected.movedim(2, -1)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(confidence, 1 + spread(model.confidence, 1)[:, :, 0].exp(), rtol=0, atol=1e-12)
    ((value * torch.randn_like(value)).sum() + confidence.sum()).backward()
    assert without_gradient(model) == []


def test_pixel_shuffle_begins_with_the_same_confidence_everywhere():
    decoder = DPTDecoder(16, 8, channels=(8, 12, 16, 4), taps=(0, 1, 2, 3), stride=None)
    confidence = PixelShuffleHead(decoder, 1, factor=2).double()(random_tokens(patch=8)).confidence
    torch.testing.assert_close(confidence, torch.full_like(confidence, 1.05), rtol=0, atol=1e-7)
    with pytest.raises(ValueError, match=r"^out_channels must be those of the merged map, 8, got 4$"):
        DPTDecoder(16, 8, channels=(8, 12, 16, 4), taps=(0, 1, 2, 3), stride=None, out_channels=4)


def test_an_added_pixel_shuffle_head_is_saved_and_is_in_scenes(tmp_path):
    model = VGGT(lean_config(patch_size=8, image_size=40, heads=("depth",))).eval()
    decoder = DPTDecoder(64, 16, channels=(16, 16, 32, 32), taps=model.config.taps, stride=None)
    model.add_head("normals", PixelShuffleHead(decoder, 3, factor=2))
    loaded = VGGT.from_pretrained(model.save_pretrained(tmp_path))
    assert type(loaded.extra_heads["normals"]) is PixelShuffleHead
    scene, again = (reconstruct(each, torch.rand(2, 3, 16, 24)) for each in (model, loaded))
    assert scene.predictions.extra["normals"].value.shape == (2, 16, 24, 3)
    assert again.predictions.extra["normals"].confidence.shape == (2, 16, 24)
