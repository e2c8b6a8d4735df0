import pytest
import torch

from geomtx.tracking import sample_map, sample_views
from reference import bilinear


@pytest.mark.parametrize("map_hw", [(5, 7), (1, 4), (6, 1), (1, 1)])
@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_equals_bilinear_interpolation_number_by_number(map_hw, padding_mode):
    height, width = map_hw
    maps = torch.randn(2, 3, height, width, dtype=torch.float64)
    coords = torch.rand(2, 6, 2, 2, dtype=torch.float64) * torch.tensor([width + 4, height + 4]) - 2
    coords[0, 0, 0] = torch.tensor([width - 1, height - 1])  # on a pixel
    out = sample_map(maps, coords, padding_mode=padding_mode)
    assert out.shape == (2, 3, 6, 2)
    for n in range(2):
        for p in range(6):
            for q in range(2):
                x, y = coords[n, p, q].tolist()
                if padding_mode == "border":
                    x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
                torch.testing.assert_close(out[n, :, p, q], bilinear(maps[n], x, y), rtol=0, atol=1e-12)


def test_far_outside():
    maps, coords = torch.ones(1, 2, 4, 5), torch.tensor([[[[-50.0, 2.0]], [[2.0, 300.0]]]])
    assert not sample_map(maps, coords, padding_mode="zeros").any()
    assert torch.equal(sample_map(maps, coords, padding_mode="border"), torch.ones(1, 2, 2, 1))


def test_gradcheck():
    maps = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    coords = (torch.rand(1, 3, 1, 2, dtype=torch.float64) * 2.8 + 0.1).requires_grad_()
    torch.autograd.gradcheck(lambda m, c: sample_map(m, c, padding_mode="border"), (maps, coords))


@pytest.mark.parametrize("map_hw", [(5, 7), (1, 4), (6, 1), (1, 1)])
def test_each_point_in_its_own_view_equals_one_view_at_a_time(map_hw):
    height, width = map_hw
    maps, view = torch.randn(2, 3, 4, height, width, dtype=torch.float64), torch.randint(3, (2, 9))
    coords = torch.rand(2, 9, 2, dtype=torch.float64) * torch.tensor([width + 4, height + 4]) - 2
    coords[0, 0] = torch.tensor([width - 1, height - 1])  # on a pixel
    coords[0, 1] = torch.tensor([0, height - 1])
    for dtype, atol in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        ours = sample_views(maps.to(dtype), view, coords.to(dtype))
        for b in range(2):
            every = sample_map(maps[b], coords[b, :, None].expand(3, -1, -1, -1))[..., 0]
            reference = every[view[b], :, torch.arange(9)]
            torch.testing.assert_close(ours[b], reference.to(dtype), rtol=0, atol=atol)


def test_nowhere_is_nothing():
    """NaN must become no index."""
    nowhere = torch.tensor([[[torch.nan, 1.0], [torch.inf, -torch.inf]]])
    out = sample_views(torch.ones(1, 1, 2, 4, 5), torch.zeros(1, 2, dtype=torch.long), nowhere)
    assert out[0, 0].isnan().all()
    assert torch.equal(out[0, 1], torch.ones(2))


def test_gradcheck_in_views():
    maps, view = torch.randn(1, 2, 2, 4, 5, dtype=torch.float64, requires_grad=True), torch.tensor([[0, 1, 1]])
    coords = (torch.rand(1, 3, 2, dtype=torch.float64) * 2.8 + 0.1).requires_grad_()
    torch.autograd.gradcheck(lambda m, c: sample_views(m, view, c), (maps, coords))
