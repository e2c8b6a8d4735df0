import pytest
import torch

from geomtx import DPTDecoder
from geomtx.heads import DescriptorHead, LinearMapHead
from geomtx.heads.dense import norm_expm1
from geomtx.heads.dpt import FusionChain
from heads.random_tokens import random_tokens
from reference import gelu, randomize, without_gradient


def test_a_linear_head_gives_each_pixel_its_row_of_the_layer():
    head = randomize(LinearMapHead(16, 3, layer=2, activation="norm_expm1", patch_size=4)).double()
    tokens = random_tokens(patch=4, num_special=2)
    value, confidence = head(tokens)
    assert value.shape == (2, 3, 8, 12, 3)
    assert confidence.shape == (2, 3, 8, 12)
    patch = tokens.layer(2)[1, 2, 2 + 1 * 3 + 2]  # second row, third column
    raw = (head.out.project.weight @ patch + head.out.project.bias).unflatten(0, (4, 4, 4))[:, 1, 3]
    pixel = (1, 2, 4 + 1, 2 * 4 + 3)
    length = raw[:3].norm()
    torch.testing.assert_close(value[pixel], raw[:3] / length * (length.exp() - 1))
    torch.testing.assert_close(confidence[pixel], 1 + raw[3].exp())
    (value.sum() + confidence.sum()).backward()
    assert without_gradient(head) == []


def test_descriptors_have_unit_length_and_read_the_layers_in_their_order():
    head = randomize(DescriptorHead(32, 5, layers=(0, 3), patch_size=4, mlp_ratio=2)).double()
    tokens = random_tokens(patch=4)
    value, confidence = head(tokens)
    assert value.shape == (2, 3, 8, 12, 5)
    torch.testing.assert_close(value.norm(dim=-1), torch.ones_like(confidence))
    patch = torch.cat([tokens.layer(0)[0, 1, 3], tokens.layer(3)[0, 1, 3]])
    hidden = gelu(head.hidden.weight @ patch + head.hidden.bias)
    raw = (head.out.project.weight @ hidden + head.out.project.bias).unflatten(0, (6, 4, 4))[:, 2, 1]
    torch.testing.assert_close(value[0, 1, 2, 1], raw[:5] / raw[:5].norm())
    torch.testing.assert_close(confidence[0, 1, 2, 1], raw[5].exp())
    with pytest.raises(ValueError, match=r"^layer must be one of the tapped layers \[0, 1, 2, 3\], got 7$"):
        DescriptorHead(32, layers=(0, 7))(tokens)


def test_points_keep_their_direction():
    x = 3 * torch.randn(2, 3, 4, 5, dtype=torch.float64)
    out = norm_expm1(x)
    torch.testing.assert_close(out.norm(dim=1), x.norm(dim=1).expm1())
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(out, x, dim=1), torch.ones(2, 4, 5).double())
    torch.testing.assert_close(norm_expm1(1e-6 * x), 1e-6 * x, rtol=1e-4, atol=0)
    zero = torch.zeros(1, 3, 1, 1, requires_grad=True)
    norm_expm1(zero).sum().backward()
    assert zero.grad.isfinite().all()


def test_maps_of_odd_grids_are_cropped_after_doubling():
    """A ramp over the coarsest map stays that ramp at the top left, where resizing would stretch it."""
    chain = FusionChain(4, rectified_skip=False, crop=True).double()
    with torch.no_grad():
        for fusion in chain:
            for conv in (fusion.unit.conv2, *(() if fusion.skip_unit is None else (fusion.skip_unit.conv2,))):
                conv.weight.zero_()
                conv.bias.zero_()
            torch.nn.init.dirac_(fusion.out.weight)
            fusion.out.bias.zero_()
    ramp = torch.arange(3.0).double().expand(1, 4, 3, 3)
    finer = [torch.zeros(1, 4, size, size).double() for size in (20, 10, 5)]
    merged = chain([*finer, ramp])
    assert merged.shape == (1, 4, 40, 40)
    doubled = torch.nn.functional.interpolate(ramp, size=(6, 6), mode="bilinear", align_corners=True)[..., :5, :5]
    for size in (10, 20, 40):
        doubled = torch.nn.functional.interpolate(doubled, size=(size, size), mode="bilinear", align_corners=True)
    torch.testing.assert_close(merged, doubled)


def test_options_of_the_decoder():
    tokens = random_tokens(patch=16, num_special=0)
    layers = {tap: torch.randn(2, 3, 6, dim, dtype=torch.float64) for tap, dim in enumerate((24, 16, 16, 16))}
    tokens = tokens._replace(layers=layers)
    options = {"channels": (8, 8, 16, 16), "taps": (0, 1, 2, 3), "position_signal": False, "token_norm": False}
    decoder = DPTDecoder((24, 16, 16, 16), 16, **options, rectified_skip=False, crop=True, unused_skip=True).double()
    decoder.decode(tokens).sum().backward()
    unused = {name for name, parameter in decoder.named_parameters() if not parameter.requires_grad}
    assert unused == {f"fuse.{name}" for name in decoder.fuse.unused_parameters}
    assert set(without_gradient(decoder)) == unused
    assert len(unused) == 4
    with pytest.raises(ValueError, match=r"^dim must be a number, or of four taps without token_norm, got \(24, 16"):
        DPTDecoder((24, 16, 16, 16), 16)
    with pytest.raises(ValueError, match=r"^crop must be False for a merged map of 1 sizes of the finest, got True$"):
        DPTDecoder(16, 16, stride=None, crop=True)
