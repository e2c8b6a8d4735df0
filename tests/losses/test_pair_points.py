import dataclasses

import pytest
import torch

from geomtx.losses import PairPointSettings, pair_confidence_loss, pair_point_errors
from geomtx.losses.pair_points import cloud_scale, fit_cloud_scale, shorten

B = 3


@pytest.fixture
def clouds():
    """Predicted points, true points and masks of two views of different sizes."""
    sizes = ((4, 5), (3, 6))
    predicted, truth = ([torch.randn(B, *size, 3, dtype=torch.float64) + 2 for size in sizes] for _ in range(2))
    valid = [torch.rand(B, *size) < 0.8 for size in sizes]
    return tuple(predicted), tuple(truth), tuple(valid)


SETTINGS = {
    **{norm: PairPointSettings(norm) for norm in ("avg_dis", "avg_log1p", "avg_warp-log1p", "median_dis", "sqrt_dis")},
    "none": PairPointSettings(None),
    "shift": PairPointSettings(shift=True),
    "scale": PairPointSettings(scale=True),
    "both": PairPointSettings(shift=True, scale=True, true_scale=True),
    "log": PairPointSettings(log="after"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_points_that_are_not_valid_count_for_nothing(clouds, name):
    predicted, truth, valid = clouds
    expected = pair_point_errors(predicted, truth, valid, SETTINGS[name]).means()
    leaves = [
        torch.where(mask[..., None], each, torch.nan).requires_grad_()
        for each, mask in zip(predicted, valid, strict=True)
    ]
    hidden = tuple(torch.where(mask[..., None], each, torch.inf) for each, mask in zip(truth, valid, strict=True))
    found = pair_point_errors(tuple(leaves), hidden, valid, SETTINGS[name]).means()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    sum(found).backward()
    for leaf, mask in zip(leaves, valid, strict=True):
        assert leaf.grad.isfinite().all()
        assert not leaf.grad[~mask].any()


@pytest.mark.parametrize("norm", ["avg_dis", "median_dis", "sqrt_dis"])
def test_the_scale_of_either_cloud_is_of_no_account(clouds, norm):
    predicted, truth, valid = clouds
    settings = PairPointSettings(norm)
    expected = pair_point_errors(predicted, truth, valid, settings).means()
    larger = tuple(7 * each for each in predicted), tuple(0.3 * each for each in truth)
    for one, other in zip(pair_point_errors(*larger, valid, settings).means(), expected, strict=True):
        torch.testing.assert_close(one, other)
    perfect = pair_point_errors(tuple(4 * each for each in truth), truth, valid, settings)
    assert max(perfect.means()) < 1e-12


def test_depth_offset_and_scale_are_of_no_account_where_asked(clouds):
    _, truth, valid = clouds
    moved = tuple(5 * each + torch.tensor([0.0, 0.0, 9.0]) for each in truth)
    whole = (torch.ones_like(valid[0]), torch.ones_like(valid[1]))
    settings = PairPointSettings(None, shift=True, scale=True)
    assert max(pair_point_errors(moved, truth, whole, settings).means()) < 1e-12
    assert min(pair_point_errors(moved, truth, whole, dataclasses.replace(settings, shift=False)).means()) > 1e-2


def test_scenes_in_metres_keep_the_scale_of_the_truth(clouds):
    _, truth, valid = clouds
    larger = tuple(2 * each for each in truth)
    metric = torch.tensor([True, False, False])
    errors = pair_point_errors(larger, truth, valid, metric=metric)
    factor = cloud_scale(
        torch.cat([each.flatten(1, 2) for each in truth], 1),
        torch.cat([each.flatten(1) for each in valid], 1),
        "avg_dis",
    )
    torch.testing.assert_close(errors.first[0][valid[0][0]], (truth[0][0].norm(dim=-1) / factor[0])[valid[0][0]])
    assert errors.first[1:][valid[0][1:]].max() < 1e-12
    far = max(each[0][mask[0]].norm(dim=-1).max() for each, mask in zip(truth, valid, strict=True))
    for limit, is_metric in ((float(far), False), (float(far) * 1.001, True)):
        settings = PairPointSettings(max_metric_scale=limit)
        errors = pair_point_errors(larger, truth, valid, settings, metric=metric)
        assert (errors.first[0][valid[0][0]].max() > 0.1) == is_metric


def test_the_sky_teaches_confidence_alone(clouds):
    predicted, truth, valid = clouds
    sky = tuple(~mask for mask in valid)
    confidence = tuple((1 + torch.rand(mask.shape, dtype=torch.float64)).requires_grad_() for mask in valid)
    leaves = tuple(each.clone().requires_grad_() for each in predicted)
    errors = pair_point_errors(leaves, truth, valid, sky=sky)
    assert (errors.first[sky[0]] == 2).all()
    assert errors.masks[1].all()
    pair_confidence_loss(errors, confidence).backward()
    assert not leaves[0].grad[sky[0]].any()
    share = 1 / sky[0].numel()
    torch.testing.assert_close(confidence[0].grad[sky[0]], (2 - 0.2 / confidence[0][sky[0]]).detach() * share)


def test_factors_that_are_known():
    points = torch.tensor([[[3.0, 4.0, 0.0], [0.0, 0.0, 1.0], [0.0, 9.0, 0.0], [1.0, 1.0, 1.0]]]).double()
    mask = torch.tensor([[True, True, True, False]])
    expected = {"avg_dis": 5.0, "median_dis": 5.0, "sqrt_dis": ((5**0.5 + 1 + 3) / 3) ** 2}
    for norm, value in expected.items():
        assert cloud_scale(points, mask, norm) == pytest.approx(value)
    assert cloud_scale(points, mask, "avg_log1p") == pytest.approx(torch.tensor([6.0, 2.0, 10.0]).log().mean().item())
    torch.testing.assert_close(shorten(points).norm(dim=-1), points.norm(dim=-1).log1p())


@pytest.mark.parametrize("kind", ["avg", "median", "weiszfeld"])
def test_the_factor_between_clouds(kind):
    truth = torch.randn(2, 50, 3, dtype=torch.float64)
    found, mask = truth * torch.tensor([2.0, 0.5])[:, None, None], torch.rand(2, 50) < 0.7
    found[~mask], truth[~mask] = 100.0, torch.nan
    torch.testing.assert_close(fit_cloud_scale(found, truth, mask, kind), torch.tensor([2.0, 0.5]).double())
    assert fit_cloud_scale(found, truth, torch.zeros_like(mask), kind).tolist() == [1e-3, 1e-3]


def test_wrong_inputs(clouds):
    predicted, truth, valid = clouds
    with pytest.raises(ValueError, match=r"^norm must be one of None, 'avg_dis', .*, got 'max'$"):
        pair_point_errors(predicted, truth, valid, PairPointSettings("max"))
    with pytest.raises(ValueError, match=r"^log must be one of None, 'before', 'after', got 'never'$"):
        pair_point_errors(predicted, truth, valid, PairPointSettings(log="never"))
