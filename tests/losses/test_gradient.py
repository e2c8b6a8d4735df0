import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from geomtx import gradient_loss, normal_loss
from geomtx.losses import ConfidenceWeighting

H, W = 9, 11


def random_maps(channels: int | None, shape: tuple[int, ...] = (2, 3, H, W)) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value, target, mask, confidence; the mask is neither empty nor full."""
    full = shape if channels is None else (*shape, channels)
    value, target = torch.randn(2, *full, dtype=torch.float64)
    return value, target, torch.rand(shape) > 0.3, 1 + torch.randn(shape, dtype=torch.float64).exp()


def gradient_by_loops(
    value: Tensor, target: Tensor, mask: Tensor, confidence: Tensor | None, scales: int, unmasked: bool = False
) -> float:
    """One map (H, W, C) with γ = 0.7, α = 0.3."""
    means = []
    for stride in (2**i for i in range(scales)):
        rows, columns = range(0, mask.shape[0], stride), range(0, mask.shape[1], stride)
        total = count = 0.0
        for y in rows:
            for x in columns:
                count += mask[y, x].item() * value.shape[-1]
                for y2, x2 in ((y, x + stride), (y + stride, x)):
                    if y2 not in rows or x2 not in columns:
                        continue
                    known = mask[y, x] and mask[y2, x2]
                    for c in range(value.shape[-1]):
                        change = (value[y2, x2, c] - target[y2, x2, c] - value[y, x, c] + target[y, x, c]).abs().item()
                        change = change if known else 0.0
                        if confidence is not None:
                            change *= 0.7 * confidence[y2, x2].item()
                            change -= 0.3 * math.log(confidence[y2, x2].item()) if known or unmasked else 0.0
                        total += change
        means.append(total / count if count else 0.0)
    return sum(means) / scales


@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize(("weighted", "unmasked"), [(False, False), (True, False), (True, True)])
def test_gradient_by_loops(channels, weighted, unmasked):
    value, target, mask, confidence = random_maps(channels)
    confidence = confidence if weighted else None
    weighting = ConfidenceWeighting(0.7, 0.3, unmasked_log=unmasked)
    loss = gradient_loss(value, target, mask, confidence, weighting=weighting, reduction="none")
    assert loss.shape == (2, 3)
    for b in range(2):
        for s in range(3):
            maps = [x if channels else x[..., None] for x in (value[b, s], target[b, s])]
            expected = gradient_by_loops(*maps, mask[b, s], confidence[b, s] if weighted else None, 4, unmasked)
            assert loss[b, s].item() == pytest.approx(expected, abs=1e-12)


def normal_by_loops(points: Tensor, target: Tensor, mask: Tensor, confidence: Tensor | None, scales: int) -> float:
    """One map (H, W, 3) with γ = 0.7, α = 0.3."""
    means = []
    for stride in (2**i for i in range(scales)):
        p, t, m = (x[::stride, ::stride] for x in (points, target, mask))
        c = None if confidence is None else confidence[::stride, ::stride]
        losses = []
        for y in range(m.shape[0]):
            for x in range(m.shape[1]):
                ring = [(y - 1, x), (y, x - 1), (y + 1, x), (y, x + 1), (y - 1, x)]
                for a, b in pairwise(ring):
                    inside = all(0 <= i < m.shape[0] and 0 <= j < m.shape[1] for i, j in (a, b))
                    if not (inside and m[y, x] and m[a] and m[b]):
                        continue
                    normals = [torch.linalg.cross(q[a] - q[y, x], q[b] - q[y, x]) for q in (p, t)]
                    cosine = torch.dot(*(n / n.norm() for n in normals)).item()
                    loss = 1 - cosine
                    if c is not None:
                        loss = 0.7 * loss * c[y, x].item() - 0.3 * math.log(c[y, x].item())
                    losses.append(loss)
        means.append(sum(losses) / len(losses) if len(losses) >= 10 else 0.0)
    return sum(means) / scales


@pytest.mark.parametrize("weighted", [False, True])
def test_normals_by_loops(weighted):
    value, target, mask, confidence = random_maps(3)
    confidence = confidence if weighted else None
    loss = normal_loss(value, target, mask, confidence, gamma=0.7, alpha=0.3, reduction="none")
    assert loss.shape == (2, 3)
    for b in range(2):
        for s in range(3):
            maps = value[b, s], target[b, s], mask[b, s], confidence[b, s] if weighted else None
            assert loss[b, s].item() == pytest.approx(normal_by_loops(*maps, 3), abs=1e-12)


LOSSES = [pytest.param(gradient_loss, id="gradient"), pytest.param(normal_loss, id="normal")]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_mean_weighs_maps_by_what_is_known(loss, weighted):
    """Of maps on top of each other, as one; not the mean of means."""
    value, target, mask, confidence = random_maps(3)
    confidence = confidence if weighted else None
    each = loss(value, target, mask, confidence, num_scales=1, reduction="none")
    if loss is gradient_loss:
        count = mask.sum((-1, -2))
    else:
        padded = torch.nn.functional.pad(mask, (1, 1, 1, 1))
        ring = [padded[..., :-2, 1:-1], padded[..., 1:-1, :-2], padded[..., 2:, 1:-1], padded[..., 1:-1, 2:]]
        count = sum((mask & a & b).sum((-1, -2)) for a, b in zip(ring, ring[1:] + ring[:1], strict=True))
    mean = loss(value, target, mask, confidence, num_scales=1)
    torch.testing.assert_close(mean, (each * count).sum() / count.sum())


@pytest.mark.parametrize("loss", LOSSES)
def test_any_leading_axes(loss):
    value, target, mask, confidence = random_maps(3)
    each = loss(value, target, mask, confidence, reduction="none")
    flat = [x.flatten(0, 1) for x in (value, target, mask, confidence)]
    torch.testing.assert_close(loss(*flat, reduction="none"), each.flatten())
    one = loss(*(x[1] for x in flat))
    torch.testing.assert_close(one, each[0, 1])


@pytest.mark.parametrize("loss", LOSSES)
def test_zero_at_the_truth(loss):
    value, _, mask, _ = random_maps(3)
    value.requires_grad_()
    total = loss(value, value.detach(), mask)
    total.backward()
    assert total.abs() < 1e-14
    assert value.grad.abs().max() < 1e-10


@pytest.mark.parametrize("loss", LOSSES)
def test_an_offset_is_no_error(loss):
    """Both look at changes only; the plain error is for the rest."""
    value, target, mask, _ = random_maps(3)
    offset = torch.randn(3, dtype=torch.float64)
    torch.testing.assert_close(loss(value + offset, target, mask), loss(value, target, mask))


def test_the_unit_is_no_error_of_normals():
    value, target, mask, _ = random_maps(3)
    torch.testing.assert_close(normal_loss(7 * value, target, mask), normal_loss(value, target, mask))


@pytest.mark.parametrize("unit", [1e-9, 1e-3, 1e9])
def test_normals_in_any_unit(unit):
    """A picture of many pixels has neighbours that are near, whose cross products are tiny."""
    value, target, mask, _ = (x.float() if x.is_floating_point() else x for x in random_maps(3))
    expected = normal_loss(value, target, mask)
    assert expected > 0.1
    torch.testing.assert_close(normal_loss(unit * value, unit * target, mask), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
def test_what_the_mask_hides_has_no_influence(loss, weighted, garbage):
    value, target, mask, confidence = random_maps(3)
    hidden = ((value, mask[..., None]), (target, mask[..., None]), (confidence, mask))
    dirty = [torch.where(m, x, garbage).requires_grad_() for x, m in hidden]
    confidence, dirty_confidence = (confidence, dirty[2]) if weighted else (None, None)
    total = loss(dirty[0], dirty[1], mask, dirty_confidence)
    assert total == loss(value, target, mask, confidence)
    total.backward()
    for x in dirty[: 2 + weighted]:
        assert x.grad.isfinite().all()
        assert (x.grad[~mask] == 0).all()
        assert (x.grad[mask] != 0).any()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_an_empty_mask_gives_a_zero_with_a_graph(loss, reduction):
    value, confidence = (torch.full(shape, float("nan"), requires_grad=True) for shape in ((2, H, W, 3), (2, H, W)))
    mask = torch.zeros(2, H, W, dtype=torch.bool)
    total = loss(value, torch.zeros(2, H, W, 3), mask, confidence, reduction=reduction)
    assert (total == 0).all()
    total.sum().backward()
    assert (value.grad == 0).all()
    assert (confidence.grad == 0).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (6, 1), (2, 2)])
def test_small_maps(size):
    value, target, mask, confidence = random_maps(3, size)
    mask = torch.ones_like(mask)
    expected = gradient_by_loops(value, target, mask, confidence, 4)
    loss = gradient_loss(value, target, mask, confidence, weighting=ConfidenceWeighting(0.7, 0.3))
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    # One pixel less than 10 normals: a scale of 2 by 2 has four.
    assert normal_loss(value, target, mask, confidence) == 0


def test_ten_normals_are_needed():
    value, target, mask, _ = random_maps(3, (3, 3))
    mask[:] = True
    assert normal_loss(value, target, mask, num_scales=1) > 0
    # 3 by 3 pixels have 16 corners; without the middle pixel 4 are left.
    mask[1, 1] = False
    assert normal_loss(value, target, mask, num_scales=1) == 0


def test_confidence_is_not_pushed_where_there_is_no_data():
    value, target, mask, confidence = random_maps(None)
    mask = torch.rand(mask.shape) > 0.96
    confidence.requires_grad_()
    gradient_loss(value, target, mask, confidence).backward()
    assert (confidence.grad[~mask] == 0).all()
    confidence.grad = None
    gradient_loss(value, target, mask, confidence, weighting=ConfidenceWeighting(unmasked_log=True)).backward()
    assert confidence.grad[~mask].abs().sum() > 5 * confidence.grad[mask].abs().sum()


def test_a_large_change_is_unlearned_but_not_with_the_published_clamp():
    value, mask = torch.tensor([[500.0, 0.0]], requires_grad=True), torch.ones(1, 2, dtype=torch.bool)
    gradient_loss(value, torch.zeros(1, 2), mask, num_scales=1).backward()
    assert value.grad.tolist() == [[0.5, -0.5]]
    value.grad = None
    loss = gradient_loss(value, torch.zeros(1, 2), mask, num_scales=1, clamp=100.0)
    loss.backward()
    assert loss == 50
    assert (value.grad == 0).all()


def test_degenerate_points_give_finite_gradients():
    """An untrained head may put all points in one place; a true plane seen edge on has no normal."""
    _, target, mask, _ = random_maps(3)
    points = torch.zeros_like(target, requires_grad=True)
    loss = normal_loss(points, target, mask)
    loss.backward()
    torch.testing.assert_close(loss, torch.ones_like(loss))
    assert (points.grad == 0).all()
    target[..., 1:] = 0
    assert normal_loss(torch.randn_like(target), target, mask) == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_gradcheck(loss):
    value, target, mask, confidence = random_maps(3, (1, 3, 4))
    mask = torch.rand(mask.shape) > 0.1

    def total(value: Tensor, confidence: Tensor) -> Tensor:
        return loss(value, target, mask, confidence, num_scales=2)

    assert total(value, confidence) != 0
    torch.autograd.gradcheck(total, (value.requires_grad_(), confidence.requires_grad_()))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_first(loss, dtype):
    value, target, mask, confidence = random_maps(3)
    half = [x.to(dtype) for x in (value, target, confidence)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = loss(*half[:2], mask, half[2])
    assert total == loss(half[0].float(), half[1].float(), mask, half[2].float())
    assert loss(value, target, mask, confidence).dtype == torch.float64


# Vectors


def column_index() -> tuple[Tensor, Tensor, Tensor]:
    return torch.arange(8.0).expand(8, 8), torch.zeros(8, 8), torch.ones(8, 8, dtype=torch.bool)


def test_vectors_of_gradients():
    value, target, mask = column_index()
    assert gradient_loss(value, target, mask) == 1.09375
    scales = [gradient_loss(value[::i, ::i], target[::i, ::i], mask[::i, ::i], num_scales=1) for i in (1, 2, 4, 8)]
    assert [loss.item() for loss in scales] == [0.875, 1.5, 2, 0]
    confidence = torch.full((8, 8), 2.0)
    for legacy in (False, True):
        loss = gradient_loss(value, target, mask, confidence, weighting=ConfidenceWeighting(unmasked_log=legacy))
        assert loss.item() == pytest.approx(2.040206, abs=1e-6)
    mask = mask.clone()
    mask[:, 4:] = False
    assert gradient_loss(value, target, mask) == 0.4375


def test_vector_of_normals():
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    flat, tilted = torch.stack([x, y, 0 * x], dim=-1), torch.stack([x, y, x], dim=-1)
    loss = normal_loss(tilted, flat, torch.ones(16, 16, dtype=torch.bool))
    assert loss.item() == pytest.approx(1 - math.cos(math.pi / 4), abs=1e-6)
    assert loss.item() == pytest.approx(0.292893, abs=1e-6)
    opposite = normal_loss(flat * torch.tensor([-1.0, 1, 1]), flat, torch.ones(16, 16, dtype=torch.bool))
    assert opposite.item() == pytest.approx(2)


@pytest.mark.usefixtures("unchecked")
def test_bad_arguments():
    value, target, mask, confidence = random_maps(3)
    for loss, name in ((gradient_loss, "value"), (normal_loss, "points")):
        with pytest.raises(ValueError, match=r"^reduction must be one of 'mean', 'none', got 'sum'$"):
            loss(value, target, mask, reduction="sum")
        with pytest.raises(ValueError, match=r"^num_scales must be positive, got 0$"):
            loss(value, target, mask, num_scales=0)
        with pytest.raises(ValueError, match=r"^target must have shape \(2, 3, 9, 11, 3\), got \(2, 3, 9, 11\)$"):
            loss(value, target[..., 0], mask)
        with pytest.raises(ValueError, match=r"^confidence must have shape \(2, 3, 9, 11\), got \(3, 9, 11\)$"):
            loss(value, target, mask, confidence[0])
        with pytest.raises(ValueError, match=rf"^{name} must have shape .*, got \(2, 3, 9, 11, 3\)$"):
            loss(value, target, mask[0])
        with pytest.raises(ValueError, match=r"^mask must be bool, got torch.float64$"):
            loss(value, target, mask.double())
    with pytest.raises(ValueError, match=r"^clamp must be positive, got -1$"):
        gradient_loss(value, target, mask, clamp=-1)
    with pytest.raises(ValueError, match=r"^points must have shape \(\.\.\., H, W, 3\), got \(2, 3, 9, 11, 2\)$"):
        normal_loss(value[..., :2], target[..., :2], mask)
