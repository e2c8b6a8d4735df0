import math

import pytest
import torch

from geomtx.losses import PERCEPTUAL_TAPS, PerceptualLoss, RenderingLoss, gaussian_similarity
from geomtx.losses.perceptual import VGGFeatures
from geomtx.metrics import psnr, ssim


def test_the_similarity_is_the_measure_and_has_a_gradient():
    a, b = torch.rand(2, 2, 3, 20, 17, dtype=torch.float64), torch.rand(2, 2, 3, 20, 17, dtype=torch.float64)
    torch.testing.assert_close(gaussian_similarity(a, b), ssim(a, b))
    torch.testing.assert_close(gaussian_similarity(a, a), torch.ones(2, 2).double())
    small = torch.rand(1, 11, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: gaussian_similarity(x, b[0, 0, :1, :11, :12]), small)


def test_without_a_perceptual_loss():
    a, b = torch.rand(2, 3, 3, 16, 20, dtype=torch.float64), torch.rand(2, 3, 3, 16, 20, dtype=torch.float64)
    report = RenderingLoss(similarity_weight=0.3)(a, b)
    mse = (a - b).square().mean()
    torch.testing.assert_close(report.parts["mse"], mse)
    torch.testing.assert_close(report.parts["psnr"], psnr(a.flatten(0, 2), b.flatten(0, 2)))
    torch.testing.assert_close(report.total, mse + 0.3 * (1 - ssim(a, b)).mean())
    assert set(report.parts) == {"mse", "psnr", "dissimilarity"}


def test_with_a_perceptual_loss():
    perceptual = PerceptualLoss(VGGFeatures(19, PERCEPTUAL_TAPS))
    a, b = torch.rand(2, 1, 3, 16, 16), torch.rand(2, 1, 3, 16, 16)
    report = RenderingLoss(perceptual, perceptual_weight=0.7)(a, b)
    torch.testing.assert_close(report.total, (a - b).square().mean() + 0.7 * perceptual(a, b).mean())
    assert set(report.parts) == {"mse", "psnr", "perceptual"}


def test_hue_counts_once_more_and_light_and_dark_do_not():
    a, b = torch.rand(2, 3, 3, 16, 16, dtype=torch.float64), torch.rand(2, 3, 3, 16, 16, dtype=torch.float64)
    plain, report = RenderingLoss()(a, b), RenderingLoss(chroma_weight=4.0)(a, b)
    red, green, blue = (a - b).unbind(2)
    expected = ((red - green).square().mean() + ((red + green) / 2 - blue).square().mean()) / 2
    torch.testing.assert_close(report.parts["chroma"], expected)
    torch.testing.assert_close(report.total, plain.total + 4 * expected)
    brighter = RenderingLoss(chroma_weight=4.0)(a, a + torch.rand(2, 3, 1, 16, 16))
    torch.testing.assert_close(brighter.parts["chroma"], torch.zeros((), dtype=torch.float64))
    mask = torch.tensor([[True, False, True], [False, False, True]])
    a[~mask] = math.nan
    torch.testing.assert_close(
        RenderingLoss(chroma_weight=4.0)(a, b, mask).total,
        RenderingLoss(chroma_weight=4.0)(a[mask][None], b[mask][None]).total,
    )


def test_pictures_that_do_not_count_may_hold_anything():
    a, b = torch.rand(2, 3, 3, 16, 16), torch.rand(2, 3, 3, 16, 16)
    mask = torch.tensor([[True, False, True], [False, False, True]])
    expected = RenderingLoss()(a[mask][None], b[mask][None])
    a[~mask], b[~mask] = math.nan, math.inf
    a.requires_grad_()
    report = RenderingLoss()(a, b, mask)
    torch.testing.assert_close(report.total, expected.total)
    report.total.backward()
    assert a.grad.isfinite().all()
    assert not a.grad[~mask].any()
    nothing = RenderingLoss()(a, b, torch.zeros_like(mask))
    assert nothing.total == 0
    nothing.total.backward()


@pytest.mark.usefixtures("unchecked")
def test_errors():
    small = torch.rand(1, 1, 3, 10, 16)
    with pytest.raises(ValueError, match=r"^predicted must have at least 11 pixels a side, got \(10, 16\)$"):
        RenderingLoss()(small, small)
    with pytest.raises(ValueError, match=r"^true must have shape"):
        RenderingLoss()(small, small[:, :, :, :9])
    with pytest.raises(ValueError, match=r"^mask must be bool, got torch.float32$"):
        RenderingLoss()(torch.rand(1, 1, 3, 16, 16), torch.rand(1, 1, 3, 16, 16), torch.ones(1, 1))
    with pytest.raises(ValueError, match=r"^similarity_weight must be at least 0, got -1$"):
        RenderingLoss(similarity_weight=-1)
    with pytest.raises(ValueError, match=r"^chroma_weight must be at least 0, got -1$"):
        RenderingLoss(chroma_weight=-1)
