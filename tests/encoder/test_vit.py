import pytest
import torch
from torch import Tensor

from geomtx import VisionTransformer
from reference import randomize, without_gradient


def vit(**options) -> VisionTransformer:
    numbers = {"dim": 16, "depth": 2, "num_heads": 2, "patch_size": 4, "image_size": 20, **options}
    return randomize(VisionTransformer(numbers.pop("dim"), numbers.pop("depth"), **numbers)).eval()


def first_block_input(model: VisionTransformer, images: Tensor, mask: Tensor | None = None) -> Tensor:
    seen = []
    handle = model.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(images, mask)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize(
    "options",
    [
        {"dim": 24, "depth": 1, "num_heads": 3},
        {"dim": 12, "depth": 3, "num_heads": 6, "mlp_ratio": 1.5},
        {"patch_size": 7, "image_size": 49},
        {"num_registers": 0},
        {"num_registers": 9},
        {"depth": 0},
        {"patch_size": 1, "image_size": 3},
    ],
)
def test_any_numbers(options):
    model = vit(**options)
    patch = model.patch_size
    features = model.forward_features(torch.randn(2, 3, 3 * patch, 5 * patch))
    assert features.cls.shape == (2, model.dim)
    assert features.registers.shape == (2, model.num_registers, model.dim)
    assert features.patches.shape == (2, 15, model.dim)
    assert all(part.isfinite().all() for part in features)
    assert len(model.blocks) == options.get("depth", 2)


def test_forward_gives_the_patches():
    model, images = vit(), torch.randn(2, 3, 20, 12)
    assert torch.equal(model(images), model.forward_features(images).patches)


def test_order_of_tokens_and_who_has_a_position():
    """Class token with the table's first row, registers without position, patches."""
    model, images = vit(num_registers=3), torch.randn(2, 3, 20, 20)
    x = first_block_input(model, images)
    assert torch.equal(x[0, 0], model.cls_token[0, 0] + model.position_table[0, 0])
    assert torch.equal(x[1, 1:4], model.registers[0])
    assert x.shape == (2, 4 + 25, 16)


@pytest.mark.parametrize("image_size", [20, 12, 4, 148])
def test_the_table_is_itself_on_its_own_grid(image_size):
    """To the last bit."""
    model = vit(image_size=image_size)
    images = torch.randn(1, 3, image_size, image_size)
    x = first_block_input(model, images)[:, 5:]
    assert torch.equal(x, model.patch_embedding(images) + model.position_table[:, 1:])


@pytest.mark.parametrize("grid_hw", [(3, 5), (5, 3), (10, 10), (5, 6), (1, 1), (12, 2)])
def test_the_table_is_resized_bicubically_with_antialias(grid_hw):
    model = vit()
    images = torch.zeros(1, 3, 4 * grid_hw[0], 4 * grid_hw[1])
    ours = first_block_input(model, images)[0, 5:] - model.patch_embedding(images)[0]
    square = model.position_table[:, 1:].reshape(1, 5, 5, 16).permute(0, 3, 1, 2)
    for channel in range(16):  # by channel and axis by axis: the filter is separable
        expected = resize_rows(resize_rows(square[0, channel], grid_hw[0]).T, grid_hw[1]).T
        torch.testing.assert_close(ours[:, channel], expected.flatten(), rtol=0, atol=2e-6)


def resize_rows(x: Tensor, size: int) -> Tensor:
    """The bicubic filter (a = -1/2) with antialias, written out."""
    scale = x.shape[0] / size
    width = max(scale, 1.0)
    rows = []
    for target in range(size):
        centre = (target + 0.5) * scale
        first, last = max(int(centre - 2 * width + 0.5), 0), min(int(centre + 2 * width + 0.5), x.shape[0])
        weights = torch.tensor([cubic((source + 0.5 - centre) / width) for source in range(first, last)])
        rows.append((weights[:, None] * x[first:last]).sum(0) / weights.sum())
    return torch.stack(rows)


def cubic(t: float) -> float:
    t = abs(t)
    if t < 1:
        return 1.5 * t**3 - 2.5 * t**2 + 1
    return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0


def test_masked_patches_change_nothing():
    model = vit().double()
    images = torch.randn(2, 3, 12, 20, dtype=torch.float64)
    mask = torch.rand(2, 15) < 0.6
    mask[:, 0], mask[:, 7] = True, False
    poisoned = images.clone()
    poisoned[:, :, 4:8, 8:12] = torch.nan  # patch 7
    clean, other = model.forward_features(images, mask), model.forward_features(poisoned, mask)
    for a, b in zip(clean, other, strict=True):
        assert torch.equal(a, b)
    assert not torch.allclose(model(images)[mask], model(images, mask)[mask], atol=1e-3)


def test_a_mask_of_all_true_is_no_mask():
    model, images = vit().double(), torch.randn(2, 3, 12, 20, dtype=torch.float64)
    everything = torch.ones(2, 15, dtype=torch.bool)
    torch.testing.assert_close(model(images, everything), model(images), rtol=0, atol=1e-13)


def test_images_of_a_batch_do_not_see_each_other():
    model, images = vit().double(), torch.randn(3, 3, 12, 20, dtype=torch.float64)
    torch.testing.assert_close(model(images)[1:2], model(images[1:2]), rtol=0, atol=1e-13)


def test_every_parameter_gets_a_gradient_but_the_unused_mask_token():
    model = vit(num_registers=2)
    features = model.forward_features(torch.randn(2, 3, 12, 16))
    sum((part * torch.randn_like(part)).sum() for part in features).backward()
    assert without_gradient(model) == ["mask_token"]
    assert not model.mask_token.requires_grad


def test_attention_backends_agree():
    images = torch.randn(1, 3, 12, 20, dtype=torch.float64)
    outputs = []
    for backend in ("sdpa", "math"):
        torch.manual_seed(3)
        outputs.append(vit(backend=backend).double()(images))
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    model, images = vit(), torch.randn(2, 3, 12, 20)
    reference = model(images)
    out = model.to(dtype)(images)
    assert out.dtype == dtype
    assert (out.float() - reference).norm() / reference.norm() < 30 * torch.finfo(dtype).eps


def test_sizes_that_are_no_multiples():
    with pytest.raises(ValueError, match=r"^image height must be a multiple of 4, got 13$"):
        vit()(torch.randn(1, 3, 13, 20))
    with pytest.raises(ValueError, match=r"^image width must "):
        vit()(torch.randn(1, 3, 12, 21))
    with pytest.raises(ValueError, match=r"^image_size must "):
        vit(image_size=21)


def test_builds_on_the_meta_device():
    with torch.device("meta"):
        model = VisionTransformer()
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == 304_372_736


def test_positions_start_as_waves_that_tell_places_apart():
    model = VisionTransformer(16, 1, num_heads=2, patch_size=4, image_size=32)
    table = model.position_table[0, 1:].detach()
    closest = torch.cdist(table, table) + 9 * torch.eye(64)
    assert closest.min() > 0.1, "no two places are alike"
    torch.testing.assert_close(table.square().sum(-1), torch.full((64,), 0.3**2 * 8), rtol=1e-4, atol=0)
    row = table.unflatten(0, (8, 8))
    torch.testing.assert_close(row[0, :, :8], row[5, :, :8], rtol=0, atol=0)  # columns do not depend on the row
    assert model.position_table[0, 0].abs().max() < 0.1, "the class token is nowhere"
