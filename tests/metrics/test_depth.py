import math

import pytest
import torch

from geomtx.losses.reduce import masked_median
from geomtx.metrics import depth_scores


def random_depth(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64) * 5 + 0.2


@pytest.mark.parametrize("align", ["median", "least_squares"])
def test_a_scale_of_each_scene_is_no_error(align):
    true, scale = random_depth(2, 3, 5, 7), torch.tensor([0.3, 40.0]).double()
    scores = depth_scores(true / scale[:, None, None, None], true, align=align)
    torch.testing.assert_close(scores.scale, scale)
    for error in (scores.abs_rel, scores.rmse):
        torch.testing.assert_close(error, torch.zeros(2).double(), rtol=0, atol=1e-12)
    for share in (scores.delta_1, scores.delta_2, scores.delta_3, scores.inlier_103):
        assert share.tolist() == [1, 1]


def test_formulas_written_out():
    predicted, true, mask = random_depth(3, 5, 7), random_depth(3, 5, 7), torch.rand(3, 5, 7) < 0.7
    scores = depth_scores(predicted, true, mask, align="none")
    d, g = predicted[mask], true[mask]
    torch.testing.assert_close(scores.abs_rel, ((d - g).abs() / g).mean())
    torch.testing.assert_close(scores.rmse, (d - g).square().mean().sqrt())
    ratio = torch.maximum(d / g, g / d)
    for share, limit in zip(scores[2:6], (1.25, 1.5625, 1.953125, 1.03), strict=True):
        torch.testing.assert_close(share, (ratio < limit).double().mean())
    assert scores.scale == 1


def test_scales_written_out():
    predicted, true, mask = random_depth(3, 5, 7), random_depth(3, 5, 7), torch.rand(3, 5, 7) < 0.7
    d, g = predicted[mask], true[mask]
    median = depth_scores(predicted, true, mask).scale
    torch.testing.assert_close(median, g.quantile(0.5) / d.quantile(0.5))
    scale = depth_scores(predicted, true, mask, align="least_squares").scale
    errors = [((scale * factor) * d - g).square().sum() for factor in (0.999, 1.0, 1.001)]
    assert errors[1] < min(errors[0], errors[2])


def test_one_scale_for_all_views_of_a_scene():
    true = random_depth(2, 4, 4)
    scores = depth_scores(true * torch.tensor([1.0, 2.0])[:, None, None], true)
    assert scores.abs_rel > 0.1


def test_what_is_not_known_counts_for_nothing():
    predicted, true = random_depth(1, 4, 6), random_depth(1, 4, 6)
    mask = torch.rand(1, 4, 6) < 0.8
    expected = depth_scores(predicted, true, mask)
    predicted[~mask] = math.nan
    torch.testing.assert_close(depth_scores(predicted, true, mask), expected)
    for bad in (math.nan, math.inf, 0.0, -1.0):
        true[~mask] = bad
        torch.testing.assert_close(depth_scores(predicted, true), expected)
        torch.testing.assert_close(depth_scores(predicted, true, torch.ones_like(mask)), expected)


@pytest.mark.parametrize("align", ["median", "least_squares", "none"])
def test_a_scene_without_truth_is_nan(align):
    true = random_depth(2, 1, 3, 3)
    mask = torch.ones(2, 1, 3, 3, dtype=torch.bool)
    mask[1] = False
    for score in depth_scores(true, true, mask, align=align):
        assert score.isnan().tolist() == [False, True]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_prediction_that_is_not_finite_shows(bad):
    true = torch.ones(1, 1, 4).double()
    predicted = true.clone()
    predicted[..., 0] = bad
    scores = depth_scores(predicted, true)
    assert not scores.abs_rel.isfinite()
    assert not scores.rmse.isfinite()
    assert scores.delta_1 == 0.75
    assert scores.scale == 1


@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_depth_behind_the_camera_is_no_inlier(bad):
    true = torch.ones(1, 1, 4).double()
    predicted = true.clone()
    predicted[..., 0] = bad
    scores = depth_scores(predicted, true)
    assert (scores.delta_1, scores.delta_3, scores.inlier_103) == (0.75, 0.75, 0.75)
    assert scores.abs_rel == (1 - bad) / 4


ALIGNMENTS = ["median", "least_squares", "none"]


@pytest.mark.parametrize("align", ALIGNMENTS)
@pytest.mark.parametrize("factor", [-1.0, -0.3, 0.0])
def test_depth_that_is_nowhere_positive_is_no_depth(align, factor):
    """Whatever multiplies it: no factor turns a scene round."""
    true = random_depth(2, 3, 4, 5)
    predicted = true.clone()
    predicted[1] *= factor
    scores = depth_scores(predicted, true, align=align)
    for share in (scores.delta_1, scores.delta_2, scores.delta_3, scores.inlier_103):
        assert share.tolist() == [1, 0]
    assert not scores.abs_rel[1] < 0.9
    assert align == "none" or scores.scale[1].isnan()
    assert scores.scale[0] == pytest.approx(1)


@pytest.mark.parametrize("align", ["median", "least_squares"])
@pytest.mark.parametrize("bad", [-40.0, -1e-3, 0.0])
def test_alignment_is_by_positive_predictions(align, bad):
    """Also where most are not positive, so that their median is not, nor their product with the truth."""
    true = random_depth(1, 10, 10)
    predicted = true / 3
    predicted[:, :7] = bad
    scores = depth_scores(predicted, true, align=align)
    assert scores.scale == pytest.approx(3)
    assert scores.delta_1 == pytest.approx(0.3)
    assert scores.abs_rel >= 0.7 - 1e-9


def test_half_precision_in_float64_out():
    true = random_depth(1, 8, 8)
    scores = depth_scores(true.bfloat16(), true)
    assert scores.abs_rel.dtype == torch.float64
    assert 0 < scores.abs_rel < 2**-8


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_median_of_the_selected(count):
    values = torch.randn(3, 9).double()
    mask = torch.zeros(3, 9, dtype=torch.bool)
    for row in range(3):
        mask[row, torch.randperm(9)[:count]] = True
    expected = torch.stack([v[m].quantile(0.5) for v, m in zip(values, mask, strict=True)])
    values[~mask] = math.nan
    torch.testing.assert_close(masked_median(values, mask), expected)
    values[0, mask[0].int().argmax()] = math.nan
    assert masked_median(values, mask).isnan().tolist() == [True, False, False]
    assert masked_median(values, torch.zeros_like(mask)).isnan().all()
    assert masked_median(values[:, :0]).isnan().all()


@pytest.mark.usefixtures("unchecked")
def test_what_is_refused():
    depth = torch.ones(2, 4, 4)
    with pytest.raises(ValueError, match=r"^predicted must have shape \(\.\.\., S, H, W\), got \(4, 4\)$"):
        depth_scores(depth[0], depth[0])
    with pytest.raises(ValueError, match=r"^true must have shape \(2, 4, 4\), got \(2, 4, 3\)$"):
        depth_scores(depth, depth[..., :3])
    with pytest.raises(ValueError, match=r"^mask must have shape \(2, 4, 4\), got \(4, 4\)$"):
        depth_scores(depth, depth, torch.ones(4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"^mask must be bool, got torch.float32$"):
        depth_scores(depth, depth, depth)
    with pytest.raises(ValueError, match=r"^align must be one of 'median', 'least_squares', 'none', got 'mean'$"):
        depth_scores(depth, depth, align="mean")
