import math
import sys

import pytest
import torch
from torch import Tensor

from geomtx.metrics import nearest_points, pointcloud, thin_points
from geomtx.metrics.pointcloud import pairs_within

DTYPE = torch.float64


def by_brute_force(source: Tensor, target: Tensor) -> Tensor:
    return (source[:, None] - target).norm(dim=-1).min(1).values


def sphere(count: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(count, 3, dtype=DTYPE), dim=-1)


CLOUDS = {
    "same region": (torch.randn(700, 3, dtype=DTYPE), torch.randn(900, 3, dtype=DTYPE)),
    "far apart": (torch.randn(300, 3, dtype=DTYPE) + 50, torch.randn(513, 3, dtype=DTYPE)),
    "surfaces": (sphere(700) * 1.01, sphere(700)),
    "one point to many": (torch.randn(1, 3, dtype=DTYPE), torch.randn(700, 3, dtype=DTYPE)),
    "many to one point": (torch.randn(700, 3, dtype=DTYPE), torch.randn(1, 3, dtype=DTYPE)),
    "one place": (torch.zeros(200, 3, dtype=DTYPE), torch.ones(200, 3, dtype=DTYPE)),
    "outliers": (torch.randn(300, 3, dtype=DTYPE), torch.randn(300, 3, dtype=DTYPE).pow(9)),
    "a lattice": (torch.randint(0, 4, (300, 3)).to(DTYPE), torch.randint(0, 4, (300, 3)).to(DTYPE)),
}


@pytest.fixture
def without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.spatial", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)


@pytest.mark.parametrize("name", CLOUDS)
def test_same_as_by_brute_force(name):
    source, target = CLOUDS[name]
    distances, indices = nearest_points(source, target)
    torch.testing.assert_close(distances, by_brute_force(source, target))
    torch.testing.assert_close((source - target[indices]).norm(dim=-1), distances)


@pytest.mark.usefixtures("without_scipy")
@pytest.mark.parametrize("name", CLOUDS)
def test_the_same_distances_without_scipy(name, monkeypatch):
    monkeypatch.setattr(pointcloud, "_PAIRS_AT_ONCE", 1000)
    source, target = CLOUDS[name]
    distances, indices = nearest_points(source, target)
    torch.testing.assert_close(distances, by_brute_force(source, target))
    torch.testing.assert_close((source - target[indices]).norm(dim=-1), distances)


@pytest.mark.usefixtures("without_scipy")
def test_large_clouds_need_scipy(monkeypatch):
    monkeypatch.setattr(pointcloud, "_MOST_PAIRS", 11)
    with pytest.raises(
        ImportError, match=r"^nearest points of large clouds need scipy, .*: pip install geomtx\[metrics\]$"
    ):
        nearest_points(torch.zeros(3, 3), torch.zeros(4, 3))


def test_float32_far_from_the_origin_keeps_small_distances():
    target = sphere(2000).float() + 1000
    source = target[torch.randperm(2000)]
    source[:, 0] += 2**-12
    distances, _ = nearest_points(source, target)
    torch.testing.assert_close(distances, torch.full((2000,), 2.0**-12))
    assert nearest_points(source.bfloat16(), target.bfloat16())[0].dtype == torch.float32


def test_of_nothing_to_something():
    distances, indices = nearest_points(torch.zeros(0, 3), torch.zeros(4, 3))
    assert distances.shape == indices.shape == (0,)


@pytest.mark.parametrize("radius", [0.05, 0.5, 10.0])
def test_pairs_by_brute_force(radius):
    points = torch.rand(333, 3, dtype=DTYPE)
    close = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist") <= radius
    expected = close.triu(diagonal=1).nonzero().mT
    assert torch.equal(pairs_within(points, radius), expected)
    assert expected.shape[1] > 0


def test_pairs_of_points_in_one_place():
    assert pairs_within(torch.zeros(3, 3), 0.0).tolist() == [[0, 0, 1], [1, 2, 2]]
    assert pairs_within(torch.zeros(0, 3), 1.0).shape == (2, 0)


def test_thinning_one_by_one():
    points, spacing = torch.rand(400, 3, dtype=DTYPE), 0.12
    order = torch.randperm(400, generator=torch.Generator().manual_seed(3)).argsort()
    kept: list[int] = []
    for index in order.tolist():
        if all((points[index] - points[other]).norm() > spacing for other in kept):
            kept.append(index)
    got = thin_points(points, spacing, generator=torch.Generator().manual_seed(3))
    assert got.tolist() == sorted(kept)
    assert 50 < len(kept) < 350


@pytest.mark.usefixtures("unchecked")
def test_what_is_refused():
    points = torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"^source must have shape \(N, 3\), got \(4, 2\)$"):
        nearest_points(points[:, :2], points)
    with pytest.raises(ValueError, match=r"^target must hold at least 1 point, got \(0, 3\)$"):
        nearest_points(points, points[:0])
    with pytest.raises(ValueError, match=r"^target must be finite, got NaN or inf$"):
        nearest_points(points, points / 0)
    with pytest.raises(ValueError, match=r"^points must be floating point, got torch.int64$"):
        pairs_within(points.long(), 1.0)
    with pytest.raises(ValueError, match=r"^spacing must be positive, got nan$"):
        thin_points(points, math.nan)
