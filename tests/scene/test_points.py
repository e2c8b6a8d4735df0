from __future__ import annotations

import pytest
import torch

from geomtx.scene.points import PointCloud, select_points


def select(confidence: torch.Tensor, **options: object) -> PointCloud:
    num_views, height, width = confidence.shape
    points = torch.arange(confidence.numel() * 3.0).view(num_views, height, width, 3)
    images = torch.arange(confidence.numel() * 3).byte().view(num_views, height, width, 3).movedim(-1, 1)
    options.setdefault("valid", torch.ones_like(confidence, dtype=torch.bool))
    return select_points(points, confidence, images, **options)  # type: ignore[arg-type]


def test_percentile_is_over_all_valid_pixels_of_all_views() -> None:
    confidence = torch.arange(100.0).view(2, 5, 10)
    assert select(confidence, percentile=20).confidence.min() == 19  # the value at the percentile is kept
    assert len(select(confidence, percentile=0).xyz) == 100
    assert len(select(confidence, percentile=100).xyz) == 1
    valid = confidence >= 50
    assert select(confidence, percentile=50, valid=valid).confidence.min() == 74


def test_ties_are_kept() -> None:
    assert len(select(torch.full((2, 3, 4), 1.5), percentile=90).xyz) == 24


def test_colour_view_and_position_belong_together() -> None:
    cloud = select(torch.arange(24.0).view(2, 3, 4), percentile=50)
    index = cloud.confidence.long()
    assert torch.equal(cloud.xyz[:, 0].long(), 3 * index)
    assert torch.equal(cloud.rgb[:, 2].long(), 3 * index + 2)
    assert torch.equal(cloud.view, index // 12)


def test_a_sample_is_the_same_every_time_and_spread_over_the_views() -> None:
    confidence = torch.rand(4, 20, 20)
    first, second = (select(confidence, percentile=0, max_points=200) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert len(first.xyz) == len(first.xyz.unique(dim=0)) == 200
    assert torch.bincount(first.view).min() > 25
    assert len(select(confidence, percentile=0, max_points=5000).xyz) == 1600


def test_nothing_finite_is_an_error_that_names_the_cause() -> None:
    with pytest.raises(ValueError, match="no finite points: the predictions are not finite"):
        select(torch.full((1, 2, 2), torch.nan))
    with pytest.raises(ValueError, match="no points: masks and padding leave no pixel"):
        select(torch.ones(1, 2, 2), valid=torch.zeros(1, 2, 2, dtype=torch.bool))


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"^percentile must be in 0 … 100, got 120$"):
        select(torch.ones(1, 2, 2), percentile=120)
    with pytest.raises(ValueError, match="max_points must be at least 1, got 0"):
        select(torch.ones(1, 2, 2), max_points=0)
