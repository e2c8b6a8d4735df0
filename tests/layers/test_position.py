import math

import pytest
import torch
from torch.nn import functional as F

from geomtx.layers import aspect_grid, fourier_features, grid_signal, sincos
from geomtx.layers.position import sample_grid_signal


def test_sincos_number_by_number():
    positions = torch.tensor([0.0, 0.7, -3.0, 25.0], dtype=torch.float64)
    signal = sincos(positions, 6, base=100.0)
    for row, position in zip(signal.tolist(), positions.tolist(), strict=True):
        angles = [position * 100.0 ** (-i / 3) for i in range(3)]
        assert row == pytest.approx([*map(math.sin, angles), *map(math.cos, angles)], abs=1e-14)


def test_grid_signal_tells_x_then_y():
    x, y = torch.randn(5, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    signal = grid_signal(x, y, 8, base=100.0)
    assert signal.shape == (8, 3, 5)
    for row in range(3):
        for column in range(5):
            expected = torch.cat([sincos(x[column], 4, base=100.0), sincos(y[row], 4, base=100.0)])
            assert torch.equal(signal[:, row, column], expected)


@pytest.mark.parametrize("grid_hw", [(7, 11), (1, 5), (4, 1), (1, 1), (30, 30)])
def test_sample_grid_signal_equals_sampling_the_table(grid_hw):
    """Bilinear, corners on corners, border padding; positions inside, on the border and far outside."""
    height, width = grid_hw
    inside = torch.rand(40, 2, dtype=torch.float64) * torch.tensor([width - 1, height - 1])
    outside = torch.randn(40, 2, dtype=torch.float64) * 3 * max(grid_hw)
    corners = torch.tensor([[0, 0], [width - 1, 0], [width - 1, height - 1]], dtype=torch.float64)
    coords = torch.cat([inside, outside, corners, inside.round()])
    axes = (torch.arange(size, dtype=torch.float64) for size in (width, height))
    table = grid_signal(*axes, 12, base=10000.0)
    steps = torch.tensor([max(width - 1, 1), max(height - 1, 1)])
    grid = (coords * 2 / steps - 1)[None, None]
    sampled = F.grid_sample(table[None], grid, mode="bilinear", padding_mode="border", align_corners=True)[0, :, 0].T
    ours = sample_grid_signal(coords, grid_hw, 12, base=10000.0)
    torch.testing.assert_close(ours, sampled, rtol=0, atol=1e-12)


def test_sample_grid_signal_keeps_leading_axes():
    coords = torch.rand(2, 3, 2) * 5
    whole = sample_grid_signal(coords, (6, 6), 8, base=100.0)
    assert whole.shape == (2, 3, 8)
    torch.testing.assert_close(whole[1, 2], sample_grid_signal(coords[1, 2], (6, 6), 8, base=100.0))


@pytest.mark.parametrize("image_hw", [(56, 84), (84, 56), (70, 70), (28, 518)])
def test_aspect_grid_equals_a_linspace(image_hw):
    height, width = image_hw
    map_hw = (height // 7, width // 14)
    columns, rows = aspect_grid(map_hw, image_hw, torch.empty(0, dtype=torch.float64))
    aspect = width / height
    half_width, half_height = aspect / math.hypot(aspect, 1), 1 / math.hypot(aspect, 1)
    for ours, size, half in ((columns, map_hw[1], half_width), (rows, map_hw[0], half_height)):
        end = half * (size - 1) / size
        torch.testing.assert_close(ours, torch.linspace(-end, end, size, dtype=torch.float64), rtol=0, atol=1e-14)
    assert math.hypot(half_width, half_height) == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_aspect_grid_is_float32_or_better(dtype):
    columns, rows = aspect_grid((3, 4), (6, 8), torch.empty(0, dtype=dtype))
    assert columns.dtype == rows.dtype == torch.promote_types(dtype, torch.float32)


def test_fourier_features_number_by_number():
    coords = torch.tensor([[0.3, -1.7], [0.0, 2.0]], dtype=torch.float64)
    features = fourier_features(coords, 6)
    assert features.shape == (2, 12)
    for row, (x, y) in zip(features.tolist(), coords.tolist(), strict=True):
        expected = []
        for value in (x, y):
            for k in (0, 2, 4):
                expected += [math.sin(value * k * 1000 / 6), math.cos(value * k * 1000 / 6)]
        assert row == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        (lambda: sincos(torch.zeros(2), 3, base=100.0), "dim must be a multiple of 2, got 3"),
        (lambda: fourier_features(torch.zeros(1, 2), 5), "dim must be a multiple of 2, got 5"),
        (lambda: grid_signal(torch.zeros(2), torch.zeros(3), 6, base=100.0), "dim must be a multiple of 4, got 6"),
        (lambda: sample_grid_signal(torch.zeros(1, 2), (3, 3), 6, base=100.0), "dim must be a multiple of 4, got 6"),
    ],
)
def test_widths_that_do_not_split(call, rule):
    with pytest.raises(ValueError, match=f"^{rule}$"):
        call()
