import math

import pytest
import torch
from torch.nn import functional as F

from geomtx.metrics import psnr, ssim


def test_psnr_of_known_noise():
    true = torch.rand(2, 3, 3, 16, 20, dtype=torch.float64) * 0.8
    for offset, decibels in ((0.1, 20.0), (0.01, 40.0)):
        torch.testing.assert_close(psnr(true + offset, true), torch.full((2, 3), decibels).double())
    torch.testing.assert_close(psnr(true * 255 + 25.5, true * 255, max_value=255), torch.full((2, 3), 20.0).double())
    assert (psnr(true, true) == math.inf).all()


def test_every_image_has_a_number_of_its_own():
    true = torch.rand(2, 3, 16, 16)
    predicted = torch.rand(2, 3, 16, 16)
    for score in (psnr, ssim):
        both = score(predicted, true)
        torch.testing.assert_close(both[1], score(predicted[1], true[1]))
        predicted[0, 0, 0, 0] = math.nan
        assert score(predicted, true).isnan().tolist() == [True, False]
        predicted[0, 0, 0, 0] = 0.5


def test_ssim_written_out():
    """Moments under an 11×11 Gaussian of σ 1.5, inside the image only."""
    a, b = torch.rand(2, 3, 20, 24, dtype=torch.float64), torch.rand(2, 3, 20, 24, dtype=torch.float64)
    weights = torch.exp(-(torch.arange(-5, 6).double() ** 2) / (2 * 1.5**2))
    window = torch.outer(weights, weights)
    window = (window / window.sum())[None, None]

    def moment(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x.reshape(-1, 1, 20, 24), window).reshape(2, 3, 10, 14)

    mean_a, mean_b = moment(a), moment(b)
    var_a, var_b, cov = moment(a * a) - mean_a**2, moment(b * b) - mean_b**2, moment(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    torch.testing.assert_close(ssim(a, b), value.mean((-3, -2, -1)))
    torch.testing.assert_close(ssim(a * 255, b * 255, max_value=255), ssim(a, b))


def test_ssim_of_equal_images_is_one():
    for image in (torch.rand(1, 3, 12, 12), torch.zeros(1, 3, 12, 12)):
        torch.testing.assert_close(ssim(image, image), torch.ones(1).double())
    assert ssim(torch.rand(3, 30, 30), torch.rand(3, 30, 30)) < 0.5


@pytest.mark.usefixtures("unchecked")
def test_what_is_refused():
    image = torch.rand(3, 16, 16)
    for score in (psnr, ssim):
        with pytest.raises(ValueError, match=r"^predicted must have shape \(\.\.\., C, H, W\), got \(16, 16\)$"):
            score(image[0], image[0])
        with pytest.raises(ValueError, match=r"^true must have shape \(3, 16, 16\), got \(3, 16, 15\)$"):
            score(image, image[..., :15])
        with pytest.raises(ValueError, match=r"^true must be floating point, got torch.uint8$"):
            score(image, image.byte())
        with pytest.raises(ValueError, match=r"^max_value must be positive, got 0$"):
            score(image, image, max_value=0)
    with pytest.raises(ValueError, match=r"^predicted must have at least 11 pixels a side, got \(16, 10\)$"):
        ssim(image[..., :10], image[..., :10])
