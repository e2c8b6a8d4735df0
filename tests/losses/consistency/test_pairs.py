import pytest
import torch

from geometry.random_cameras import random_intrinsics, random_rigid
from geomtx import Cameras
from geomtx.losses import choose_cameras, draw_pairs
from geomtx.losses.consistency.warp import mean_over_pairs


@pytest.mark.parametrize(
    ("num_views", "num_sources", "expected"), [(5, 2, 2), (5, 4, 4), (3, 7, 2), (2, 2, 1), (1, 2, 0)]
)
def test_every_view_has_others_that_differ(num_views, num_sources, expected):
    pairs = draw_pairs(num_views, num_sources)
    assert pairs.sources.shape == pairs.frozen.shape == (num_views, expected)
    for view, sources in enumerate(pairs.sources.tolist()):
        assert len(set(sources) - {view}) == expected
        assert set(sources) <= set(range(num_views))


def test_all_others_are_drawn_equally_often():
    generator = torch.Generator().manual_seed(3)
    drawn = torch.stack([draw_pairs(4, 1, generator=generator).sources[:, 0] for _ in range(900)])
    for view in range(4):
        counts = drawn[:, view].bincount(minlength=4)
        assert counts[view] == 0
        assert all(abs(count - 300) < 60 for i, count in enumerate(counts.tolist()) if i != view)


def test_the_generator_decides():
    first, again = (draw_pairs(6, generator=torch.Generator().manual_seed(8)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.sources, draw_pairs(6, generator=torch.Generator().manual_seed(9)).sources)


def test_share_of_frozen_pairs():
    assert not draw_pairs(9, 8, freeze=0.0).frozen.any()
    assert draw_pairs(9, 8, freeze=1.0).frozen.all()
    assert 0.15 < draw_pairs(40, 39, freeze=0.25).frozen.double().mean() < 0.35


def test_choice_of_cameras():
    predicted, true = (Cameras(random_rigid(1, 2), random_intrinsics(1, 2)) for _ in range(2))
    assert choose_cameras(predicted, true) == predicted
    assert choose_cameras(predicted, true, geometry="gt") == true
    assert choose_cameras(predicted, true, geometry="mixed") == (predicted.cam_from_world, true.intrinsics)


def test_mean_over_pairs_with_enough_errors():
    errors = torch.tensor([[1.0, 2.0, 6.0], [4.0, 8.0, float("nan")], [5.0, float("inf"), 1.0]]).requires_grad_()
    valid = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    mean = mean_over_pairs(errors, valid, 2)
    mean.backward()
    assert mean == (3 + 6) / 2
    assert errors.grad.flatten().tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 4, 1 / 4, 0, 0, 0, 0])
    nothing = mean_over_pairs(errors, valid, 4)
    assert nothing == 0
    assert nothing.requires_grad


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"^num_views must be positive, got 0$"):
        draw_pairs(0)
    with pytest.raises(ValueError, match=r"^num_sources must be positive, got 0$"):
        draw_pairs(3, 0)
    with pytest.raises(ValueError, match=r"^freeze must be a probability, got 1.5$"):
        draw_pairs(3, freeze=1.5)


@pytest.mark.usefixtures("unchecked")
def test_wrong_geometry():
    cameras = Cameras(random_rigid(1, 2), random_intrinsics(1, 2))
    with pytest.raises(ValueError, match=r"^geometry must be one of 'pred', 'mixed', 'gt', got 'true'$"):
        choose_cameras(cameras, cameras, geometry="true")
