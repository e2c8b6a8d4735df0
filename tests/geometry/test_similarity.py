import pytest
import torch
from torch import Tensor

from geometry.random_cameras import AXES, random_rotations, rodrigues
from geomtx import fit_similarity
from geomtx.geometry import Similarity, apply_similarity


def random_points(*shape: int) -> Tensor:
    return torch.randn(*shape, 3, dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.5]) + torch.randn(3).double()


def random_similarity(*shape: int) -> Similarity:
    scale = torch.rand(shape, dtype=torch.float64) * 9.9 + 0.1
    return Similarity(scale, random_rotations(*shape), torch.randn(*shape, 3, dtype=torch.float64) * 5)


def assert_same(got: Similarity, expected: Similarity, atol: float = 1e-10) -> None:
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


def cost(similarity: Similarity, source: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    return (weights * (apply_similarity(similarity, source) - target).square().sum(-1)).sum(-1)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_recovers_any_similarity(shape):
    source, truth = random_points(*shape, 12), random_similarity(*shape)
    assert_same(fit_similarity(source, apply_similarity(truth, source)), truth)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("angle", [1e-7, 1.0, 3.1415926535])
def test_recovers_rotations_up_to_half_a_turn_from_a_plane_of_points(axis, angle):
    source = random_points(6)
    source[:, 2] = 0
    truth = random_similarity()._replace(rotation=rodrigues(axis, angle))
    assert_same(fit_similarity(source, apply_similarity(truth, source)), truth)


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_the_unit_of_the_points_does_not_matter(unit):
    source, truth = random_points(12) * unit, random_similarity()
    truth = truth._replace(translation=truth.translation * unit)
    fitted = fit_similarity(source, apply_similarity(truth, source))
    assert_same(fitted._replace(translation=fitted.translation / unit), truth._replace(translation=truth[2] / unit))


def test_a_mirror_image_is_turned_not_mirrored():
    """The best proper rotation, by Umeyama's formulas written out with an SVD."""
    source = random_points(4, 20)
    target = source * torch.tensor([1.0, 1.0, -1.0]) + torch.randn(4, 20, 3) * 0.1
    fitted = fit_similarity(source, target)
    torch.testing.assert_close(fitted.rotation.det(), torch.ones(4).double())
    x, y = source - source.mean(-2, keepdim=True), target - target.mean(-2, keepdim=True)
    u, d, vt = torch.linalg.svd(y.mT @ x / 20)
    sign = torch.ones(4, 3).double()
    sign[:, 2] = (u @ vt).det()
    assert (sign[:, 2] < 0).all()
    rotation = u @ (sign[..., None] * vt)
    scale = (d * sign).sum(-1) / x.square().sum(-1).mean(-1)
    translation = target.mean(-2) - scale[:, None] * (rotation @ source.mean(-2)[..., None]).squeeze(-1)
    assert_same(fitted, Similarity(scale, rotation, translation))


def test_no_neighbour_is_better():
    source, target, weights = random_points(3, 10), random_points(3, 10), torch.rand(3, 10).double()
    best = fit_similarity(source, target, weights)
    for _ in range(50):
        axis, size = torch.randn(3), 10 ** (-3 * torch.rand(()).item())
        turned = rodrigues(axis, size) @ best.rotation
        near = Similarity(
            best.scale * (1 + size * torch.randn(3)), turned, best.translation + size * torch.randn(3, 3).double()
        )
        assert (cost(near, source, target, weights) >= cost(best, source, target, weights)).all()


def test_weights_are_repetitions():
    source, target = random_points(6), random_points(6)
    counts = torch.tensor([1, 3, 2, 0, 1, 4])
    repeated = fit_similarity(source.repeat_interleave(counts, 0), target.repeat_interleave(counts, 0))
    assert_same(fit_similarity(source, target, counts.double() * 0.37), repeated)


def test_pairs_of_weight_zero_count_for_nothing():
    source, target = random_points(2, 9).requires_grad_(), random_points(2, 9).requires_grad_()
    mask = torch.rand(2, 9) < 0.6
    mask[:, :4], mask[:, -1] = True, False
    bad_source = torch.where(mask[..., None], source, float("nan"))
    bad_target = torch.where(mask[..., None], target, float("inf"))
    fitted = fit_similarity(bad_source, bad_target, mask)
    for scene in range(2):
        assert_same(
            Similarity(*(part[scene] for part in fitted)),
            fit_similarity(source[scene][mask[scene]], target[scene][mask[scene]]),
        )
    sum(part.sum() for part in fitted).backward()
    assert source.grad.isfinite().all()
    assert (source.grad[~mask] == 0).all()
    assert (target.grad[mask] != 0).all()


def test_gradients():
    source, target = random_points(7).requires_grad_(), random_points(7).requires_grad_()
    torch.autograd.gradcheck(fit_similarity, (source, target, torch.rand(7).double()))


IDENTITY = torch.eye(3, dtype=torch.float64)


@pytest.mark.parametrize("value", [0.0, 0.3, 1e4])
def test_points_in_one_place_are_only_moved(value):
    source = torch.full((5, 3), value, dtype=torch.float64).requires_grad_()
    target = random_points(5)
    fitted = fit_similarity(source, target)
    assert_same(fitted, Similarity(torch.ones(()).double(), IDENTITY, target.mean(0) - value))
    sum(part.sum() for part in fitted).backward()
    assert source.grad.isfinite().all()


def test_a_target_in_one_place_has_scale_zero():
    fitted = fit_similarity(random_points(5), torch.ones(5, 3).double())
    assert_same(fitted, Similarity(torch.zeros(()).double(), IDENTITY, torch.ones(3).double()))


def test_no_weight_is_the_identity():
    source = torch.full((4, 3), float("nan"), dtype=torch.float64).requires_grad_()
    fitted = fit_similarity(source, source, torch.zeros(4, dtype=torch.bool))
    assert_same(fitted, Similarity(torch.ones(()).double(), IDENTITY, torch.zeros(3).double()))
    sum(part.sum() for part in fitted).backward()
    assert (source.grad == 0).all()


def test_points_on_a_line_are_fitted_by_one_of_the_rotations():
    source = torch.randn(6, 1).double() * torch.tensor([1.0, 2.0, -3.0])
    target = apply_similarity(random_similarity(), source)
    fitted = fit_similarity(source, target)
    torch.testing.assert_close(apply_similarity(fitted, source), target)
    torch.testing.assert_close(fitted.rotation @ fitted.rotation.mT, IDENTITY)


CUBE = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        pytest.param(CUBE, CUBE, id="symmetric"),
        pytest.param(CUBE, -CUBE, id="mirrored"),
        pytest.param(CUBE * torch.tensor([1.0, 1.0, 0.0]), CUBE * torch.tensor([2.0, 2.0, 0.0]), id="plane"),
        pytest.param(CUBE * torch.tensor([1.0, 0.0, 0.0]), CUBE * torch.tensor([0.0, 1.0, 0.0]), id="line"),
        pytest.param(CUBE[:2], CUBE[2:4], id="two points"),
        pytest.param(CUBE[:1], CUBE[1:2], id="one point"),
        pytest.param(CUBE, CUBE * 0 + 3, id="target in one place"),
    ],
)
def test_gradients_are_finite_where_the_answer_is_delicate(source, target, dtype):
    inputs = [x.to(dtype).clone().requires_grad_() for x in (source, target, torch.ones(len(source)))]
    sum(part.square().sum() for part in fit_similarity(*inputs)).backward()
    assert all(x.grad.isfinite().all() for x in inputs)


def test_small_clouds_far_from_the_origin_are_fitted_in_float32():
    """A thousand times their size away, float32 still has four digits of them."""
    source, similarity = random_points(200).float() + 1000, random_similarity()
    similarity = Similarity(*(part.float() for part in similarity))
    fitted = fit_similarity(source, apply_similarity(similarity, source))
    torch.testing.assert_close(fitted.rotation, similarity.rotation, rtol=0, atol=1e-3)
    torch.testing.assert_close(fitted.scale, similarity.scale, rtol=1e-3, atol=0)


def test_precision_in_and_out():
    source, target = random_points(8), random_points(8)
    exact = fit_similarity(source, target)
    half = fit_similarity(source.bfloat16(), target.bfloat16())
    assert half.scale.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        single = fit_similarity(source.float(), target.float())
    assert_same(Similarity(*(part.double() for part in single)), exact, atol=1e-5)


@pytest.mark.usefixtures("unchecked")
def test_what_is_refused():
    points = torch.zeros(2, 5, 3)
    with pytest.raises(ValueError, match=r"^source must have shape \(\.\.\., N, 3\), got \(2, 5, 2\)$"):
        fit_similarity(points[..., :2], points)
    with pytest.raises(ValueError, match=r"^target must "):
        fit_similarity(points, points[:, :4])
    with pytest.raises(ValueError, match=r"^weights must "):
        fit_similarity(points, points, torch.ones(5))
    with pytest.raises(ValueError, match=r"^source must "):
        fit_similarity(points.long(), points)
