import pytest
import torch
from torch import Tensor

from geomtx.losses import track_point_loss
from geomtx.types import TrackLabels

B, S, N, H, W = 2, 3, 300, 9, 11


def random_points() -> Tensor:
    return torch.randn(B, S, H, W, 3, dtype=torch.float64)


def random_labels() -> TrackLabels:
    """At whole pixels, some outside the picture."""
    coords = torch.stack([torch.randint(-2, W + 2, (B, S, N)), torch.randint(-2, H + 2, (B, S, N))], dim=-1).double()
    return TrackLabels(coords, torch.rand(B, S, N) > 0.1, torch.rand(B, N) > 0.1)


def by_loops(points: Tensor, target: Tensor, labels: TrackLabels, mask: Tensor) -> dict[tuple[int, int, int], float]:
    errors = {}
    for b, s, n in torch.cartesian_prod(torch.arange(B), torch.arange(1, S), torch.arange(N)).tolist():
        ends = []
        for view in (0, s):
            x, y = labels.coords_px[b, view, n].long().tolist()
            is_inside = 0 <= x < W and 0 <= y < H
            if labels.valid[b, n] and labels.visible[b, view, n] and is_inside and mask[b, view, y, x]:
                ends.append((points[b, view, y, x], target[b, view, y, x]))
        if len(ends) == 2:
            (p, t), (q, u) = ends
            errors[b, s, n] = ((p - q) - (t - u)).abs().mean().item()
    return errors


def test_by_loops():
    points, target, labels = random_points(), random_points(), random_labels()
    mask = torch.rand(B, S, H, W) > 0.1
    errors = by_loops(points, target, labels, mask)
    assert len(errors) > 100
    each = track_point_loss(points, target, labels, mask, reduction="none")
    expected = torch.zeros(B, S, N, dtype=torch.float64)
    for place, error in errors.items():
        expected[place] = error
    torch.testing.assert_close(each, expected)
    loss = track_point_loss(points, target, labels, mask)
    assert loss.item() == pytest.approx(sum(errors.values()) / len(errors))


def test_points_may_be_anywhere_as_long_as_they_move_alike():
    target, labels = random_points(), random_labels()
    assert track_point_loss(target + torch.randn(B, 1, 1, 1, 3), target, labels) < 1e-12
    assert track_point_loss(target + torch.randn(B, S, 1, 1, 3), target, labels) > 0.1


def test_between_pixels_points_are_interpolated():
    target, labels = random_points(), random_labels()
    labels = labels._replace(coords_px=labels.coords_px.clamp(1, 7) + 0.25, visible=torch.ones(B, S, N) > 0)
    slope = torch.randn(B, S, 1, 1, 3, dtype=torch.float64)
    rows = torch.arange(H, dtype=torch.float64)[:, None, None]
    loss = track_point_loss(target + slope * rows, target, labels, reduction="none")
    offset = slope[:, :, 0] * labels.coords_px[..., 1:]
    expected = (offset[:, :1] - offset).abs().mean(-1) * labels.valid[:, None]
    torch.testing.assert_close(loss, expected)


def test_a_sample_needs_its_four_pixels():
    points, target = random_points(), random_points()
    labels = TrackLabels(torch.full((B, S, N, 2), 4.5).double(), torch.ones(B, S, N) > 0, torch.ones(B, N) > 0)
    mask = torch.ones(B, S, H, W, dtype=torch.bool)
    mask[0, 1, 5, 5] = False
    mask[0, 2, 6, 5] = False
    each = track_point_loss(points, target, labels, mask, reduction="none")
    assert not each[0, 1].any()
    assert (each[0, 2] > 0).all()
    assert (each[1, 1:] > 0).all()


def test_clamp_stops_the_gradient_and_is_off():
    target, labels = random_points(), random_labels()
    points = target.clone()
    points[:, 1:] += 5000
    points.requires_grad_()
    free, clamped = (track_point_loss(points, target, labels, clamp=c) for c in (None, 1000.0))
    assert free.item() == pytest.approx(5000)
    assert clamped.item() == pytest.approx(1000)
    assert torch.autograd.grad(free, points)[0].any()
    assert not torch.autograd.grad(clamped, points)[0].any()


def test_few_samples_are_none():
    points, target, labels = random_points().requires_grad_(), random_points(), random_labels()
    count = len(by_loops(points, target, labels, torch.ones(B, S, H, W)))
    assert track_point_loss(points, target, labels, min_samples=count) > 0
    loss = track_point_loss(points, target, labels, min_samples=count + 1)
    loss.backward()
    assert loss == 0
    assert not points.grad.any()


def refuse(message: str, **changes) -> None:
    arguments = {"points": random_points(), "target": random_points(), "labels": random_labels()} | changes
    with pytest.raises(ValueError, match=message):
        track_point_loss(**arguments)


@pytest.mark.usefixtures("unchecked")
def test_wrong_arguments():
    labels = random_labels()
    refuse(r"^points must have shape \(B, S, H, W, 3\), got \(2, 3\)$", points=torch.ones(2, 3))
    refuse(r"^target must have shape \(2, 3, 9, 11, 3\), got \(2, 3\)$", target=torch.ones(2, 3))
    refuse(
        r"^labels.coords_px must have shape \(2, 3, 300, 2\), got \(2, 3\)$",
        labels=labels._replace(coords_px=torch.ones(2, 3)),
    )
    refuse(
        r"^labels.visible must have shape \(2, 3, 300\), got \(2, 3\)$",
        labels=labels._replace(visible=torch.ones(2, 3) > 0),
    )
    refuse(
        r"^labels.valid must have shape \(2, 300\), got \(3, 300\)$",
        labels=labels._replace(valid=torch.ones(3, 300) > 0),
    )
    refuse(r"^mask must have shape \(2, 3, 9, 11\), got \(2, 3\)$", mask=torch.ones(2, 3) > 0)
    refuse(r"^reduction must be one of 'mean', 'none', got 'sum'$", reduction="sum")
    refuse(r"^clamp must be positive, got -1.0$", clamp=-1.0)
    refuse(r"^min_samples must be positive, got 0$", min_samples=0)
