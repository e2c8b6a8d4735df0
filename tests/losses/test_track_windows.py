import math
from functools import partial

import pytest
import torch
from torch import Tensor

from geomtx.losses import ConfidentWindowSettings, confident_window_loss, window_loss
from geomtx.types import TrackLabels, TrackWindows

K, NUM, B, W, N, S = 2, 3, 2, 4, 3, 6
VIEWS = torch.tensor([[0, 1, 2, 3], [2, 3, 4, 5]])
LOSSES = [window_loss, confident_window_loss]


def draw() -> tuple[TrackWindows, TrackLabels, Tensor]:
    """The last window ends beyond the video, a slot is empty, queries are anywhere."""
    views = VIEWS.clone()
    views[1, 3] = -1
    windows = TrackWindows(
        torch.randn(K, NUM, B, W, N, 2).double() * 9,
        torch.randn(K, NUM, B, W, N).double(),
        torch.randn(K, NUM, B, W, N).double(),
        views,
    )
    valid = torch.ones(B, N, dtype=torch.bool)
    valid[1, 2] = False
    labels = TrackLabels(torch.randn(B, S, N, 2).double() * 9, torch.rand(B, S, N) > 0.4, valid)
    return windows, labels, torch.tensor([[0, 1, 3], [4, 2, 0]])


def cells(windows: TrackWindows, labels: TrackLabels, queries: Tensor):
    """(window, scene, place, track, view) that count."""
    for k, b, w, n in torch.cartesian_prod(*map(torch.arange, (K, B, W, N))).tolist():
        view = int(windows.views[k, w])
        if view >= 0 and labels.valid[b, n] and view >= queries[b, n]:
            yield k, b, w, n, view


def cross_entropy(logit: float, target: bool) -> float:
    return math.log1p(math.exp(-logit if target else logit))


def mean(values: list[float]) -> float:
    return sum(values) / max(len(values), 1)


def test_windows_by_loops():
    windows, labels, queries = draw()
    known = torch.rand(B, S, N) > 0.3
    position, visibility = 0.0, 0.0
    for window in range(K):
        errors, seen, hidden = [], [], []
        for k, b, w, n, view in cells(windows, labels, queries):
            if k != window:
                continue
            if known[b, view, n]:
                offsets = (windows.coords_px[k, :, b, w, n] - labels.coords_px[b, view, n]).abs().mean(-1).tolist()
                errors.append(sum(0.7 ** (NUM - 1 - i) * e for i, e in enumerate(offsets)) / NUM)
            visible = bool(labels.visible[b, view, n])
            entropy = cross_entropy(float(windows.visibility_logits[k, -1, b, w, n]), visible)
            (seen if visible else hidden).append(entropy)
        position += mean(errors) / N
        visibility += (mean(seen) + mean(hidden)) / N
    loss = window_loss(windows, labels, queries, known=known, decay=0.7)
    expected = torch.tensor([position + 10 * visibility, position, visibility]).double()
    torch.testing.assert_close(torch.stack(loss), expected)


def test_confident_windows_by_loops():
    windows, labels, queries = draw()
    near, far, visibility, confidence = [], [], [], []
    for k, b, w, n, view in cells(windows, labels, queries):
        offsets = (windows.coords_px[k, :, b, w, n] - labels.coords_px[b, view, n]).tolist()
        seen = bool(labels.visible[b, view, n])
        if seen:
            huber = [mean([e * e / 2 if abs(e) <= 6 else 6 * (abs(e) - 3) for e in offset]) for offset in offsets]
            near.append(sum(0.8 ** (NUM - 1 - i) * e for i, e in enumerate(huber)) / NUM)
        else:
            plain = [mean([abs(e) for e in offset]) for offset in offsets]
            far.append(sum(0.8 ** (NUM - 1 - i) * e for i, e in enumerate(plain)) / NUM)
        logits = windows.visibility_logits[k, :, b, w, n].tolist()
        visibility.append(mean([cross_entropy(logit, seen) for logit in logits]))
        sure = windows.confidence_logits[k, :, b, w, n].tolist()
        right = [math.hypot(*offset) <= 12 for offset in offsets]
        confidence.append(mean([cross_entropy(c, r) for c, r in zip(sure, right, strict=True)]) if seen else 0.0)
    loss = confident_window_loss(windows, labels, queries)
    parts = [0.05 * mean(near) + 0.01 * mean(far), mean(visibility), mean(confidence)]
    torch.testing.assert_close(torch.stack(loss), torch.tensor([sum(parts), *parts]).double())


def one_window(errors: list[float], visible: list[bool]) -> tuple[TrackWindows, TrackLabels, Tensor]:
    """One track of two views, two iterations that are off by `errors` in x and right in y, logits 0."""
    coords = torch.zeros(1, 2, 1, 2, 1, 2).double()
    coords[0, :, 0, :, 0, 0] = torch.tensor(errors).double()[:, None]
    logits = torch.zeros(1, 2, 1, 2, 1).double()
    labels = TrackLabels(
        torch.zeros(1, 2, 1, 2).double(), torch.tensor(visible)[None, :, None], torch.ones(1, 1, dtype=torch.bool)
    )
    return TrackWindows(coords, logits, logits, torch.tensor([[0, 1]])), labels, torch.zeros(1, 1, dtype=torch.long)


def test_numbers_worked_out_by_hand():
    """Errors of 8 and 4 pixels in x: L1 4 and 2; 0.8 · 4 / 2 + 2 / 2 = 2.6. Logits 0: ln 2 a cell."""
    windows, labels, queries = one_window([8.0, 4.0], [True, False])
    loss = window_loss(windows, labels, queries)
    assert loss.position.item() == pytest.approx(2.6)
    assert loss.visibility.item() == pytest.approx(2 * math.log(2))
    assert loss.total.item() == pytest.approx(2.6 + 20 * math.log(2))
    # Huber: 6 · (8 - 3) / 2 = 15 and 16 / 4 = 4; 0.8 · 15 / 2 + 4 / 2 = 8. The other view is hidden: 2.6.
    loss = confident_window_loss(windows, labels, queries)
    assert loss.position.item() == pytest.approx(0.05 * 8 + 0.01 * 2.6)
    assert loss.visibility.item() == pytest.approx(math.log(2))
    # Of two cells, one is hidden and counts 0.
    assert loss.confidence.item() == pytest.approx(math.log(2) / 2)


def test_windows_are_added_and_divided_by_the_tracks():
    windows, labels, queries = one_window([8.0, 4.0], [True, True])
    twice = TrackWindows(*(torch.cat([part, part]) for part in windows))
    torch.testing.assert_close(window_loss(twice, labels, queries).position, torch.tensor(2 * 2.6).double())
    three = TrackWindows(*(part.expand(*part.shape[:4], 3, *part.shape[5:]) for part in windows[:3]), windows.views)
    labels = TrackLabels(
        labels.coords_px.expand(-1, -1, 3, -1), labels.visible.expand(-1, -1, 3), labels.valid.expand(-1, 3)
    )
    torch.testing.assert_close(
        window_loss(three, labels, queries.expand(-1, 3)).position, torch.tensor(2.6 / 3).double()
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_zero_at_the_truth(loss):
    windows, labels, queries = draw()
    index = windows.views.clamp(min=0)
    coords = labels.coords_px[:, index].transpose(0, 1)[:, None].expand(-1, NUM, -1, -1, -1, -1)
    visible = labels.visible[:, index].transpose(0, 1)[:, None].expand(-1, NUM, -1, -1, -1)
    sure = torch.full_like(windows.visibility_logits, 40.0)
    perfect = TrackWindows(coords, torch.where(visible, sure, -sure), sure, windows.views)
    assert loss(perfect, labels, queries).total < 1e-12


@pytest.mark.parametrize("loss", LOSSES)
def test_hidden_places_that_are_nan_are_not_known(loss):
    windows, labels, queries = draw()
    known = labels.visible | (torch.rand(B, S, N) < 0.5)
    target = torch.where(known[..., None], labels.coords_px, torch.nan)
    expected = loss(windows, labels, queries, known=known)
    assert expected.total.isfinite()
    assert expected.position != loss(windows, labels, queries).position
    assert torch.equal(torch.stack(loss(windows, labels._replace(coords_px=target), queries)), torch.stack(expected))


@pytest.mark.parametrize("loss", LOSSES)
def test_what_does_not_count_has_no_influence(loss):
    windows, labels, queries = draw()
    known = torch.rand(B, S, N) > 0.3
    counts = torch.zeros(K, B, W, N, dtype=torch.bool)
    has_position = torch.zeros_like(counts)
    used = torch.zeros(B, S, N, dtype=torch.bool)
    for k, b, w, n, view in cells(windows, labels, queries):
        counts[k, b, w, n] = used[b, view, n] = True
        has_position[k, b, w, n] = known[b, view, n]
    nan = torch.tensor(torch.nan).double()
    broken = TrackWindows(
        torch.where(has_position[:, None, ..., None], windows.coords_px, nan).requires_grad_(),
        torch.where(counts[:, None], windows.visibility_logits, nan).requires_grad_(),
        torch.where(counts[:, None], windows.confidence_logits, nan).requires_grad_(),
        windows.views,
    )
    other = TrackLabels(
        torch.where((used & known)[..., None], labels.coords_px, nan),
        torch.where(used, labels.visible, ~labels.visible),
        labels.valid,
    )
    ours = loss(broken, other, queries, known=known)
    torch.testing.assert_close(torch.stack(ours), torch.stack(loss(windows, labels, queries, known=known)))
    ours.total.backward()
    for part in broken[:2]:
        assert part.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_that_counts_is_a_zero_with_a_graph(loss):
    windows, labels, queries = draw()
    windows = windows._replace(coords_px=windows.coords_px.requires_grad_())
    result = loss(windows, labels._replace(valid=torch.zeros_like(labels.valid)), queries)
    assert result.total == 0
    result.total.backward()
    assert not windows.coords_px.grad.any()


@pytest.mark.parametrize("loss", LOSSES)
def test_unreduced(loss):
    windows, labels, queries = draw()
    result = loss(windows, labels, queries, reduction="none")
    counts = torch.zeros(K, B, W, N, dtype=torch.bool)
    for k, b, w, n, _ in cells(windows, labels, queries):
        counts[k, b, w, n] = True
    for part in result:
        assert part.shape == (K, B, W, N)
        assert not part[~counts].any()
    visibility = result.visibility[counts].mean()
    if loss is confident_window_loss:
        torch.testing.assert_close(visibility, loss(windows, labels, queries).visibility)
    else:
        index = windows.views.clamp(min=0)
        seen = labels.visible[:, index].transpose(0, 1) & counts
        hidden = counts & ~seen
        means = [
            part[k][mask[k]].mean()
            for k in range(K)
            for part, mask in [(result.visibility, seen), (result.visibility, hidden)]
        ]
        torch.testing.assert_close(torch.stack(means).nansum() / N, loss(windows, labels, queries).visibility)


@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_is_widened(loss):
    windows, labels, queries = draw()
    half = TrackWindows(*(part.bfloat16() for part in windows[:3]), windows.views)
    assert loss(half, labels, queries).total.dtype == torch.float64
    labels = labels._replace(coords_px=labels.coords_px.float())
    assert loss(half, labels, queries).total.dtype == torch.float32


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.usefixtures("unchecked")
def test_errors(loss):
    windows, labels, queries = draw()
    with pytest.raises(ValueError, match=r"^labels.coords_px must have shape \(2, S, 3, 2\), got "):
        loss(windows, labels._replace(coords_px=labels.coords_px[:, :, :2]), queries)
    with pytest.raises(ValueError, match=r"^labels.visible must be bool, got torch.float32$"):
        loss(windows, labels._replace(visible=labels.visible.float()), queries)
    with pytest.raises(ValueError, match=r"^query_views must have shape \(2, 3\), got \(2, 2\)$"):
        loss(windows, labels, queries[:, :2])
    with pytest.raises(ValueError, match=r"^known must have shape \(2, 6, 3\), got \(2, 6, 2\)$"):
        loss(windows, labels, queries, known=labels.visible[..., :2])
    with pytest.raises(ValueError, match=r"^reduction must be one of 'mean', 'none', got 'sum'$"):
        loss(windows, labels, queries, reduction="sum")


@pytest.mark.parametrize("make", [partial(window_loss, *draw()), ConfidentWindowSettings])
def test_wrong_decay(make):
    with pytest.raises(ValueError, match=r"^decay must be positive, got 0$"):
        make(decay=0)
