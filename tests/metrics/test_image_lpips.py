from pathlib import Path

import pytest
import torch

from geomtx.losses.perceptual import VGGFeatures
from geomtx.metrics import LPIPS
from geomtx.metrics.image import TAPS, WIDTHS


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("lpips")
    torch.save(VGGFeatures(16, TAPS).state_dict(), folder / "vgg16.pth")
    linear = {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1) for i, width in enumerate(WIDTHS)}
    torch.save(linear, folder / "linear.pth")
    return folder / "vgg16.pth", folder / "linear.pth"


def test_it_is_the_sum_written_out(files):
    measure, a, b = LPIPS(*files), torch.rand(2, 3, 16, 20), torch.rand(2, 3, 16, 20)
    linear = torch.load(files[1])
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    total = torch.zeros(2)
    maps = (measure.features((2 * x - 1 - shift) / scale) for x in (a, b))
    for index, (f, g) in enumerate(zip(*maps, strict=True)):
        f, g = f / f.square().sum(1, keepdim=True).sqrt(), g / g.square().sum(1, keepdim=True).sqrt()
        total += torch.nn.functional.conv2d((f - g) ** 2, linear[f"lin{index}.model.1.weight"]).mean((1, 2, 3))
    torch.testing.assert_close(measure(a, b), total)


def test_equal_pictures_differ_by_nothing(files):
    measure, a, b = LPIPS(*files), torch.rand(2, 3, 3, 16, 16), torch.rand(2, 3, 3, 16, 16)
    assert (measure(a, a) == 0).all()
    torch.testing.assert_close(measure(a, b)[1, 2], measure(a[1, 2], b[1, 2]))
    torch.testing.assert_close(measure(a, b), measure(b, a))
    a.requires_grad_()
    measure(a, b).sum().backward()
    assert a.grad.isfinite().all()


def test_errors(files, tmp_path: Path):
    torch.save({"lin0.model.1.weight": torch.rand(1, 3, 1, 1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"lin0.model.1.weight must have shape \(1, 64, 1, 1\), got \(1, 3, 1, 1\)$"):
        LPIPS(files[0], tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"must hold LPIPS's weights of channels, got no lin0.model.1.weight$"):
        LPIPS(files[0], files[0])
    with pytest.raises(FileNotFoundError, match=r"^weights must be a file"):
        LPIPS(tmp_path / "none.pth", files[1])
