import pytest
import torch
from torch import nn

from geomtx import TransformerBlock, VisionTransformer
from geomtx.encoder import AlternatingEncoder, FrameRotaryEncoder, PatchEmbedding
from geomtx.inference import GlobalApproximation, MemoryPlan
from geomtx.inference.attention import attention_table
from geomtx.layers import GridRotary
from geomtx.layers.rope import apply_rotary
from reference import randomize, without_gradient

DIM, HEADS = 16, 2
ORDER = (("frame", "global"), ("frame", "register"), ("frame", "global"))


def build(order=ORDER, **options) -> FrameRotaryEncoder:
    def blocks() -> list[nn.Module]:
        return [TransformerBlock(DIM, HEADS, qk_norm=True, masked_bias=True) for _ in order]

    rope = GridRotary(DIM // HEADS)
    backbone = VisionTransformer(DIM, 1, num_heads=HEADS, patch_size=4, num_registers=2, rope=GridRotary(DIM // HEADS))
    encoder = FrameRotaryEncoder(backbone, blocks(), blocks(), rope=rope, order=order, num_registers=3, **options)
    return randomize(encoder).double().eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 3, 8, 12, dtype=torch.float64)


@torch.no_grad()
def test_register_attention_is_among_special_tokens(images):
    """Of all views; patches pass, and neither give nor get anything."""
    encoder = build()
    views = encoder.embed(images)
    assert views.x.shape == (2, 3, 4 + 6, DIM)
    table = encoder.attention(views)
    block = encoder.global_blocks[1]
    after = table["register"](1, block, views.x)
    assert torch.equal(after[:, :, 4:], views.x[:, :, 4:])
    expected = block(views.x[:, :, :4].flatten(1, 2)).unflatten(1, (3, 4))
    torch.testing.assert_close(after[:, :, :4], expected, rtol=0, atol=1e-12)
    changed = views.x.clone()
    changed[:, :, 4:] = torch.nan
    torch.testing.assert_close(table["register"](1, block, changed)[:, :, :4], expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_only_frame_blocks_know_positions(images):
    encoder = build()
    views = encoder.embed(images)
    table = encoder.attention(views)
    order = torch.tensor([0, 1, 2, 3, 9, 8, 7, 6, 5, 4])
    for scope, same in (("global", True), ("frame", False)):
        block = (encoder.global_blocks if scope == "global" else encoder.frame_blocks)[0]
        moved = table[scope](0, block, views.x[:, :, order])
        assert torch.allclose(moved, table[scope](0, block, views.x)[:, :, order], rtol=0, atol=1e-12) == same


@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_ways_of_running_give_the_same(masked, images):
    encoder = build()
    mask = None
    if masked:
        mask = torch.rand(2, 3, 2, 3) < 0.6
        mask[1, 2] = False  # a view without any valid patch
    views = encoder.embed(images, patch_mask=mask)
    plain = encoder.collect(views, encoder.attention(views)).layers
    for fewer in (GlobalApproximation(), GlobalApproximation(1, 2)):
        whole = dict(map(encoder.join_layer, encoder.run(
            views.x, attention_table(encoder, views, MemoryPlan(None, output_device=None), fewer), (0, 1, 2)
        )))  # fmt: skip
        apart = views._replace(x=views.x.clone())
        table = attention_table(encoder, apart, MemoryPlan(2, 5), fewer)
        pieces = {i: encoder.join(o, 4) for i, o in encoder.run(apart.x, table, (0, 1, 2), keep=torch.clone)}
        for index, layer in whole.items():
            valid = slice(None) if views.mask is None else views.mask
            torch.testing.assert_close(pieces[index][valid], layer[valid], rtol=0, atol=1e-12)
            if fewer == GlobalApproximation():
                torch.testing.assert_close(layer[valid], plain[index][valid], rtol=0, atol=1e-12)


@torch.no_grad()
def test_register_attention_of_an_encoder_with_positions_everywhere(images):
    """Special tokens have the position of no rotation, in this encoder too."""
    blocks = [TransformerBlock(DIM, HEADS) for _ in range(2)]
    backbone = PatchEmbedding(DIM, patch_size=4)
    encoder = AlternatingEncoder(backbone, [], blocks, order=(("global", "register"),), num_registers=1)
    encoder = randomize(encoder).double()
    x = encoder(images).layer(0)
    assert torch.equal(x[:, :, 2:, :DIM], x[:, :, 2:, DIM:])
    expected = blocks[1](x[:, :, :2, :DIM].flatten(1, 2)).unflatten(1, (3, 2))
    torch.testing.assert_close(x[:, :, :2, DIM:], expected, rtol=0, atol=1e-12)


def test_every_parameter_gets_a_gradient(images):
    encoder = build().train()
    sum((layer * torch.randn_like(layer)).sum() for layer in encoder(images).layers.values()).backward()
    frozen = {name for name, parameter in encoder.named_parameters() if not parameter.requires_grad}
    assert frozen == {"backbone.mask_token"}
    masked = {name for name in without_gradient(encoder) if not name.endswith("qkv.bias")}
    assert masked == frozen


@torch.no_grad()
def test_the_vits_blocks_rotate_patches_alone():
    vit = randomize(
        VisionTransformer(DIM, 1, num_heads=HEADS, patch_size=4, num_registers=2, rope=GridRotary(DIM // HEADS))
    ).double()
    assert vit.position_table is None
    images = torch.rand(2, 3, 8, 12, dtype=torch.float64)
    x = torch.cat([vit.cls_token, vit.registers], dim=1).expand(2, -1, -1)
    x = torch.cat([x, vit.patch_embedding(images)], dim=1)
    table, block = vit.rope((2, 3), 3, torch.float64), vit.blocks[0]
    q, k, v = block.attention.project(block.attention_norm(x))
    q, k = (apply_rotary(each, table.over_heads()) for each in (q, k))
    y = x + block.attention_scale.gamma * block.attention.attend(q, k, v)
    y = y + block.mlp_scale.gamma * block.mlp(block.mlp_norm(y))
    features = vit.forward_features(images)
    torch.testing.assert_close(features.patches, vit.norm(y)[:, 3:], rtol=0, atol=1e-12)
    torch.testing.assert_close(features.registers, vit.norm(y)[:, 1:3], rtol=0, atol=1e-12)
