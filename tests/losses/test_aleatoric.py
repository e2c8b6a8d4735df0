import math

import pytest
import torch
from torch import Tensor

from geomtx import aleatoric_loss
from geomtx.losses import Outliers, quantile_filter

SHAPE = (2, 3, 5, 6)


def random_maps(channels: int | None, shape: tuple[int, ...] = SHAPE) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value, confidence, target, mask; the mask is neither empty nor full."""
    full = shape if channels is None else (*shape, channels)
    value, target = torch.randn(2, *full, dtype=torch.float64)
    confidence = 1 + torch.randn(shape, dtype=torch.float64).exp()
    return value, confidence, target, torch.rand(shape) > 0.4


def by_loops(
    value: Tensor, confidence: Tensor, target: Tensor, mask: Tensor, gamma: float, alpha: float
) -> list[float]:
    weighted, plain = [], []
    for index in mask.nonzero().tolist():
        difference = (value[tuple(index)] - target[tuple(index)]).flatten().tolist()
        error, c = math.sqrt(sum(d * d for d in difference)), confidence[tuple(index)].item()
        weighted.append(gamma * error * c - alpha * math.log(c))
        plain.append(error)
    return [sum(weighted) / len(weighted), sum(plain) / len(plain)]


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_by_loops(channels):
    maps = random_maps(channels)
    loss = aleatoric_loss(*maps, gamma=0.7, alpha=0.3)
    torch.testing.assert_close(list(map(float, loss)), by_loops(*maps, 0.7, 0.3))
    each = aleatoric_loss(*maps, gamma=0.7, alpha=0.3, reduction="none")
    for mean, per_pixel in zip(loss, each, strict=True):
        assert per_pixel.shape == SHAPE
        assert (per_pixel[~maps[3]] == 0).all()
        torch.testing.assert_close(per_pixel[maps[3]].mean(), mean)


def test_no_mask_is_a_full_mask():
    value, confidence, target, mask = random_maps(3)
    full = aleatoric_loss(value, confidence, target, torch.ones_like(mask))
    torch.testing.assert_close(aleatoric_loss(value, confidence, target), full)


@pytest.mark.parametrize("shape", [(7,), (4, 5), (2, 1, 3, 4, 5)])
def test_any_leading_axes(shape):
    maps = random_maps(3, shape)
    loss = aleatoric_loss(*maps)
    flat = [x.flatten(0, len(shape) - 1) for x in maps]
    torch.testing.assert_close(aleatoric_loss(*flat), loss)


def test_at_the_truth_only_confidence_is_left():
    value, confidence, _, mask = random_maps(3)
    value.requires_grad_()
    loss = aleatoric_loss(value, confidence, value.detach(), mask)
    assert loss.regression == 0
    torch.testing.assert_close(loss.confidence, -0.2 * confidence[mask].log().mean())
    (loss.confidence + loss.regression).backward()
    assert (value.grad == 0).all()


@pytest.mark.parametrize("channels", [None, 3])
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -1e30])
@pytest.mark.parametrize("options", [{}, {"outliers": Outliers.released()}])
def test_what_the_mask_hides_has_no_influence(channels, garbage, options):
    value, confidence, target, mask = random_maps(channels, (2, 40, 50))
    per_channel = mask if channels is None else mask[..., None]
    dirty = [
        torch.where(m, x, garbage).requires_grad_()
        for x, m in ((value, per_channel), (confidence, mask), (target, per_channel))
    ]
    loss, clean = aleatoric_loss(*dirty, mask, **options), aleatoric_loss(value, confidence, target, mask, **options)
    assert torch.equal(torch.stack(loss), torch.stack(clean))
    (loss.confidence + loss.regression).backward()
    for x in dirty:
        assert x.grad.isfinite().all()
        assert (x.grad[~mask] == 0).all()
        assert (x.grad[mask] != 0).any()
    assert all(x.isfinite().all() for x in aleatoric_loss(*dirty, mask, reduction="none", **options))


@pytest.mark.parametrize("quantile", [None, 0.98])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_an_empty_mask_gives_a_zero_with_a_graph(quantile, reduction):
    value, confidence = (torch.full((40, 50), float("nan"), requires_grad=True) for _ in range(2))
    mask = torch.zeros(40, 50, dtype=torch.bool)
    loss = aleatoric_loss(
        value, confidence, torch.zeros(40, 50), mask, outliers=Outliers(quantile), reduction=reduction
    )
    assert (torch.cat([x.flatten() for x in loss]) == 0).all()
    (loss.confidence + loss.regression).sum().backward()
    assert (value.grad == 0).all()
    assert (confidence.grad == 0).all()


@pytest.mark.parametrize("error", [0.001, 0.02, 0.15])
def test_the_best_confidence(error):
    """c = α / (γ·e): the gradient is zero there and points away from it on both sides."""
    best = 0.3 / (0.8 * error)
    confidence = torch.tensor([best / 2, best, 2 * best], dtype=torch.float64, requires_grad=True)
    value = torch.full((3,), error, dtype=torch.float64)
    aleatoric_loss(value, confidence, torch.zeros_like(value), gamma=0.8, alpha=0.3).confidence.backward()
    assert confidence.grad[0] < 0 < confidence.grad[2]
    assert confidence.grad[1].abs() < 1e-12


def over_confident_gradients(**options) -> list[float]:
    """Of value and confidence at c = 300, e = 5."""
    value = torch.tensor([5.0, 0.0], requires_grad=True)
    confidence = torch.tensor([300.0, 2.0], requires_grad=True)
    aleatoric_loss(value, confidence, torch.zeros(2), **options).confidence.backward()
    return [value.grad[0].item(), confidence.grad[0].item()]


def test_an_over_confident_error_is_unlearned():
    of_value, of_confidence = over_confident_gradients()
    assert of_value == pytest.approx(300 / 2)
    assert of_confidence == pytest.approx((5 - 0.2 / 300) / 2)


def test_it_is_not_with_the_published_clamp():
    assert over_confident_gradients(outliers=Outliers(clamp=100.0)) == [0, 0]


def test_targets_beyond_100_count_in_full():
    value, target = torch.zeros(2), torch.tensor([1000.0, 0.0])
    assert aleatoric_loss(value, torch.ones(2), target).regression == 500
    assert aleatoric_loss(value, torch.ones(2), target, outliers=Outliers(clamp=100.0)).regression == 50


def test_clamp_bounds_the_error_and_then_the_weighted_error():
    value, confidence = torch.tensor([150.0, 60.0, 1.0]), torch.tensor([1.0, 3.0, 3.0])
    loss = aleatoric_loss(value, confidence, torch.zeros(3), outliers=Outliers(clamp=100.0), reduction="none")
    torch.testing.assert_close(loss.regression, torch.tensor([100.0, 60.0, 1.0]))
    torch.testing.assert_close(loss.confidence, torch.tensor([100.0, 100.0, 3 - 0.2 * math.log(3)]))


def test_a_known_nan_is_not_hushed_up():
    value = torch.tensor([float("nan"), 1.0, float("inf")])
    loss = aleatoric_loss(value, torch.ones(3), torch.zeros(3), reduction="none")
    assert loss.regression.isfinite().tolist() == [False, True, False]
    assert aleatoric_loss(value, torch.ones(3), torch.zeros(3)).confidence.isnan()
    zeroed = aleatoric_loss(value, torch.ones(3), torch.zeros(3), outliers=Outliers(nan_to_zero=True), reduction="none")
    assert zeroed.regression.tolist() == zeroed.confidence.tolist() == [0, 1, 0]


@pytest.mark.parametrize("channels", [None, 3])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_nan_taken_for_zero_leaves_no_gradient(channels, bad):
    value, confidence, target, mask = random_maps(channels)
    mask[0, 0] = True
    value[0, 0, 0, 0] = bad
    value.requires_grad_(), confidence.requires_grad_()
    torch.stack(
        aleatoric_loss(value, confidence, target, mask, outliers=Outliers(clamp=100.0, nan_to_zero=True))
    ).sum().backward()
    assert value.grad.isfinite().all()
    assert confidence.grad.isfinite().all()
    assert (value.grad[0, 0, 0, 0] == 0).all()
    assert (value.grad[0, 0, 1:] != 0).all()


def test_a_nan_is_no_outlier_to_drop():
    value = torch.rand(3000)
    value[7] = float("nan")
    assert aleatoric_loss(value, torch.ones(3000), torch.zeros(3000), outliers=Outliers(0.9)).regression.isnan()


@pytest.mark.parametrize("channels", [None, 3])
def test_gradcheck(channels):
    value, confidence, target, mask = random_maps(channels)

    def total(value: Tensor, confidence: Tensor) -> tuple[Tensor, ...]:
        return tuple(aleatoric_loss(value, confidence, target, mask, outliers=Outliers(0.9), reduction="none"))

    torch.autograd.gradcheck(total, (value.requires_grad_(), confidence.requires_grad_()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_first(dtype):
    value, confidence, target, mask = random_maps(3)
    half = [x.to(dtype) for x in (value, confidence, target)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = aleatoric_loss(*half, mask)
    assert loss == aleatoric_loss(*(x.float() for x in half), mask)
    assert aleatoric_loss(value, confidence, target, mask).regression.dtype == torch.float64


def test_vector():
    depth, target, confidence = torch.full((1, 8, 8), 1.5), torch.ones(1, 8, 8), torch.full((1, 8, 8), 2.0)
    loss = aleatoric_loss(depth, confidence, target)
    torch.testing.assert_close(torch.stack(loss), torch.tensor([0.861371, 0.5]), rtol=0, atol=1e-6)


# The filter


def test_vectors_of_the_filter():
    values = torch.arange(2000) / 1000
    kept = quantile_filter(values, quantile=0.98)
    assert kept.sum() == 1959
    assert values[kept].max() == 1.958
    with_outliers = torch.cat([torch.full((10,), 1e6), values])
    assert quantile_filter(with_outliers, quantile=0.98).sum() == 1969


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.98, 0.999])
def test_filter_keeps_what_is_below_the_ranked_value(quantile):
    values, mask = torch.randn(3, 40, 50), torch.rand(3, 40, 50) > 0.3
    ranked = values[mask].sort().values
    threshold = ranked[round(quantile * (len(ranked) - 1))]
    assert torch.equal(quantile_filter(values, mask, quantile=quantile), mask & (values < threshold))


def test_hidden_values_take_no_rank():
    values, mask = torch.randn(40, 50), torch.rand(40, 50) > 0.3
    kept = quantile_filter(values, mask, quantile=0.9)
    dirty = torch.where(mask, values, torch.tensor([float("nan"), 1e9, -1e9, float("inf")]).repeat(500).view(40, 50))
    assert torch.equal(quantile_filter(dirty, mask, quantile=0.9), kept)


@pytest.mark.parametrize(
    ("count", "quantile", "num_kept"),
    [
        (1000, 0.5, 1000),
        (1001, 0.5, 1001),
        (2002, 0.5, 2002),
        (2003, 0.5, 1001),
        (4002, 0.5, 2000),
        (4004, 0.5, 2002),
        (4001, 1.0, 4000),
    ],
)
def test_few_values_are_all_kept(count, quantile, num_kept):
    """No more than 1000, or if no more than 1000 would remain; counted within the mask."""
    mask = torch.zeros(5000, dtype=torch.bool)
    mask[torch.randperm(5000)[:count]] = True
    kept = quantile_filter(torch.randperm(5000).float(), mask, quantile=quantile)
    assert kept.sum() == num_kept
    assert not (kept & ~mask).any()
    assert quantile_filter(torch.rand(10), quantile=0.5, min_count=3).sum() == 4


def test_ceiling_of_the_threshold():
    values = torch.cat([torch.full((2000,), 100.0), torch.arange(2000) / 1000])
    assert torch.equal(quantile_filter(values, quantile=0.98, ceiling=100.0), values < 100)
    assert quantile_filter(values, quantile=0.98).sum() == 2000
    assert quantile_filter(values, quantile=0.98, ceiling=1.5).sum() == 1500


def test_each_term_is_filtered_by_itself():
    value, confidence, target, mask = random_maps(None, (2, 40, 50))
    loss = aleatoric_loss(value, confidence, target, mask, outliers=Outliers(0.9))
    each = aleatoric_loss(value, confidence, target, mask, reduction="none")
    for filtered, term in zip(loss, each, strict=True):
        threshold = term[mask].sort().values[round(0.9 * (int(mask.sum()) - 1))]
        torch.testing.assert_close(filtered, term[mask & (term < threshold)].mean())


def test_no_gradient_from_what_is_dropped():
    value = torch.arange(1, 4001).double().requires_grad_()
    aleatoric_loss(value, torch.ones(4000), torch.zeros(4000), outliers=Outliers(0.98)).regression.backward()
    assert torch.equal(value.grad != 0, torch.arange(4000) < 3919)


@pytest.mark.usefixtures("unchecked")
def test_bad_options():
    maps = random_maps(3)
    with pytest.raises(ValueError, match=r"^reduction must be one of 'mean', 'none', got 'sum'$"):
        aleatoric_loss(*maps, reduction="sum")
    for quantile in (0.0, -1.0, 1.5):
        with pytest.raises(ValueError, match=rf"^quantile must be in \(0, 1\], got {quantile}$"):
            Outliers(quantile)
    with pytest.raises(ValueError, match=r"^clamp must be positive, got 0$"):
        Outliers(clamp=0)


@pytest.mark.usefixtures("unchecked")
def test_wrong_shapes():
    value, confidence, target, mask = random_maps(3)
    with pytest.raises(ValueError, match=r"^value must have shape \(2, 3, 5, 6\) or \(2, 3, 5, 6, C\), got \(3, 5, 6"):
        aleatoric_loss(value[0], confidence, target, mask)
    with pytest.raises(ValueError, match=r"^target must have shape \(2, 3, 5, 6, 3\), got \(2, 3, 5, 6, 1\)$"):
        aleatoric_loss(value, confidence, target[..., :1], mask)
    with pytest.raises(ValueError, match=r"^mask must have shape \(2, 3, 5, 6\), got \(2, 3, 5, 6, 1\)$"):
        aleatoric_loss(value, confidence, target, mask[..., None])
    with pytest.raises(ValueError, match=r"^mask must be bool, got torch.uint8$"):
        aleatoric_loss(value, confidence, target, mask.to(torch.uint8))
