import math

import pytest
import torch
from torch import Tensor

from geomtx import track_loss
from geomtx.losses import Penalty, TrackWeights
from geomtx.types import TrackIterations, TrackLabels

NUM, B, S, N = 3, 2, 4, 5


def random_iterations(b: int = B, dtype: torch.dtype = torch.float64) -> TrackIterations:
    shapes = ((NUM, b, S, N, 2), (b, S, N), (b, S, N))
    return TrackIterations(*(torch.randn(shape, dtype=torch.float64).mul(4).to(dtype) for shape in shapes))


def random_labels(b: int = B) -> TrackLabels:
    """Every scene has tracks that count, tracks that don't start in view 0, and an empty slot."""
    visible, valid = torch.rand(b, S, N) > 0.4, torch.ones(b, N, dtype=torch.bool)
    visible[:, 0] = torch.tensor([True, True, False, True, True])
    valid[:, 4] = False
    return TrackLabels(torch.randn(b, S, N, 2, dtype=torch.float64) * 4, visible, valid)


def counted(labels: TrackLabels) -> Tensor:
    return (labels.valid & labels.visible[:, 0])[:, None].expand_as(labels.visible)


def by_loops(iterations: TrackIterations, labels: TrackLabels, decay: float, threshold: float) -> list[float]:
    sums, numbers = [0.0, 0.0, 0.0], [0, 0, 0]
    b, s, n = labels.visible.shape
    num = len(iterations.coords_px)
    for scene, view, track in torch.cartesian_prod(*map(torch.arange, (b, s, n))).tolist():
        if not (labels.valid[scene, track] and labels.visible[scene, 0, track]):
            continue
        seen = bool(labels.visible[scene, view, track])
        offsets = [
            (c[scene, view, track] - labels.coords_px[scene, view, track]).tolist() for c in iterations.coords_px
        ]
        if seen:
            errors = [(abs(x) + abs(y)) / 2 for x, y in offsets]
            sums[0] += sum(decay ** (num - 1 - i) * e for i, e in enumerate(errors)) / num
            numbers[0] += 1
        right = math.hypot(*offsets[-1]) < threshold
        for k, (logits, target) in enumerate(zip(iterations[1:], (seen, right), strict=True), start=1):
            logit = logits[scene, view, track].item()
            sums[k] += math.log1p(math.exp(-logit if target else logit))
            numbers[k] += 1
    return [total / number for total, number in zip(sums, numbers, strict=True)]


def test_by_loops():
    iterations, labels = random_iterations(), random_labels()
    loss = track_loss(iterations, labels, decay=0.7, threshold_px=6.0, weights=TrackWeights(0.3, 2.0))
    expected = by_loops(iterations, labels, 0.7, 6.0)
    torch.testing.assert_close(torch.stack(loss[1:]), torch.tensor(expected, dtype=torch.float64))
    total = expected[0] + 0.3 * expected[1] + 2.0 * expected[2]
    torch.testing.assert_close(loss.total, torch.tensor(total, dtype=torch.float64))


def test_four_refinements_with_constant_errors():
    """Vector T6."""
    labels = random_labels()
    offsets = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    coords = labels.coords_px + offsets[:, None, None, None, None]
    loss = track_loss(random_iterations()._replace(coords_px=coords), labels)
    assert loss.position.item() == pytest.approx(1.642, abs=1e-12)


def test_zero_at_the_truth():
    labels = random_labels()
    coords = labels.coords_px.expand(NUM, *labels.coords_px.shape)
    sure = torch.full((B, S, N), 40.0, dtype=torch.float64)
    loss = track_loss(TrackIterations(coords, torch.where(labels.visible, sure, -sure), sure), labels)
    assert loss.position == 0
    assert loss.total < 1e-12


def test_confidence_is_for_predictions_within_the_threshold():
    labels = random_labels()
    labels = labels._replace(coords_px=labels.coords_px.round())  # sums are exact
    coords = labels.coords_px.expand(NUM, *labels.coords_px.shape).clone()
    coords[-1] += torch.tensor([3.0, 4.0], dtype=torch.float64)
    iterations = random_iterations()._replace(coords_px=coords, confidence_logits=torch.full((B, S, N), 40.0))
    assert track_loss(iterations, labels, threshold_px=5.001).confidence < 1e-12
    torch.testing.assert_close(track_loss(iterations, labels, threshold_px=5.0).confidence, torch.tensor(40.0))


def test_confidence_does_not_pull_positions():
    coords = random_iterations().coords_px.requires_grad_()
    loss = track_loss(random_iterations()._replace(coords_px=coords), random_labels())
    assert loss.position.requires_grad
    assert not loss.confidence.requires_grad


@pytest.mark.parametrize("kind", ["l1", "huber"])
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
def test_what_does_not_count_has_no_influence(kind, garbage):
    iterations, labels = random_iterations(), random_labels()
    counts = counted(labels)
    seen = labels.visible & counts
    clean = track_loss(iterations, labels, kind=kind)
    dirty = [iterations.coords_px.clone(), iterations.visibility_logits.clone(), iterations.confidence_logits.clone()]
    dirty[0][:, ~counts] = garbage
    dirty[1][~counts] = garbage
    dirty[2][~counts] = garbage
    target = labels.coords_px.clone()
    target[~counts] = garbage
    inputs = [tensor.requires_grad_() for tensor in dirty]
    loss = track_loss(TrackIterations(*inputs), labels._replace(coords_px=target), kind=kind)
    torch.testing.assert_close(loss, clean)
    loss.total.backward()
    gradients = [tensor.grad for tensor in inputs]
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)
    assert not gradients[0][:, ~seen].any()
    assert not gradients[1][~counts].any()
    assert not gradients[2][~counts].any()


def test_true_positions_need_not_be_known_where_the_point_is_not_seen():
    iterations, labels = random_iterations(), random_labels()
    target = labels.coords_px.clone()
    target[~labels.visible] = float("nan")
    loss = track_loss(iterations, labels._replace(coords_px=target))
    torch.testing.assert_close(loss.position, track_loss(iterations, labels).position)
    assert loss.total.isfinite()


@pytest.mark.parametrize("visible_boost", [None, 0.5])
@pytest.mark.parametrize("unknown", [float("nan"), float("inf")])
def test_hidden_places_that_nobody_knows_teach_nothing(visible_boost, unknown):
    """Neither the confidence nor, where hidden positions count, the position."""
    iterations, labels = random_iterations(), random_labels()
    gone = ~labels.visible & (torch.rand(B, S, N) < 0.5)
    target = torch.where(gone[..., None], unknown, labels.coords_px)
    inputs = [tensor.requires_grad_() for tensor in iterations]
    loss = track_loss(
        TrackIterations(*inputs), labels._replace(coords_px=target), weights=TrackWeights(visible_boost=visible_boost)
    )
    cells = track_loss(iterations, labels, weights=TrackWeights(visible_boost=visible_boost), reduction="none")
    taught = counted(labels) & ~gone
    assert (gone & counted(labels)).any()
    torch.testing.assert_close(loss.confidence, cells.confidence[taught].mean())
    torch.testing.assert_close(loss.visibility, cells.visibility[counted(labels)].mean())
    weight = taught * (1 + (visible_boost or 0) * labels.visible) if visible_boost else taught & labels.visible
    torch.testing.assert_close(loss.position, cells.position[taught].sum() / weight.sum())
    loss.total.backward()
    assert all(tensor.grad.isfinite().all() for tensor in inputs)
    assert not inputs[2].grad[gone].any()


def test_a_seen_place_must_be_known():
    labels = random_labels()
    target = labels.coords_px.clone()
    target[0, 1, (labels.visible[0, 1] & labels.visible[0, 0]).nonzero()[0]] = float("nan")
    assert track_loss(random_iterations(), labels._replace(coords_px=target)).position.isnan()


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("field", ["valid", "visible"])
def test_no_track_is_a_zero_with_a_graph(field, reduction):
    labels = random_labels()
    labels = labels._replace(**{field: torch.zeros_like(getattr(labels, field))})
    inputs = [torch.full_like(tensor, float("nan")).requires_grad_() for tensor in random_iterations()]
    loss = track_loss(TrackIterations(*inputs), labels, reduction=reduction)
    sum(part.sum() for part in loss).backward()
    assert all((part == 0).all() for part in loss)
    assert all((tensor.grad == 0).all() for tensor in inputs)


def test_few_positions_give_no_position_loss():
    labels = random_labels(1)
    labels = labels._replace(visible=torch.zeros_like(labels.visible))
    labels.visible[0, :2, 0] = True
    coords = random_iterations(1).coords_px.requires_grad_()
    iterations = random_iterations(1)._replace(coords_px=coords)
    loss = track_loss(iterations, labels)
    assert loss.position == 0
    assert loss.visibility > 0
    loss.total.backward()
    assert not coords.grad.any()
    expected = by_loops(iterations, labels, 0.8, 3.0)[0]
    assert track_loss(iterations, labels, min_points=2).position.item() == pytest.approx(expected)


def test_huber_is_squared_below_delta_and_linear_above():
    labels = random_labels()
    for offset, expected in ((4.0, 8.0), (30.0, 10 * (30 - 5))):
        iterations = random_iterations()._replace(coords_px=labels.coords_px[None] + offset)
        assert track_loss(iterations, labels, kind="huber").position.item() == pytest.approx(expected)
        wide = track_loss(iterations, labels, kind=Penalty("huber", delta=40.0))
        assert wide.position.item() == pytest.approx(offset**2 / 2)


def test_all_views_of_a_track_may_count_with_more_weight_where_it_is_seen():
    iterations, labels = random_iterations(), random_labels()
    everywhere = labels._replace(visible=counted(labels))
    plain = track_loss(iterations, everywhere, reduction="none").position
    weight = torch.where(labels.visible, 1.25, 1.0).double() * counted(labels)
    torch.testing.assert_close(
        track_loss(iterations, labels, weights=TrackWeights(visible_boost=0.25), reduction="none").position,
        weight * plain,
    )
    loss = track_loss(iterations, labels, weights=TrackWeights(visible_boost=0.25))
    torch.testing.assert_close(loss.position, (weight * plain).sum() / weight.sum())
    torch.testing.assert_close(loss.visibility, track_loss(iterations, labels).visibility)


def test_unreduced():
    iterations, labels = random_iterations(), random_labels()
    each, mean = track_loss(iterations, labels, reduction="none"), track_loss(iterations, labels)
    counts = counted(labels)
    for name in ("position", "visibility", "confidence"):
        values = getattr(each, name)
        mask = counts & labels.visible if name == "position" else counts
        assert values.shape == (B, S, N)
        assert (values[~mask] == 0).all()
        torch.testing.assert_close(values[mask].mean(), getattr(mean, name))
    torch.testing.assert_close(each.total, sum(each[1:]))


def test_a_batch_is_the_mean_over_scenes_with_as_many_tracks():
    iterations, labels = random_iterations(3), random_labels(3)
    labels.visible[:] = labels.visible[:1]
    parts = [
        track_loss(
            TrackIterations(iterations[0][:, b : b + 1], iterations[1][b : b + 1], iterations[2][b : b + 1]),
            TrackLabels(*(tensor[b : b + 1] for tensor in labels)),
        )
        for b in range(3)
    ]
    expected = torch.stack([torch.stack(loss) for loss in parts]).mean(0)
    torch.testing.assert_close(torch.stack(track_loss(iterations, labels)), expected)


@pytest.mark.parametrize("kind", ["l1", "huber"])
def test_half_precision_is_computed_in_float32(kind):
    iterations, labels = random_iterations(dtype=torch.bfloat16), random_labels()
    labels = labels._replace(coords_px=labels.coords_px.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = track_loss(iterations, labels, kind=kind)
    assert {part.dtype for part in loss} == {torch.float32}
    wide = TrackIterations(*(tensor.float() for tensor in iterations))
    torch.testing.assert_close(loss, track_loss(wide, labels, kind=kind))


@pytest.mark.parametrize("kind", ["l1", "huber"])
@pytest.mark.parametrize("visible_boost", [None, 0.1])
def test_gradcheck(kind, visible_boost):
    labels = random_labels(1)
    inputs = tuple(tensor.requires_grad_() for tensor in random_iterations(1))
    torch.autograd.gradcheck(
        lambda *tensors: track_loss(
            TrackIterations(*tensors), labels, kind=kind, weights=TrackWeights(visible_boost=visible_boost)
        ),
        inputs,
    )


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coords_px": torch.zeros(1, 2, 3, 2)}, r"^iterations.coords_px must have shape \(I, B, S, N, 2\), got"),
        (
            {"visibility_logits": torch.zeros(B, S)},
            r"^iterations.visibility_logits must have shape \(2, 4, 5\), got \(2, 4\)",
        ),
        (
            {"confidence_logits": torch.zeros(B, S)},
            r"^iterations.confidence_logits must have shape \(2, 4, 5\), got \(2, 4\)",
        ),
    ],
)
def test_wrong_shapes_of_predictions(change, message):
    with pytest.raises(ValueError, match=message):
        track_loss(random_iterations()._replace(**change), random_labels())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"coords_px": torch.zeros(B, S, 6, 2)},
            r"^labels.coords_px must have shape \(2, 4, 5, 2\), got \(2, 4, 6, 2\)$",
        ),
        ({"visible": torch.ones(B, S, 6) > 0}, r"^labels.visible must have shape \(2, 4, 5\), got \(2, 4, 6\)$"),
        ({"valid": torch.ones(B, 6) > 0}, r"^labels.valid must have shape \(2, 5\), got \(2, 6\)$"),
    ],
)
def test_wrong_shapes_of_labels(change, message):
    with pytest.raises(ValueError, match=message):
        track_loss(random_iterations(), random_labels()._replace(**change))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "l2"}, r"^kind must be one of 'l1', 'huber', got 'l2'$"),
        ({"reduction": "sum"}, r"^reduction must be one of 'mean', 'none', got 'sum'$"),
        ({"decay": -1.0}, r"^decay must be positive, got -1.0$"),
        ({"threshold_px": 0.0}, r"^threshold_px must be positive, got 0.0$"),
        ({"min_points": 0}, r"^min_points must be positive, got 0$"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        track_loss(random_iterations(), random_labels(), **options)


def test_wrong_weights():
    with pytest.raises(ValueError, match=r"^visible_boost must be None or at least 0, got -0.1$"):
        TrackWeights(visible_boost=-0.1)
