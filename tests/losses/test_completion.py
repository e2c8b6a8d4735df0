import pytest
import torch

from geomtx.losses import completion_loss


def patches_of(images: torch.Tensor, side: int) -> torch.Tensor:
    """Patches with loops, (N, P, side, side, 3)."""
    found = [
        [
            image[:, top : top + side, left : left + side].permute(1, 2, 0)
            for top in range(0, image.shape[1], side)
            for left in range(0, image.shape[2], side)
        ]
        for image in images
    ]
    return torch.stack([torch.stack(each) for each in found])


@pytest.mark.parametrize("normalize", [True, False])
def test_the_mean_over_hidden_patches(normalize):
    images = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    predicted = torch.randn(2, 6, 12, dtype=torch.float64, requires_grad=True)
    hidden = torch.rand(2, 6) < 0.5
    hidden[0, 0], hidden[1, 5] = True, False
    errors = []
    for index, patches in enumerate(patches_of(images, 2)):
        for number, patch in enumerate(patches):
            if hidden[index, number]:
                target = patch.flatten()
                if normalize:
                    target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
                errors.append((predicted[index, number] - target).square().mean())
    loss = completion_loss(predicted, images, hidden, normalize=normalize)
    torch.testing.assert_close(loss, torch.stack(errors).mean())
    loss.backward()
    assert torch.equal(predicted.grad.any(-1), hidden)


def test_a_flat_patch_and_no_hidden_patch_are_finite():
    predicted = torch.zeros(1, 4, 12, requires_grad=True)
    images = torch.full((1, 3, 4, 4), 0.3)
    assert completion_loss(predicted, images, torch.ones(1, 4, dtype=torch.bool)) < 1e-6
    assert completion_loss(predicted, images, torch.zeros(1, 4, dtype=torch.bool)) == 0


def test_shapes_that_do_not_fit():
    mask = torch.ones(1, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"^predicted must have the patches of images \(1, 3, 4, 6\), got \(1, 4, 12"):
        completion_loss(torch.zeros(1, 4, 12), torch.zeros(1, 3, 4, 6), mask)
