import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from geomtx import camera_loss, encode_pose
from geomtx.losses import Penalty, depth_to_camera_mask
from geomtx.losses.reduce import average_stages

KINDS = ("l1", "l2", "huber")


def random_encodings(*shape: int) -> Tensor:
    return torch.randn(*shape, 9, dtype=torch.float64)


def by_loops(predicted: Tensor, target: Tensor, kind: str, decay: float = 0.6, delta: float = 0.1) -> list[float]:
    """Translation, rotation and field of view, one number at a time; quaternions as they are."""
    num, (b, s) = len(predicted), target.shape[:2]
    sums = [0.0, 0.0, 0.0]
    for i in range(num):
        for scene in range(b):
            for view in range(s):
                difference = (predicted[i, scene, view] - target[scene, view]).tolist()
                for part, (first, last) in enumerate(((0, 3), (3, 7), (7, 9))):
                    numbers = [abs(d) for d in difference[first:last]]
                    if kind == "l2":
                        error = math.sqrt(sum(d * d for d in numbers))
                    elif kind == "l1":
                        error = sum(numbers) / len(numbers)
                    else:
                        huber = [d * d / 2 if d < delta else delta * (d - delta / 2) for d in numbers]
                        error = sum(huber) / len(huber)
                    sums[part] += decay ** (num - 1 - i) * error / (num * b * s)
    return sums


@pytest.mark.parametrize("kind", KINDS)
def test_by_loops(kind):
    predicted, target = random_encodings(3, 2, 4), random_encodings(2, 4)
    weights, penalty = (0.3, 2.0, 1.5), Penalty(kind, delta=0.4)
    loss = camera_loss(predicted, target, kind=penalty, decay=0.7, sign_invariant=False, weights=weights)
    expected = by_loops(predicted, target, kind, decay=0.7, delta=0.4)
    torch.testing.assert_close(torch.stack(loss[1:]), torch.tensor(expected, dtype=torch.float64))
    total = 0.3 * expected[0] + 2.0 * expected[1] + 1.5 * expected[2]
    torch.testing.assert_close(loss.total, torch.tensor(total, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_zero_at_the_truth(kind):
    target = random_encodings(2, 3)
    predicted = target.expand(4, -1, -1, -1).clone().requires_grad_()
    loss = camera_loss(predicted, target, kind=kind)
    loss.total.backward()
    assert list(loss) == [0, 0, 0, 0]
    assert predicted.grad.isfinite().all()


def test_four_refinements_with_constant_offsets():
    """Vector T2."""
    angle = math.radians(10)
    rotation = [[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]]
    camera = torch.cat([torch.tensor(rotation), torch.tensor([[0.1], [0.0], [0.2]])], dim=1)
    intrinsics = torch.tensor([[300.0, 0, 21], [0, 300, 14], [0, 0, 1]])
    target = encode_pose(camera, intrinsics, (28, 42))
    expected = torch.tensor([0.1, 0, 0.2, 0, 0.08716, 0, 0.99619, 0.09327, 0.13977])
    torch.testing.assert_close(target, expected, rtol=0, atol=1e-5)
    predicted = target + torch.tensor([0.4, 0.3, 0.2, 0.1])[:, None]
    loss = camera_loss(predicted[:, None, None], target[None, None])
    torch.testing.assert_close(torch.stack(loss), torch.tensor([0.2590, 0.1036, 0.1036, 0.1036]), rtol=0, atol=1e-6)


def test_both_signs_of_a_quaternion_are_the_same_rotation():
    predicted, target = random_encodings(3, 2, 4), random_encodings(2, 4)
    turned = target.clone()
    turned[..., 3:7] *= -1
    loss = camera_loss(predicted, target)
    torch.testing.assert_close(camera_loss(predicted, turned), loss)
    assert camera_loss(turned[None], target).total == 0
    both = [camera_loss(predicted, t, sign_invariant=False, reduction="none").rotation for t in (target, turned)]
    assert (camera_loss(predicted, target, reduction="none").rotation <= torch.minimum(*both) + 1e-12).all()
    assert not torch.allclose(both[0], both[1])


def test_each_refinement_and_view_has_its_own_sign():
    target = random_encodings(1, 2)
    signs = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    predicted = target.expand(2, -1, -1, -1).clone()
    predicted[..., 3:7] *= signs[:, None, :, None]
    assert camera_loss(predicted, target).rotation == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
def test_unknown_cameras_count_for_nothing(kind, garbage):
    predicted, target, mask = random_encodings(3, 2, 4), random_encodings(2, 4), torch.rand(2, 4) > 0.5
    mask[0, 0], mask[1, 1] = True, False
    clean = camera_loss(predicted[:, mask][:, None], target[mask][None], kind=kind)
    dirty = predicted.clone()
    dirty[:, ~mask] = garbage
    target[~mask] = garbage
    dirty.requires_grad_()
    loss = camera_loss(dirty, target, mask, kind=kind)
    torch.testing.assert_close(loss, clean)
    loss.total.backward()
    assert (dirty.grad[:, ~mask] == 0).all()
    assert dirty.grad[:, mask].isfinite().all()
    assert (dirty.grad[:, mask] != 0).any(-1).all()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_known_camera_is_a_zero_with_a_graph(reduction):
    predicted = torch.full((2, 1, 3, 9), float("nan"), requires_grad=True)
    loss = camera_loss(predicted, torch.zeros(1, 3, 9), torch.zeros(1, 3, dtype=torch.bool), reduction=reduction)
    sum(part.sum() for part in loss).backward()
    assert all((part == 0).all() for part in loss)
    assert (predicted.grad == 0).all()


def test_a_nan_that_counts_is_not_hidden():
    predicted = random_encodings(2, 1, 3)
    predicted[-1, 0, 1, 0] = float("nan")
    loss = camera_loss(predicted, random_encodings(1, 3), kind=Penalty(clamp=100.0))
    assert loss.translation.isnan()
    assert loss.rotation.isfinite()


@pytest.mark.parametrize("kind", KINDS)
def test_unreduced(kind):
    predicted, target, mask = random_encodings(3, 2, 4), random_encodings(2, 4), torch.rand(2, 4) > 0.3
    mask[0, 0], mask[1, 1] = True, False
    each = camera_loss(predicted, target, mask, kind=kind, reduction="none")
    mean = camera_loss(predicted, target, mask, kind=kind)
    for values, value in zip(each, mean, strict=True):
        assert values.shape == (2, 4)
        assert (values[~mask] == 0).all()
        torch.testing.assert_close(values[mask].mean(), value)


def test_a_batch_is_the_mean_over_its_scenes():
    predicted, target = random_encodings(2, 3, 4), random_encodings(3, 4)
    alone = [camera_loss(predicted[:, b : b + 1], target[b : b + 1]).total for b in range(3)]
    torch.testing.assert_close(camera_loss(predicted, target).total, torch.stack(alone).mean())


def test_clamp_is_for_translations_alone_and_stops_their_gradient():
    target = torch.zeros(1, 2, 9, dtype=torch.float64)
    predicted = torch.full((1, 1, 2, 9), 300.0, dtype=torch.float64)
    predicted[..., 1, :3] = 50.0
    predicted.requires_grad_()
    loss = camera_loss(predicted, target, kind=Penalty(clamp=100.0))
    assert [loss.translation.item(), loss.rotation.item(), loss.fov.item()] == [75, 300, 300]
    (gradient,) = torch.autograd.grad(loss.translation, predicted)
    assert (gradient[0, 0, 0] == 0).all()
    assert (gradient[0, 0, 1, :3] > 0).all()
    free = camera_loss(predicted, target)
    assert free.translation == 175
    assert (torch.autograd.grad(free.translation, predicted)[0][..., :3] > 0).all()


def test_huber_is_squared_below_delta_and_linear_above():
    target = torch.zeros(1, 1, 9, dtype=torch.float64)
    for offset, expected in ((0.05, 0.05**2 / 2), (0.5, 0.1 * (0.5 - 0.05)), (-0.5, 0.1 * (0.5 - 0.05))):
        predicted = torch.full((1, 1, 1, 9), offset, dtype=torch.float64)
        loss = camera_loss(predicted, target, kind="huber")
        assert loss.fov.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_computed_in_float32(kind):
    predicted, target = random_encodings(2, 2, 3).bfloat16(), random_encodings(2, 3).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = camera_loss(predicted, target, kind=kind)
    assert {part.dtype for part in loss} == {torch.float32}
    torch.testing.assert_close(loss, camera_loss(predicted.float(), target, kind=kind))


def test_float64_stays():
    assert camera_loss(random_encodings(1, 1, 2), random_encodings(1, 2)).total.dtype == torch.float64


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    predicted, target = random_encodings(2, 1, 3).requires_grad_(), random_encodings(1, 3).requires_grad_()
    mask = torch.tensor([[True, False, True]])
    torch.autograd.gradcheck(lambda p, t: camera_loss(p, t, mask, kind=Penalty(kind, clamp=5.0)), (predicted, target))


def test_descent_reaches_the_truth():
    target = F.normalize(random_encodings(1, 3), dim=-1)
    predicted = random_encodings(2, 1, 3).requires_grad_()
    optimizer = torch.optim.Adam([predicted], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        camera_loss(predicted, target, kind="huber").total.backward()
        optimizer.step()
    assert camera_loss(predicted, target).total < 1e-3


def test_weights_of_refinements():
    errors = torch.randn(4, 5, dtype=torch.float64)
    expected = (0.216 * errors[0] + 0.36 * errors[1] + 0.6 * errors[2] + errors[3]) / 4
    torch.testing.assert_close(average_stages(errors, 0.6), expected)
    torch.testing.assert_close(average_stages(errors[:1], 0.6), errors[0])


def test_published_choice_of_cameras():
    mask = torch.zeros(3, 2, 12, 12, dtype=torch.bool)
    mask[0, 0].view(-1)[:101] = True
    mask[1, 0].view(-1)[:100] = True
    mask[1, 1] = True
    assert depth_to_camera_mask(mask).tolist() == [[True, True], [False, False], [False, False]]
    assert depth_to_camera_mask(mask, min_pixels=99).tolist() == [[True, True], [True, True], [False, False]]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pose_encodings": torch.zeros(2, 3, 9)}, r"^pose_encodings must have shape \(I, B, S, 9\), got \(2, 3, 9\)$"),
        ({"target": torch.zeros(2, 4, 9)}, r"^target must have shape \(2, 3, 9\), got \(2, 4, 9\)$"),
        ({"mask": torch.ones(2, 3, 1, dtype=torch.bool)}, r"^mask must have shape \(2, 3\), got \(2, 3, 1\)$"),
        ({"mask": torch.ones(2, 3)}, r"^mask must be bool, got torch.float32$"),
        ({"pose_encodings": torch.zeros(0, 2, 3, 9)}, r"^refinements must be at least 1, got 0$"),
        ({"kind": "L1"}, r"^kind must be one of 'l1', 'l2', 'huber', got 'L1'$"),
        ({"reduction": "sum"}, r"^reduction must be one of 'mean', 'none', got 'sum'$"),
        ({"decay": 0.0}, r"^decay must be positive, got 0.0$"),
        (
            {"weights": (1.0, 1.0)},
            r"^weights must be three numbers \(translation, rotation, field of view\), got \(1.0, 1.0\)$",
        ),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {"pose_encodings": torch.zeros(4, 2, 3, 9), "target": torch.zeros(2, 3, 9)} | change
    with pytest.raises(ValueError, match=message):
        camera_loss(arguments.pop("pose_encodings"), arguments.pop("target"), arguments.pop("mask", None), **arguments)


def test_wrong_penalties():
    with pytest.raises(ValueError, match=r"^delta must be positive, got -1.0$"):
        Penalty("huber", delta=-1.0)
    with pytest.raises(ValueError, match=r"^clamp must be positive, got 0.0$"):
        Penalty(clamp=0.0)


@pytest.mark.usefixtures("unchecked")
def test_wrong_shape_of_a_mask():
    with pytest.raises(ValueError, match=r"^mask must have shape \(B, S, H, W\), got \(2, 3\)$"):
        depth_to_camera_mask(torch.ones(2, 3, dtype=torch.bool))
