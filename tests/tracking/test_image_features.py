import pytest
import torch

from geomtx.tracking import ImageFeatures
from reference import randomize, without_gradient


@pytest.mark.parametrize("stride", [2, 4, 8])
def test_shape_and_gradients(stride):
    model = randomize(ImageFeatures(12, width=8, stride=stride))
    maps = model(torch.rand(2, 3, 3, 16, 24))
    assert maps.shape == (2, 3, 12, 16 // stride, 24 // stride)
    (maps * torch.randn_like(maps)).sum().backward()
    assert without_gradient(model) == []


def test_every_view_by_itself():
    model, video = ImageFeatures(8, width=8).double(), torch.rand(2, 3, 3, 16, 16, dtype=torch.float64)
    alone = torch.stack([torch.cat([model(view[None, None])[0] for view in scene]) for scene in video])
    torch.testing.assert_close(model(video), alone, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("unchecked")
def test_errors():
    with pytest.raises(ValueError, match=r"^stride must be one of 2, 4, 8, got 3$"):
        ImageFeatures(8, stride=3)
    with pytest.raises(ValueError, match=r"^width must "):
        ImageFeatures(8, width=6)
    with pytest.raises(ValueError, match=r"^sides of video must "):
        ImageFeatures(8, width=8)(torch.rand(1, 1, 3, 16, 18))
    with pytest.raises(ValueError, match=r"^video must "):
        ImageFeatures(8, width=8)(torch.rand(3, 16, 16))
