import pytest
import torch

from geomtx.encoder import Backbone, PatchEmbedding, VisionTransformer, normalize_images
from geomtx.encoder.patches import drop_masked, grid_of
from reference import randomize


def test_normalisation_with_the_constants_of_training():
    images = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    mean = torch.tensor([0.485, 0.456, 0.406]).double()[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225]).double()[:, None, None]
    torch.testing.assert_close(normalize_images(images), (images - mean) / std, rtol=0, atol=1e-14)
    half = normalize_images(images, mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 1.0))
    torch.testing.assert_close(half[:, 1], (images[:, 1] - 0.5) * 4)


def test_one_token_a_patch_row_by_row():
    embedding = randomize(PatchEmbedding(6, patch_size=4, in_channels=2)).double()
    images = torch.randn(3, 2, 8, 12, dtype=torch.float64)
    tokens = embedding(images)
    assert tokens.shape == (3, 6, 6)
    for index in range(6):
        row, column = divmod(index, 3)
        patch = images[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        expected = torch.einsum("nchw,dchw->nd", patch, embedding.project.weight) + embedding.project.bias
        torch.testing.assert_close(tokens[:, index], expected, rtol=0, atol=1e-12)


def test_images_take_the_precision_of_the_weights():
    assert PatchEmbedding(4, patch_size=2).bfloat16()(torch.rand(1, 3, 4, 4)).dtype == torch.bfloat16
    assert PatchEmbedding(4, patch_size=2).double()(torch.rand(1, 3, 4, 4)).dtype == torch.float64


def test_in_float32_the_weights_do_not_narrow_the_images():
    embedding = PatchEmbedding(4, patch_size=2, in_float32=True).bfloat16()
    images = 1 + 1e-4 * torch.rand(1, 3, 4, 4)
    tokens = embedding(images)
    assert tokens.dtype == torch.float32
    wide = PatchEmbedding(4, patch_size=2).double()
    wide.load_state_dict(embedding.state_dict())
    torch.testing.assert_close(tokens, wide(images.double()).float())


def test_drop_masked_zeroes_exactly_the_masked_patches():
    images = torch.randn(2, 3, 4, 6)
    mask = torch.rand(2, 6) < 0.5
    out = drop_masked(images, mask, 2)
    for n in range(2):
        for index in range(6):
            rows, columns = (slice(2 * i, 2 * i + 2) for i in divmod(index, 3))
            expected = images[n, :, rows, columns] if mask[n, index] else torch.zeros(3, 2, 2)
            assert torch.equal(out[n, :, rows, columns], expected)


def test_masked_patches_are_not_read_forward_or_backward():
    embedding = PatchEmbedding(4, patch_size=2)
    images = torch.rand(1, 3, 4, 4)
    mask = torch.tensor([[True, False, True, True]])
    poisoned = images.clone()
    poisoned[:, :, :2, 2:] = torch.nan
    gradients = []
    for x in (images, poisoned):
        embedding.zero_grad()
        tokens = embedding(x, mask)
        tokens.square().sum().backward()
        gradients.append((tokens.detach(), embedding.project.weight.grad.clone()))
    for clean, other in zip(*gradients, strict=True):
        assert torch.equal(clean, other)


def test_gradient_of_images_stops_at_the_mask():
    embedding, images = PatchEmbedding(4, patch_size=2), torch.rand(1, 3, 4, 4, requires_grad=True)
    embedding(images, torch.tensor([[True, False, True, True]])).square().sum().backward()
    assert not images.grad[:, :, :2, 2:].any()
    assert images.grad[:, :, :2, :2].any()


def test_both_backbones_are_backbones():
    assert isinstance(PatchEmbedding(4), Backbone)
    assert isinstance(VisionTransformer(8, 1, num_heads=2, image_size=28), Backbone)
    assert not isinstance(torch.nn.Linear(2, 2), Backbone)


def test_grid_of_counts_patches():
    assert grid_of((28, 56), 14) == (2, 4)
    with pytest.raises(ValueError, match=r"^image height must be a multiple of 14, got 29$"):
        grid_of((29, 56), 14)
    with pytest.raises(ValueError, match=r"^image width must "):
        grid_of((28, 57), 14)


@pytest.mark.usefixtures("unchecked")
def test_wrong_images():
    embedding = PatchEmbedding(4, patch_size=2)
    with pytest.raises(ValueError, match=r"^images must have shape \(N, 3, H, W\), got \(1, 4, 4, 4\)$"):
        embedding(torch.rand(1, 4, 4, 4))
    with pytest.raises(ValueError, match=r"^images must "):
        embedding(torch.rand(3, 4, 4))
    with pytest.raises(ValueError, match=r"^image width must "):
        embedding(torch.rand(1, 3, 4, 5))
