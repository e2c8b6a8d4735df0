import weakref

import pytest
import torch
from torch import Tensor, nn

from geomtx import AlternatingEncoder, Tokens, TransformerBlock, VisionTransformer
from geomtx.encoder import PatchEmbedding
from geomtx.layers import RotaryTable
from reference import randomize, without_gradient

DIM = 16


def block() -> TransformerBlock:
    return TransformerBlock(DIM, 2, qk_norm=True)


def encoder(num_frame: int = 3, num_global: int = 3, *, vit: bool = False, **options) -> AlternatingEncoder:
    backbone = PatchEmbedding(DIM, patch_size=4)
    if vit:
        backbone = VisionTransformer(DIM, 1, num_heads=2, patch_size=4, image_size=16, num_registers=2)
    frame_blocks, global_blocks = ([block() for _ in range(count)] for count in (num_frame, num_global))
    options = {"num_registers": 2, "head_dim": 8, **options}
    return randomize(AlternatingEncoder(backbone, frame_blocks, global_blocks, **options)).double().eval()


def draw_images(*leading: int, height: int = 8, width: int = 12) -> Tensor:
    return torch.rand(*leading, 3, height, width, dtype=torch.float64)


def assert_same(ours: Tokens, reference: Tokens, atol: float = 1e-12) -> None:
    assert list(ours.layers) == list(reference.layers)
    for layer in reference.layers:
        torch.testing.assert_close(ours.layers[layer], reference.layers[layer], rtol=0, atol=atol)


@pytest.mark.parametrize("vit", [False, True])
def test_tokens_of_every_tap(vit):
    tokens = encoder(vit=vit)(draw_images(2, 4))
    assert list(tokens.layers) == [0, 1, 2]
    for layer in tokens.layers.values():
        assert layer.shape == (2, 4, 3 + 6, 2 * DIM)
    assert (tokens.num_special, tokens.image_hw, tokens.grid_hw, tokens.mask) == (3, (8, 12), (2, 3), None)
    assert tokens.views == (2, 4)


def test_a_scene_needs_no_batch_axis():
    model, images = encoder(), draw_images(4)
    assert_same(model(images), model(images[None]), atol=0)


def test_order_of_the_views_beyond_the_first_does_not_matter():
    model, images = encoder(), draw_images(2, 5)
    order = [0, 3, 1, 4, 2]
    straight, permuted = model(images), model(images[:, order])
    for index, layer in straight.layers.items():
        torch.testing.assert_close(permuted.layers[index], layer[:, order], rtol=0, atol=1e-12)


def test_the_first_view_is_the_reference():
    model, images = encoder(), draw_images(1, 3)
    order = [1, 0, 2]
    straight, permuted = model(images).layers[2], model(images[:, order]).layers[2]
    assert (permuted - straight[:, order]).norm() / straight.norm() > 1e-2


def test_scenes_of_a_batch_do_not_see_each_other():
    model, images = encoder(vit=True), draw_images(3, 2)
    together = model(images)
    for scene in range(3):
        alone = model(images[scene])
        for index, layer in alone.layers.items():
            torch.testing.assert_close(together.layers[index][scene : scene + 1], layer, rtol=0, atol=1e-12)


def test_views_see_each_other_in_global_blocks_only():
    model, images = encoder(), draw_images(1, 2)
    other = torch.cat([images[:, :1], draw_images(1, 1)], dim=1)
    straight, changed = model(images), model(other)
    first_frame = slice(0, DIM)  # channels of layer 0's frame block
    assert torch.equal(straight.layers[0][:, 0, :, first_frame], changed.layers[0][:, 0, :, first_frame])
    assert not torch.allclose(straight.layers[0][:, 0], changed.layers[0][:, 0], atol=1e-4)


def test_a_single_view():
    tokens = encoder()(draw_images(1, 1))
    assert tokens.layers[2].shape == (1, 1, 9, 2 * DIM)
    assert tokens.layers[2].isfinite().all()


@pytest.mark.parametrize("kind", ["permuted", "strided", "expanded", "flipped"])
def test_images_need_not_be_contiguous(kind):
    images = {
        "permuted": lambda: torch.rand(2, 3, 8, 12, 3).double().movedim(-1, 2),
        "strided": lambda: draw_images(2, 3, height=16, width=36)[..., ::2, ::3],
        "expanded": lambda: draw_images(2, 1).expand(-1, 3, -1, -1, -1),
        "flipped": lambda: draw_images(2, 3).transpose(0, 1).contiguous().transpose(0, 1),
    }[kind]()
    assert not images.is_contiguous()
    model = encoder(vit=True)
    assert_same(model(images), model(images.contiguous()))


def test_only_taps_are_kept():
    images, model, all_taps = draw_images(1, 2), encoder(taps=(0, 2)), encoder()
    all_taps.load_state_dict(model.state_dict())
    tokens, last, everything = model(images), model(images, taps=(2,)), all_taps(images)
    assert list(tokens.layers) == [0, 2]
    assert list(last.layers) == [2]
    assert list(everything.layers) == [0, 1, 2]
    assert torch.equal(tokens.layers[0], everything.layers[0])
    assert torch.equal(tokens.layers[2], everything.layers[2])
    assert torch.equal(last.layers[2], everything.layers[2])


def test_nothing_after_the_last_tap_is_computed():
    model = encoder(taps=(0, 1, 2))
    runs = []
    for name, module in model.named_modules():
        if isinstance(module, TransformerBlock):
            module.register_forward_hook(lambda *_, name=name: runs.append(name))
    model(draw_images(1, 2), taps=(1, 0))
    assert runs == ["frame_blocks.0", "global_blocks.0", "frame_blocks.1", "global_blocks.1"]


def test_outputs_of_blocks_are_let_go():
    """At no time more of them are kept than those of the layer at work and the one before."""
    model, outputs, alive = encoder(6, 6, taps=(1, 5)), [], []

    def count(_, __, out):
        outputs.append(weakref.ref(out))
        alive.append(sum(output() is not None for output in outputs))

    for module in (*model.frame_blocks, *model.global_blocks):
        module.register_forward_hook(count)
    with torch.no_grad():
        tokens = model(draw_images(1, 2))
    assert len(alive) == 12
    assert max(alive) <= 3
    assert not any(output() is not None for output in outputs)
    assert list(tokens.layers) == [1, 5]


def test_layers_that_are_no_taps():
    model = encoder(taps=(0, 2))
    assert model(draw_images(1, 2), taps=(1,)).layers.keys() == {1}
    with pytest.raises(ValueError, match=r"^tap must be one of 0, 1, 2, got 3$"):
        model(draw_images(1, 2), taps=(3,))
    with pytest.raises(ValueError, match=r"^layer must "):
        model(draw_images(1, 2)).layer(1)
    for tap in (3, -1):
        with pytest.raises(ValueError, match=rf"^tap must be one of 0, 1, 2, got {tap}$"):
            encoder(taps=(tap,))


def trace(model: AlternatingEncoder, images: Tensor, mask: Tensor | None = None) -> list[tuple[str, Tensor, dict]]:
    """Name, input and options of every block in order of use."""
    calls, handles = [], []
    for name, module in model.named_modules():
        if isinstance(module, TransformerBlock) and "backbone" not in name:
            hook = lambda _, args, options, name=name: calls.append((name, args[0], options))  # noqa: E731
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    model(images, patch_mask=mask)
    for handle in handles:
        handle.remove()
    return calls


def test_frame_blocks_get_views_and_global_blocks_scenes():
    calls = trace(encoder(1, 1), draw_images(2, 4))
    assert [name for name, *_ in calls] == ["frame_blocks.0", "global_blocks.0"]
    assert [tuple(x.shape) for _, x, _ in calls] == [(8, 9, DIM), (2, 36, DIM)]
    frame, world = (options["rope"] for *_, options in calls)
    assert frame.cos.shape == (9, 8)
    assert torch.equal(world.cos, frame.cos.repeat(4, 1))
    assert torch.equal(frame.cos[:3], torch.ones(3, 8, dtype=torch.float64)), "special tokens are at the origin"
    assert frame.cos.dtype == torch.float64


def test_outputs_of_a_layer_are_side_by_side():
    model, images = encoder(1, 1), draw_images(1, 2)
    outputs = {}
    for kind in ("frame_blocks", "global_blocks"):
        getattr(model, kind)[0].register_forward_hook(lambda _, __, out, kind=kind: outputs.setdefault(kind, out))
    layer = model(images).layers[0]
    assert torch.equal(layer[..., :DIM], outputs["frame_blocks"].reshape(1, 2, 9, DIM))
    assert torch.equal(layer[..., DIM:], outputs["global_blocks"].reshape(1, 2, 9, DIM))


@pytest.mark.parametrize(
    ("order", "counts", "names", "width"),
    [
        ((("global", "global"),) * 2, (0, 4), ["g0", "g1", "g2", "g3"], 2),
        ((("frame", "global", "cross"),) * 2, (2, 4), ["f0", "g0", "g1", "f1", "g2", "g3"], 3),
        ((("frame",), ("global",), ("frame",)), (2, 1), ["f0", "g0", "f1"], 1),
        ((("cross",),), (0, 1), ["g0"], 1),
        ((("frame", "cross"), ("cross", "frame")), (2, 2), ["f0", "g0", "g1", "f1"], 2),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_order_is_data(order, counts, names, width, masked):
    model, images = encoder(*counts, order=order), draw_images(2, 3)
    mask = torch.rand(2, 3, 2, 3) < 0.7 if masked else None
    calls = trace(model, images, mask)
    assert [name[0] + name[-1] for name, *_ in calls] == names
    tokens = model(images, patch_mask=mask)
    assert list(tokens.layers) == list(range(len(order)))
    assert tokens.layers[0].shape == (2, 3, 9, width * DIM)
    assert all(layer.isfinite().all() for layer in tokens.layers.values())


def test_cross_attends_to_all_other_views():
    """Against one attention a view, over the tokens of the others."""
    model, images = encoder(0, 1, order=(("cross",),)), draw_images(2, 3)
    block = model.global_blocks[0]
    ((_, x, options),) = trace(model, images)
    mask = options["mask"]
    view = torch.arange(3).repeat_interleave(9)
    assert mask.shape == (1, 1, 27, 27)
    assert torch.equal(mask[0, 0], view[:, None] != view)
    out = model(images).layers[0]
    for index in range(3):
        mine, others = view == index, view != index
        attended = attend_to(block, block.attention_norm(x), mine, others, options["rope"])
        expected = x[:, mine] + block.attention_scale.gamma * attended
        expected = expected + block.mlp_scale.gamma * block.mlp(block.mlp_norm(expected))
        torch.testing.assert_close(out[:, index], expected, rtol=0, atol=1e-12)


def attend_to(block: TransformerBlock, x: Tensor, queries: Tensor, keys: Tensor, rope) -> Tensor:
    """The block's attention with the sequence cut instead of masked."""
    attention = block.attention
    q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in attention.qkv(x).chunk(3, dim=-1))

    def turn(t: Tensor) -> Tensor:
        first, second = t.unflatten(-1, (2, 2, -1)).unbind(-2)
        return t * rope.cos + torch.stack([second, first], dim=-2).flatten(-3) * rope.sin

    q, k = turn(attention.q_norm(q)), turn(attention.k_norm(k))
    weights = (q[:, :, queries] @ k[:, :, keys].mT / 8**0.5).softmax(-1)
    return attention.out((weights @ v[:, :, keys]).transpose(1, 2).flatten(2))


def test_cross_with_one_view_sees_that_view():
    """There are no others, so it attends to itself instead of to nothing."""
    crossed, images = encoder(0, 1, order=(("cross",),)), draw_images(2, 1)
    plain = encoder(0, 1, order=(("global",),))
    plain.load_state_dict(crossed.state_dict())
    assert_same(crossed(images), plain(images))


def test_cross_with_all_other_views_masked_stays_finite():
    model, images = encoder(0, 1, order=(("cross",),)), draw_images(1, 2)
    mask = torch.ones(1, 2, 2, 3, dtype=torch.bool)
    mask[:, 1] = False
    tokens = model(images, patch_mask=mask)
    assert tokens.layers[0].isfinite().all()
    torch.testing.assert_close(tokens.layers[0][:, :1], model(images[:, :1]).layers[0], rtol=0, atol=1e-12)


def test_order_must_use_up_the_blocks():
    wanted = r"^order must use each block once, 3 frame and 3 global ones, got 3 and 2; without an order they are "
    with pytest.raises(ValueError, match=wanted):
        encoder(order=(("frame", "global"), ("frame", "cross"), ("frame",)))
    with pytest.raises(ValueError, match=r"^order must use each block once, 3 frame and 2 global ones, got 3 and 3;"):
        encoder(3, 2)


def test_head_dim_is_read_from_the_blocks():
    assert encoder(head_dim=None).head_dim == 8
    assert encoder(0, 2, order=(("global",),) * 2, head_dim=None).head_dim == 8
    assert encoder(head_dim=None, rope_base=None).head_dim is None
    images, given = draw_images(1, 2), encoder()
    asked = encoder(head_dim=None)
    asked.load_state_dict(given.state_dict())
    assert_same(asked(images), given(images), atol=0)
    with pytest.raises(ValueError, match=r"^head_dim must be given for blocks without an `attention.head_dim`"):
        AlternatingEncoder(PatchEmbedding(4), [nn.Identity()], [nn.Identity()])


@pytest.mark.usefixtures("unchecked")
def test_unknown_scope():
    names = "'frame', 'global', 'cross', 'register', 'pose'"
    with pytest.raises(ValueError, match=rf"^scope must be one of {names}, got 'local'$"):
        encoder(order=(("local",),))


def test_without_rotary_positions():
    model, images = encoder(rope_base=None), draw_images(1, 2)
    assert all(options["rope"] is None for *_, options in trace(model, images))
    # Nothing tells where a patch is, so permuting patches permutes tokens.
    rolled = model(images.roll(4, dims=-1)).layers[2]
    grid = model(images).layers[2][:, :, 3:].unflatten(2, (2, 3))
    torch.testing.assert_close(rolled[:, :, 3:].unflatten(2, (2, 3)), grid.roll(1, dims=3), rtol=0, atol=1e-12)


def test_rotary_positions_tell_where_a_patch_is():
    model, images = encoder(), draw_images(1, 2)
    rolled = model(images.roll(4, dims=-1)).layers[2][:, :, 3:].unflatten(2, (2, 3))
    grid = model(images).layers[2][:, :, 3:].unflatten(2, (2, 3))
    assert not torch.allclose(rolled, grid.roll(1, dims=3), atol=1e-3)


@pytest.mark.parametrize("vit", [False, True])
def test_content_of_masked_patches_changes_nothing(vit):
    """Not a bit of what takes part, not even when it is NaN."""
    model, images = encoder(vit=vit), draw_images(2, 3)
    mask = torch.rand(2, 3, 2, 3) < 0.6
    mask[:, :, 0, 0], mask[:, :, 1, 2] = True, False
    poisoned = images.clone()
    poisoned[..., 4:, 8:] = torch.nan
    tokens, other = model(images, patch_mask=mask), model(poisoned, patch_mask=mask)
    for index, layer in tokens.layers.items():
        assert layer.isfinite().all()
        assert torch.equal(layer, other.layers[index])
    assert torch.equal(tokens.mask[:, :, 3:], mask.flatten(2))
    assert tokens.mask[:, :, :3].all()
    assert torch.equal(tokens.patch_mask(), mask.flatten(0, 1).flatten(1))


def test_gradients_do_not_read_masked_patches():
    model, images = encoder(vit=True), draw_images(1, 2)
    mask = torch.ones(1, 2, 2, 3, dtype=torch.bool)
    mask[:, 1, 1, 1] = False
    images[:, 1, :, 4:, 4:8] = torch.nan
    tokens = model(images, patch_mask=mask)
    (tokens.layers[2][tokens.mask] ** 2).sum().backward()
    assert without_gradient(model) == ["backbone.mask_token"]


def test_a_padded_view_is_no_view():
    model, images = encoder(vit=True), draw_images(2, 4)
    mask = torch.ones(2, 4, 2, 3, dtype=torch.bool)
    mask[:, 2] = False
    padded, without = model(images, patch_mask=mask), model(images[:, [0, 1, 3]])
    assert not padded.mask[:, 2].any()
    for index, layer in without.layers.items():
        torch.testing.assert_close(padded.layers[index][:, [0, 1, 3]], layer, rtol=0, atol=1e-12)
        assert padded.layers[index].isfinite().all()


def test_a_mask_of_all_true_is_no_mask():
    model, images = encoder(vit=True), draw_images(2, 3)
    assert_same(model(images, patch_mask=torch.ones(2, 3, 2, 3, dtype=torch.bool)), model(images))


def test_a_mask_needs_no_batch_axis_either():
    model, images, mask = encoder(), draw_images(3), torch.rand(3, 2, 3) < 0.5
    assert_same(model(images, patch_mask=mask), model(images[None], patch_mask=mask[None]), atol=0)


def test_every_parameter_gets_a_gradient():
    model = encoder(vit=True)
    tokens = model(draw_images(2, 3))
    sum((layer * torch.randn_like(layer)).sum() for layer in tokens.layers.values()).backward()
    assert without_gradient(model) == ["backbone.mask_token"]


def test_any_modules_can_be_a_backbone_and_a_block():
    class Means(nn.Module):
        dim, patch_size = 3, 4

        def forward(self, images: Tensor, patch_mask: Tensor | None = None) -> Tensor:
            return images.unflatten(-1, (-1, 4)).unflatten(-3, (-1, 4)).mean(dim=(-1, -3)).flatten(2).mT

    class Double(nn.Module):
        def forward(self, x: Tensor, rope=None, mask=None) -> Tensor:
            return 2 * x

    model = AlternatingEncoder(Means(), [Double()], [Double()], num_registers=0, head_dim=4)
    images = torch.rand(1, 2, 3, 8, 12)
    layer = model(images).layers[0]
    patches = model.backbone(images.flatten(0, 1))
    assert layer.shape == (1, 2, 7, 6)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(layer[0, :, 1:, :3], 2 * (patches - mean) / std)
    torch.testing.assert_close(layer[0, :, 1:, 3:], 4 * (patches - mean) / std)


@pytest.mark.usefixtures("unchecked")
def test_wrong_inputs():
    model = encoder()
    wanted = r"^images must have shape \(B, S, 3, H, W\) or \(S, 3, H, W\), got "
    for shape in ((3, 8, 12), (1, 2, 4, 8, 12), (1, 1, 2, 3, 8, 12)):
        with pytest.raises(ValueError, match=wanted):
            model(torch.rand(shape))
    with pytest.raises(ValueError, match=r"^images must be floating point, got torch.uint8$"):
        model(torch.zeros(1, 2, 3, 8, 12, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"^number of views must "):
        model(torch.zeros(1, 0, 3, 8, 12))
    with pytest.raises(ValueError, match=r"^image height must "):
        model(torch.rand(1, 2, 3, 9, 12))
    with pytest.raises(ValueError, match=r"^patch_mask must "):
        model(draw_images(1, 2), patch_mask=torch.ones(1, 2, 3, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"^patch_mask must "):
        model(draw_images(1, 2), patch_mask=torch.ones(2, 6, dtype=torch.bool))


@pytest.mark.parametrize("scope", ["frame", "global"])
def test_masked_patches_are_no_keys(scope):
    """A block gives the rest what it gives them with the masked tokens cut out."""
    counts = (1, 0) if scope == "frame" else (0, 1)
    model, images = encoder(*counts, order=((scope,),)), draw_images(1, 2)
    mask = torch.ones(1, 2, 2, 3, dtype=torch.bool)
    mask[0, 0, 0, 1] = mask[0, 1, 1, 1] = mask[0, 1, 1, 2] = False
    ((name, x, options),) = trace(model, images, mask)
    tokens = model(images, patch_mask=mask)
    taking_part = tokens.mask[0] if scope == "frame" else tokens.mask.flatten(1)
    out = tokens.layers[0][0] if scope == "frame" else tokens.layers[0].flatten(1, 2)
    for index, kept in enumerate(taking_part):
        rope = RotaryTable(options["rope"].cos[kept], options["rope"].sin[kept])
        expected = model.get_submodule(name)(x[index : index + 1, kept], rope=rope)
        torch.testing.assert_close(out[index : index + 1, kept], expected, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("unchecked")
def test_masks_are_bool():
    with pytest.raises(ValueError, match=r"^patch_mask must be bool, got torch.uint8$"):
        encoder()(draw_images(1, 2), patch_mask=torch.ones(1, 2, 2, 3, dtype=torch.uint8))
