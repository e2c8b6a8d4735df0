import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from geomtx.tracking import build_pyramid, correlate
from reference import bilinear


def correlate_by_formula(pyramid: list[Tensor], targets: Tensor, coords: Tensor, radius: int) -> Tensor:
    """The volume of all locations, sampled with a window a level."""
    out = []
    side = 2 * radius + 1
    for level, maps in enumerate(pyramid):
        volume = torch.einsum("ntc,nchw->nthw", targets, maps) / math.sqrt(maps.shape[1])
        height, width = maps.shape[-2:]
        window = torch.tensor([(a - radius, b - radius) for a in range(side) for b in range(side)]).double()
        around = coords[:, :, None] / 2**level + window
        grid = around * 2 / torch.tensor([max(width - 1, 1), max(height - 1, 1)]) - 1
        sampled = F.grid_sample(
            volume.flatten(0, 1)[:, None], grid.flatten(0, 1)[:, None], padding_mode="zeros", align_corners=True
        )
        out.append(sampled.reshape(*targets.shape[:2], side * side))
    return torch.cat(out, dim=-1)


def draw(map_hw: tuple[int, int], num_levels: int) -> tuple[list[Tensor], Tensor, Tensor]:
    pyramid = build_pyramid(torch.randn(2, 6, *map_hw, dtype=torch.float64), num_levels)
    targets = torch.randn(2, 9, 6, dtype=torch.float64)
    inside = torch.rand(2, 9, 2, dtype=torch.float64) * torch.tensor([map_hw[1] - 1, map_hw[0] - 1])
    inside[:, 6:] = torch.randn(2, 3, 2).double() * 3 * max(map_hw)  # far outside
    return pyramid, targets, inside


@pytest.mark.parametrize(
    ("map_hw", "num_levels"), [((16, 20), 3), ((9, 13), 2), ((8, 8), 4), ((4, 19), 3), ((1, 1), 1), ((64, 64), 7)]
)
@pytest.mark.parametrize("radius", [0, 1, 4])
def test_equals_sampling_the_full_volume(map_hw, num_levels, radius):
    """Down to levels of a single pixel, with windows that reach outside."""
    pyramid, targets, coords = draw(map_hw, num_levels)
    ours = correlate(pyramid, targets, coords, radius=radius)
    torch.testing.assert_close(ours, correlate_by_formula(pyramid, targets, coords, radius), rtol=0, atol=1e-12)


def test_entries_of_a_window_number_by_number():
    pyramid, targets, coords = draw((8, 6), 2)
    ours = correlate(pyramid, targets, coords, radius=2).unflatten(-1, (2, 5, 5))
    for t in range(9):
        for level in range(2):
            for a in range(5):
                for b in range(5):
                    x, y = (coords[1, t] / 2**level).tolist()
                    feature = bilinear(pyramid[level][1], x + a - 2, y + b - 2)
                    expected = (feature @ targets[1, t]) / math.sqrt(6)
                    torch.testing.assert_close(ours[1, t, level, a, b], expected, rtol=0, atol=1e-12)


def test_a_level_of_one_pixel_gives_one_value():
    pyramid, targets, coords = draw((8, 8), 4)
    assert pyramid[3].shape[-2:] == (1, 1)
    last = correlate(pyramid, targets, coords, radius=2)[..., -25:]
    expected = torch.einsum("ntc,nc->nt", targets, pyramid[3][..., 0, 0]) / math.sqrt(6)
    torch.testing.assert_close(last, expected[..., None].expand(-1, -1, 25), rtol=0, atol=1e-12)


def test_gradients_equal_those_of_the_full_volume():
    pyramid, targets, coords = draw((16, 20), 3)
    inputs = [*pyramid, targets, coords]
    for x in inputs:
        x.requires_grad_()
    weights = torch.randn(2, 9, 3 * 9, dtype=torch.float64)
    outputs = correlate(pyramid, targets, coords, radius=1), correlate_by_formula(pyramid, targets, coords, 1)
    results = [torch.autograd.grad((out * weights).sum(), inputs) for out in outputs]
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, rtol=0, atol=1e-10)


def test_pyramid_averages_and_drops_an_odd_last_row_or_column():
    features = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    levels = build_pyramid(features, 3)
    assert levels[0] is features
    assert [tuple(level.shape[-2:]) for level in levels] == [(9, 7), (4, 3), (2, 1)]
    for finer, coarser in itertools.pairwise(levels):
        height, width = coarser.shape[-2:]
        for row in range(height):
            for column in range(width):
                mean = finer[..., 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean(dim=(-1, -2))
                torch.testing.assert_close(coarser[..., row, column], mean, rtol=0, atol=1e-14)


@pytest.mark.parametrize("map_hw", [(3, 9), (9, 3)])
def test_maps_too_small_for_the_levels(map_hw):
    with pytest.raises(
        ValueError,
        match=rf"^features must have at least 4 pixels a side for 3 levels, got \({map_hw[0]}, {map_hw[1]}\); ",
    ):
        build_pyramid(torch.zeros(1, 2, *map_hw), 3)
    assert len(build_pyramid(torch.zeros(1, 2, 4, 4), 3)) == 3
