import math

import pytest
import torch
from torch import Tensor

from geomtx.losses import bearing_loss

SHAPE = (2, 3, 5, 7)


def random_points() -> Tensor:
    return torch.randn(*SHAPE, 3, dtype=torch.float64)


def test_is_the_chord_of_the_angle():
    points, target = random_points(), random_points()
    cosine = torch.nn.functional.cosine_similarity(points, target, dim=-1)
    expected = 2 * (cosine.clamp(-1, 1).acos() / 2).sin()
    torch.testing.assert_close(bearing_loss(points, target, reduction="none"), expected)
    torch.testing.assert_close(bearing_loss(points, target), expected.mean())


def test_distance_does_not_matter():
    points, target = random_points(), random_points()
    loss = bearing_loss(points, target)
    stretched = bearing_loss(points * (0.5 + torch.rand(*SHAPE, 1)), target * (0.5 + torch.rand(*SHAPE, 1)))
    torch.testing.assert_close(stretched, loss)
    assert bearing_loss(3 * target, target) < 1e-12
    assert bearing_loss(-target, target).item() == pytest.approx(2)


def test_what_the_mask_hides_has_no_influence():
    points, target = random_points().requires_grad_(), random_points()
    mask = torch.rand(SHAPE) > 0.4
    with torch.no_grad():
        broken = points.masked_fill(~mask[..., None], math.nan)
    broken.requires_grad_()
    loss = bearing_loss(broken, target.masked_fill(~mask[..., None], math.inf), mask)
    loss.backward()
    assert broken.grad.isfinite().all()
    assert (broken.grad[~mask] == 0).all()
    torch.testing.assert_close(loss, bearing_loss(points, target, reduction="none")[mask].mean())
    nothing = bearing_loss(points, target, torch.zeros_like(mask))
    nothing.backward()
    assert nothing == 0
    assert (points.grad == 0).all()


def test_points_at_the_first_camera():
    points, target = torch.zeros(*SHAPE, 3, requires_grad=True), random_points().float()
    target[0, 0] = 0  # no direction to compare with
    error = bearing_loss(points, target, reduction="none")
    assert (error[0, 0] == 0).all()
    torch.testing.assert_close(error[1], torch.ones(SHAPE[1:]))
    error.sum().backward()
    assert points.grad.isfinite().all()
    assert (points.grad[1] != 0).any(dim=-1).all(), "there is a way out"


def test_gradients():
    points, target = random_points()[:1, :1].requires_grad_(), random_points()[:1, :1]
    torch.autograd.gradcheck(lambda x: bearing_loss(x, target, torch.ones(1, 1, 5, 7) > 0), points)


def test_perfect_predictions_have_finite_gradients():
    points = random_points().requires_grad_()
    bearing_loss(points, points.detach()).backward()
    assert points.grad.isfinite().all()


def test_half_precision_is_computed_in_float32():
    assert bearing_loss(random_points().half(), random_points().half()).dtype == torch.float32


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(4, 3), torch.zeros(4, 3)), "points must have shape"),
        ((torch.zeros(4, 4, 3), torch.zeros(4, 5, 3)), "target must have shape"),
        ((torch.zeros(4, 4, 3), torch.zeros(4, 4, 3), torch.ones(4, 4)), "mask must be bool"),
        ((torch.zeros(4, 4, 3), torch.zeros(4, 4, 3), torch.ones(4, 5) > 0), "mask must have shape"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        bearing_loss(*arguments)
    with pytest.raises(ValueError, match="reduction must be one of"):
        bearing_loss(torch.zeros(4, 4, 3), torch.zeros(4, 4, 3), reduction="sum")
