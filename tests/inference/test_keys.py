import pytest
import torch
from torch import Tensor, nn

from encoder.test_alternating import assert_same, draw_images, encoder
from geomtx import VGGT, AlternatingEncoder
from geomtx.inference import GlobalApproximation, MemoryPlan, predict
from geomtx.inference.attention import attention_table
from geomtx.inference.keys import check_approximation, choose_keys, choose_views, strided_patches
from geomtx.inference.plan import WHOLE
from geomtx.types import EmbeddedViews, Tokens
from lean import build_lean, lean_config
from operations import count_operations
from reference import named_tensors, without_gradient

SPECIAL, GRID_HW, PATCHES = 3, (2, 3), 6
TOKENS = SPECIAL + PATCHES


def draw_mask(num_scenes: int = 2, num_views: int = 5) -> Tensor:
    """Some patches are out, and one view altogether."""
    mask = torch.rand(num_scenes, num_views, *GRID_HW) < 0.7
    mask[:, 0, 0, 0], mask[0, 3] = True, False
    return mask


def encode(
    model: AlternatingEncoder,
    images: Tensor,
    mask: Tensor | None = None,
    approximation: GlobalApproximation | None = None,
) -> Tokens:
    """Return the tapped layers with an approximation."""
    views = model.embed(images, patch_mask=mask)
    return model.collect(views, attention_table(model, views, WHOLE, approximation or GlobalApproximation()))


def mask_other_keys(model: AlternatingEncoder, chosen: Tensor) -> None:
    """Mask, in exact global blocks, all keys but those of a mask (B, S·P): what the fast way must give."""

    def mask_keys(_, args, options):
        mask = chosen[:, None, None]
        given = options["mask"]
        return args, {**options, "mask": mask if given is None else mask & given}

    for module in model.global_blocks:
        module.register_forward_pre_hook(mask_keys, with_kwargs=True)


# What is chosen


@pytest.mark.parametrize("num_views", [1, 2, 4, 7])
def test_farthest_views(num_views):
    """Against the definition, view by view."""
    patches = torch.randn(3, 7, 5, 8, dtype=torch.float64)
    chosen = choose_views(patches, num_views)
    assert chosen.shape == (3, num_views)
    for scene, views in zip(patches, chosen.tolist(), strict=True):
        features = nn.functional.normalize(scene.mean(dim=1), dim=-1)
        expected = [0]
        while len(expected) < num_views:
            rest = [view for view in range(7) if view not in expected]
            nearest = [min(1 - float(features[view] @ features[other]) for other in expected) for view in rest]
            expected.append(rest[nearest.index(max(nearest))])
        assert views == expected
        assert len(set(views)) == num_views


def test_copies_of_a_view_come_last():
    distinct = torch.randn(4, 5, 8, dtype=torch.float64)
    patches = distinct[[0, 0, 1, 1, 2, 2, 3, 3]][None]
    assert {view // 2 for view in choose_views(patches, 4)[0].tolist()} == {0, 1, 2, 3}
    same = patches[:, :1].expand(-1, 8, -1, -1)
    assert sorted(choose_views(same, 8)[0].tolist()) == list(range(8))


def test_views_without_patches_come_last_and_masked_patches_are_not_pooled():
    patches = torch.randn(2, 5, 6, 8, dtype=torch.float64)
    mask = draw_mask().flatten(2)
    poisoned = torch.where(mask[..., None], patches, torch.nan)
    chosen = choose_views(poisoned, 5, mask)
    assert torch.equal(chosen, choose_views(patches, 5, mask))
    assert chosen[0, -1] == 3
    assert sorted(chosen[0].tolist()) == list(range(5))
    full = torch.ones_like(mask)
    assert torch.equal(choose_views(patches, 5, full), choose_views(patches, 5))


def test_views_that_differ_by_little_in_half_precision():
    """Neighbouring frames: the choice is made in float32 whatever the caller's precision."""
    patches = (10 + torch.randn(1, 1, 1, 32) + 0.3 * torch.randn(1, 9, 50, 32)).bfloat16()
    expected = choose_views(patches.double(), 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(choose_views(patches, 5), expected)
        assert torch.equal(choose_views(patches, 5, torch.ones(1, 9, 50, dtype=torch.bool)), expected)


@pytest.mark.parametrize("grid_hw", [(1, 1), (2, 3), (7, 5), (1, 9)])
@pytest.mark.parametrize("stride", [1, 2, 3, 8])
def test_patches_on_a_stride(grid_hw, stride):
    chosen = strided_patches(grid_hw, stride, torch.device("cpu"))
    rows, columns = chosen // grid_hw[1], chosen % grid_hw[1]
    assert len(chosen) == len(rows.unique()) * len(columns.unique()) > 0
    for places, size in ((rows.unique(), grid_hw[0]), (columns.unique(), grid_hw[1])):
        assert places.max() < size
        assert places[0] == (stride // 2 if stride // 2 <= (size - 1) // 2 else (size - 1) // 2)
        assert torch.all(places.diff() == stride)
        assert places[-1] + stride >= size


def test_special_tokens_of_all_views_are_keys():
    x = torch.randn(2, 5, TOKENS, 16)
    keys = choose_keys(EmbeddedViews(x, SPECIAL, (8, 12), GRID_HW), GlobalApproximation(2, 2), None)
    assert keys.rope is None
    views = choose_views(x[:, :, SPECIAL:], 2)
    for found, of_scene in zip(keys.tokens.tolist(), views.tolist(), strict=True):
        special = [view * TOKENS + token for view in range(5) for token in range(SPECIAL)]
        # Of 2 x 3 patches, a stride of 2 begins in row 0 and column 1.
        assert found == special + [view * TOKENS + SPECIAL + 1 for view in of_scene]


# What it gives


@pytest.mark.parametrize("approximation", [GlobalApproximation(), GlobalApproximation(5), GlobalApproximation(9)])
@pytest.mark.parametrize("masked", [False, True])
def test_nothing_left_out_is_exact(approximation, masked):
    model, images, mask = encoder(vit=True), draw_images(2, 5), draw_mask() if masked else None
    assert_same(encode(model, images, mask, approximation), model(images, patch_mask=mask), atol=0)


@pytest.mark.parametrize("approximation", [(1,), (3,), (3, 2), (None, 2), (5, 3), (2, 1, 1), (None, 2, 2)])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_exact_blocks_with_the_other_keys_masked(approximation, masked):
    approximation = GlobalApproximation(*approximation)
    model, images, mask = encoder(vit=True), draw_images(2, 5), draw_mask() if masked else None
    tokens = encode(model, images, mask, approximation)
    keys = choose_keys(model.embed(images, patch_mask=mask), approximation, None)
    chosen = torch.ones(2, 5 * TOKENS, dtype=torch.bool)
    if keys is not None:
        chosen = torch.zeros_like(chosen).scatter(1, keys.tokens, True)
    local = approximation.num_local_layers
    # A local layer is a frame block with the global one's weights.
    order = (("frame", "frame"),) * local + (("frame", "global"),) * (3 - local)
    reference = encoder(3 + local, 3 - local, vit=True, order=order)
    for ours, theirs in ((model.backbone, reference.backbone), (model.special, reference.special)):
        theirs.load_state_dict(ours.state_dict())
    pairs = [module for pair in zip(model.frame_blocks, model.global_blocks, strict=True) for module in pair]
    blocks = [*pairs[: 2 * local], *model.frame_blocks[local:], *model.global_blocks[local:]]
    for ours, theirs in zip(blocks, [*reference.frame_blocks, *reference.global_blocks], strict=True):
        theirs.load_state_dict(ours.state_dict())
    mask_other_keys(reference, chosen)
    expected = reference(images, patch_mask=mask)
    for index, layer in expected.layers.items():
        taking_part = slice(None) if mask is None else tokens.mask
        torch.testing.assert_close(tokens.layers[index][taking_part], layer[taking_part], rtol=0, atol=1e-12)


def test_something_is_left_out():
    model, images = encoder(vit=True), draw_images(2, 5)
    exact = model(images).layers[2]
    for approximation in (
        GlobalApproximation(2),
        GlobalApproximation(stride=2),
        GlobalApproximation(num_local_layers=1),
    ):
        other = encode(model, images, None, approximation).layers[2]
        assert 1e-4 < (other - exact).norm() / exact.norm() < 1


def test_order_of_the_views_beyond_the_first_does_not_matter():
    model, images = encoder(vit=True), draw_images(2, 6)
    order = [0, 3, 1, 5, 4, 2]
    approximation = GlobalApproximation(3, 2, 1)
    straight = encode(model, images, None, approximation)
    permuted = encode(model, images[:, order], None, approximation)
    for index, layer in straight.layers.items():
        torch.testing.assert_close(permuted.layers[index], layer[:, order], rtol=0, atol=1e-12)


def test_a_padded_view_is_no_view():
    model, images = encoder(vit=True), draw_images(1, 5)
    mask = torch.ones(1, 5, *GRID_HW, dtype=torch.bool)
    mask[:, 2] = False
    rest = [0, 1, 3, 4]
    padded = encode(model, images, mask, GlobalApproximation(3, 2))
    without = encode(model, images[:, rest], None, GlobalApproximation(3, 2))
    torch.testing.assert_close(padded.layers[2][:, rest], without.layers[2], rtol=0, atol=1e-12)
    assert padded.layers[2].isfinite().all()


def test_all_blocks_local_keeps_views_apart():
    model, images = encoder(vit=True), draw_images(1, 3)
    tokens = encode(model, images, None, GlobalApproximation(num_local_layers=3))
    other = encode(model, torch.cat([images[:, :2], draw_images(1, 1)], dim=1), None, GlobalApproximation(None, 1, 3))
    assert torch.equal(tokens.layers[2][:, :2], other.layers[2][:, :2])


def test_gradients_flow():
    model = encoder(vit=True)
    tokens = encode(model, draw_images(2, 5), None, GlobalApproximation(2, 2, 1))
    sum((layer * torch.randn_like(layer)).sum() for layer in tokens.layers.values()).backward()
    assert without_gradient(model) == ["backbone.mask_token"]


@pytest.mark.parametrize("plan", [MemoryPlan(2, 7), MemoryPlan(1, 1000, "cpu"), MemoryPlan(100, 3, part_device="cpu")])
@pytest.mark.parametrize("approximation", [(2,), (2, 2, 1), (None, 3), (None, 1, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_fewer_keys_with_chunks_of_tokens(plan, approximation, masked):
    model = build_lean(heads=("camera", "depth")).double()
    images, mask = torch.rand(2, 3, 3, 28, 42, dtype=torch.float64), None
    if masked:
        mask = torch.rand(2, 3, 2, 3) < 0.8
        mask[:, 0, 0, 0], mask[1, 2] = True, False
    options = {"heads": ("camera", "depth"), "approximation": GlobalApproximation(*approximation)}
    with torch.no_grad():
        whole, pieces = (
            predict(model, images, None, mask, **options),
            predict(model, images, None, mask, plan=plan, **options),
        )
    for name, value in named_tensors(whole).items():
        torch.testing.assert_close(named_tensors(pieces)[name], value, rtol=1e-9, atol=1e-12, msg=name)


def test_global_blocks_only():
    model = encoder(0, 4, order=(("global", "global"),) * 2)
    tokens = encode(model, draw_images(2, 5), None, GlobalApproximation(2, num_local_layers=1))
    assert tokens.layers[1].isfinite().all()


# What it costs


@pytest.mark.parametrize("approximation", [(2,), (2, 2), (None, 2), (1, 4, 1)])
@pytest.mark.parametrize("plan", [None, MemoryPlan(2, 50)])
def test_there_are_fewer_keys(approximation, plan):
    """Attention's work is queries times keys: counted in the global blocks."""
    num_views, special, patches = 6, 5, 4 * 6
    model = build_lean(heads=("camera",))
    pairs = {}

    for index, module in enumerate(model.encoder.global_blocks):
        backend = module.attention.backend

        def count(q, k, v, mask, index=index, backend=backend):
            pairs[index] = pairs.get(index, 0) + q.shape[0] * q.shape[2] * k.shape[2]
            return backend(q, k, v, mask)

        module.attention.backend = count
    with torch.no_grad():
        approximated = GlobalApproximation(*approximation)
        predict(model, torch.rand(num_views, 3, 56, 84), plan=plan, approximation=approximated)
    num_key_views, stride, num_local = GlobalApproximation(*approximation)
    queries = num_views * (special + patches)
    of_view = (4 // stride) * ((6 + stride // 2 - 1) // stride) if stride > 1 else patches
    keys = num_views * special + (num_key_views or num_views) * of_view
    local = num_views * (special + patches) ** 2
    assert list(pairs.values()) == [local] * num_local + [queries * keys] * (2 - num_local)


def test_nothing_waits_for_values():
    def run(model: VGGT) -> None:
        mask = torch.empty(1, 8, 4, 6) > 0
        predict(model, torch.empty(1, 8, 3, 56, 84), None, mask, approximation=GlobalApproximation(3, 2, 1))

    counts = count_operations(lambda: VGGT(lean_config(heads=("camera",))), run)
    assert not {"aten._local_scalar_dense", "aten.nonzero", "aten.equal"} & counts.keys()


# What is refused


@pytest.mark.parametrize(
    ("approximation", "message"),
    [
        ((0,), r"^num_key_views must be a whole number, at least 1, got 0$"),
        ((None, 0), r"^stride must be a whole number, at least 1, got 0$"),
        ((None, 1, 4), r"^num_local_layers must be in 0 … 3, got 4$"),
        ((None, 1, -1), r"^num_local_layers must be a whole number, at least 0, got -1$"),
    ],
)
def test_numbers_without_a_meaning(approximation, message):
    with pytest.raises(ValueError, match=message):
        check_approximation(GlobalApproximation(*approximation), 3)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("numbers", [(2.5,), (True,), (None, 1.5), (None, 1, 0.5)])
def test_what_is_no_number_of_views_or_layers(numbers):
    with pytest.raises(ValueError, match=r" must be a whole number, at least \d, got "):
        check_approximation(GlobalApproximation(*numbers), 3)


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_approximation(tiny_model, images):
    with pytest.raises(ValueError, match=r"^approximation must be a GlobalApproximation, got 3$"):
        predict(tiny_model, images, approximation=3)


def test_cross_attention_has_no_approximation(images):
    model = VGGT(lean_config(scopes=("frame", "cross"), heads=("camera",)))
    with pytest.raises(ValueError, match=r"^approximation must be None with the scope 'cross', got GlobalApprox"):
        predict(model, images, approximation=GlobalApproximation(2))


def test_other_blocks_have_no_keys_to_choose(images):
    class Plain(nn.Linear):
        def forward(self, x: Tensor, rope=None, mask=None) -> Tensor:
            return super().forward(x)

    model = VGGT(lean_config(heads=("camera",))).eval()
    for index in range(len(model.encoder.global_blocks)):
        model.encoder.global_blocks[index] = Plain(model.config.dim, model.config.dim)
    with pytest.raises(ValueError, match=r"^blocks must be TransformerBlock for fewer keys, got Plain$"):
        predict(model, images, approximation=GlobalApproximation(2))
    local = predict(model, images, approximation=GlobalApproximation(num_local_layers=1))
    assert local.pose_encodings.isfinite().all()
