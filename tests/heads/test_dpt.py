import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from geomtx import DPTDecoder
from heads.random_tokens import cast, random_tokens
from reference import normalize, randomize, without_gradient


def decoder(**options) -> DPTDecoder:
    options = {"channels": (8, 12, 16, 4), "taps": (0, 1, 2, 3), **options}
    return randomize(DPTDecoder(16, 8, **options)).double().eval()


def signal_by_formula(channels: int, map_hw: tuple[int, int], image_hw: tuple[int, int]) -> Tensor:
    """0.1 x the sin-cos embedding of a centred grid, number by number."""
    a = image_hw[1] / image_hw[0]
    extents = {"x": a / math.hypot(a, 1), "y": 1 / math.hypot(a, 1)}
    signal = torch.zeros(channels, *map_hw, dtype=torch.float64)
    quarter = channels // 4
    for row in range(map_hw[0]):
        for column in range(map_hw[1]):
            for offset, axis, index, size in ((0, "x", column, map_hw[1]), (2 * quarter, "y", row, map_hw[0])):
                end = extents[axis] * (size - 1) / size
                position = -end + 2 * end * index / (size - 1) if size > 1 else -end
                for i in range(quarter):
                    angle = position * 100 ** (-i / quarter)
                    signal[offset + i, row, column] = 0.1 * math.sin(angle)
                    signal[offset + quarter + i, row, column] = 0.1 * math.cos(angle)
    return signal


def decode_by_formula(model: DPTDecoder, layers: list[Tensor], grid_hw, image_hw) -> Tensor:
    """The published order of work: 1x1 convolutions after the resizing."""
    p = dict(model.named_parameters())

    def conv(name, x, **options):
        return F.conv2d(x, p[f"{name}.weight"], p.get(f"{name}.bias"), **options)

    def resize(x, size):
        return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)

    def unit(name, x):
        x = x.relu()
        return conv(f"{name}.conv2", conv(f"{name}.conv1", x, padding=1).relu(), padding=1) + x

    def signal(x):
        return x + signal_by_formula(x.shape[1], x.shape[-2:], image_hw) if model.position_signal else x

    maps = []
    for level, tokens in enumerate(layers):
        x = normalize(tokens, p["norm.weight"], p["norm.bias"]).mT.reshape(len(tokens), -1, *grid_hw)
        x = signal(conv(f"project.{level}", x))
        if level < 2:
            weight, bias = p[f"rescale.{level}.weight"], p[f"rescale.{level}.bias"]
            x = F.conv_transpose2d(x, weight, bias, stride=(4, 2)[level])
        if level == 3:
            x = conv("rescale.3", x, stride=2, padding=1)
        maps.append(conv(f"reduce.{level}", x, padding=1))
    x = maps[3]
    for level in (3, 2, 1, 0):
        if level < 3:
            x = x + unit(f"fuse.{level}.skip_unit", maps[level])
        x = unit(f"fuse.{level}.unit", x)
        size = [2 * s for s in x.shape[-2:]] if level == 0 else maps[level - 1].shape[-2:]
        x = conv(f"fuse.{level}.out", resize(x, size))
    x = resize(conv("smooth", x, padding=1), (image_hw[0] // model.stride, image_hw[1] // model.stride))
    return signal(x)


@pytest.mark.parametrize("grid_hw", [(2, 3), (3, 2), (1, 1), (5, 1), (4, 7)])
@pytest.mark.parametrize("position_signal", [True, False])
def test_equals_the_formulas(grid_hw, position_signal):
    model, tokens = decoder(position_signal=position_signal), random_tokens(1, 2, grid_hw=grid_hw)
    layers = [layer[:, :, 3:].flatten(0, 1) for layer in tokens.layers.values()]
    expected = decode_by_formula(model, layers, grid_hw, tokens.image_hw)
    torch.testing.assert_close(model(layers, grid_hw, tokens.image_hw), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("stride", "out_channels"), [(1, None), (2, 6), (7, 4)])
def test_stride_and_channels(stride, out_channels):
    model = decoder(stride=stride, out_channels=out_channels, position_signal=False)
    out = model.decode(random_tokens())
    assert out.shape == (2, 3, out_channels or 4, 28 // stride, 42 // stride)


def test_taps_are_read_in_their_order():
    tokens = random_tokens(layers=(2, 5, 6, 9, 11))
    model = decoder(taps=(2, 6, 9, 11))
    renamed = decoder()
    renamed.load_state_dict(model.state_dict())
    kept = tokens._replace(layers={i: tokens.layers[tap] for i, tap in enumerate((2, 6, 9, 11))})
    ours, reference = (m.decode(t) for m, t in ((model, tokens), (renamed, kept)))
    assert torch.equal(ours, reference)
    swapped = decoder(taps=(6, 2, 9, 11))
    swapped.load_state_dict(model.state_dict())
    assert not torch.allclose(swapped.decode(tokens), ours, atol=1e-3)


def test_views_do_not_see_each_other():
    model, tokens = decoder(), random_tokens(2, 3)
    together = model.decode(tokens)
    one = tokens._replace(layers={k: v[1:, 2:] for k, v in tokens.layers.items()})
    alone = model.decode(one)
    torch.testing.assert_close(together[1:, 2:], alone, rtol=0, atol=1e-12)


def test_special_tokens_are_not_read():
    model, tokens = decoder(), random_tokens()
    out = model.decode(tokens)
    for layer in tokens.layers.values():
        layer[:, :, :3] = torch.nan
    assert torch.equal(model.decode(tokens), out)


def test_masked_patches_are_as_zeros():
    mask = torch.rand(2, 3, 9) < 0.6
    model, tokens = decoder(), random_tokens(mask=mask)
    out = model.decode(tokens)
    for layer in tokens.layers.values():
        layer[~mask] = 1e3 * torch.randn(int((~mask).sum()), 16).double()
    assert torch.equal(model.decode(tokens), out)


def test_every_parameter_gets_a_gradient():
    model = decoder()
    out = model.decode(random_tokens())
    (out * torch.randn_like(out)).sum().backward()
    assert without_gradient(model) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    model, tokens = decoder(), random_tokens()
    reference = model.decode(tokens)
    out = model.to(dtype).decode(cast(tokens, dtype))
    assert out.dtype == dtype
    assert (out - reference).norm() / reference.norm() < 10 * torch.finfo(dtype).eps


def test_wrong_tokens_and_numbers():
    def decode(model, tokens):
        return model.decode(tokens)

    with pytest.raises(ValueError, match=r"^tokens must have shape \(B, S, P, 16\), got \(2, 3, 9, 8\)$"):
        decode(decoder(), random_tokens(dim=8))
    with pytest.raises(ValueError, match=r"^layer must "):
        decode(decoder(), random_tokens(layers=(0, 1, 3)))
    with pytest.raises(ValueError, match=r"^channels must "):
        decoder(channels=(8, 6, 16, 4))
    with pytest.raises(ValueError, match=r"^channels must "):
        decoder(out_channels=3)
    with pytest.raises(ValueError, match=r"^stride must "):
        decoder(stride=0)


@pytest.mark.usefixtures("unchecked")
def test_four_taps_and_channels():
    wanted = r"^channels and taps must have four entries, got \(8, 8, 8\) and \(0, 1, 2, 3\)$"
    with pytest.raises(ValueError, match=wanted):
        decoder(channels=(8, 8, 8))
    with pytest.raises(ValueError, match=r"^channels and taps must have four entries, .* \(0, 1\)$"):
        decoder(taps=(0, 1))


def test_as_many_layers_as_taps():
    layers = [torch.randn(2, 6, 16).double()] * 3
    with pytest.raises(ValueError, match=r"^layers must have 4 entries, got 3$"):
        decoder()(layers, (2, 3), (28, 42))
