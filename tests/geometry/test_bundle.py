"""Bundle adjustment: published costs, exact solutions, batches, gradients, gauges, priors and robust losses."""

import functools

import numpy as np
import pytest
import torch
from torch import Tensor

from geometry.bundle_problem import draw_arrays, draw_problem, poses, to_problem
from geomtx.geometry import BundleOptions, BundleProblem, BundleResult, CenterPriors, adjust_bundle, project
from geomtx.geometry.robust import robust_loss
from geomtx.geometry.similarity import apply_similarity, fit_similarity
from geomtx.types import Cameras

LOSSES = ("trivial", "soft_l1", "huber", "cauchy")


@functools.cache
def reference() -> BundleProblem:
    return draw_problem()


def small(seed: int = 1, num_views: int = 5, num_points: int = 40, **options: float) -> BundleProblem:
    """Most points are seen by four views or five."""
    return draw_problem(seed, num_views, num_points, **{"keep": 0.9, **options})


def centers_of(cam_from_world: Tensor) -> Tensor:
    return -(cam_from_world[..., :3].mT @ cam_from_world[..., 3:]).squeeze(-1)


def distances(problem: BundleProblem, result: BundleResult) -> Tensor:
    """Of projections from observations, in pixels, of a batch of one."""
    coords, _ = project(result.points, result.cameras.intrinsics[0], result.cameras.cam_from_world[0])
    return (coords[problem.view[0], problem.point[0]] - problem.coords_px[0]).norm(dim=-1)


def pad(problem: BundleProblem, num_views: int, num_points: int, num_observations: int) -> BundleProblem:
    """The same problem with views, points and observations of weight 0 behind its own; their pixels are NaN."""

    def grow(values: Tensor, size: int, fill: float = 0.0) -> Tensor:
        shape = (1, size - values.shape[1], *values.shape[2:])
        return torch.cat([values, torch.full(shape, fill, dtype=values.dtype)], dim=1)

    (pose, intrinsics), points, view, point, coords, _ = problem
    more = torch.eye(3, 4, dtype=pose.dtype).expand(1, num_views - pose.shape[1], 3, 4)
    cameras = Cameras(
        torch.cat([pose, more], dim=1),
        torch.cat([intrinsics, intrinsics[:, :1].expand(1, more.shape[1], 3, 3)], dim=1),
    )
    index = (grow(each, num_observations, 0) for each in (view, point))
    weights = grow(torch.ones_like(coords[..., 0]), num_observations)
    return BundleProblem(cameras, grow(points, num_points), *index, grow(coords, num_observations, torch.nan), weights)


def join(problems: list[BundleProblem]) -> BundleProblem:
    cameras = Cameras(*(torch.cat(each) for each in zip(*(p.cameras for p in problems), strict=True)))
    return BundleProblem(cameras, *(torch.cat(each) for each in zip(*(p[1:] for p in problems), strict=True)))


# The problem whose costs are known from Ceres


def test_the_problem_is_the_one_with_known_costs():
    arrays = draw_arrays()
    sums = [each.sum() for each in (arrays.X, arrays.pixels, arrays.C0, arrays.X0)]
    assert sums == pytest.approx([8.656134, 11134685.888772, 0.130283, 7.556634], abs=1e-6)
    nothing = BundleOptions(max_steps=0)
    start, truth = adjust_bundle(reference(), nothing), adjust_bundle(to_problem(arrays, at_truth=True), nothing)
    assert start.initial_cost.item() == start.final_cost.item() == pytest.approx(4686894.80, abs=0.01)
    assert truth.final_cost.item() == pytest.approx(20030.12, abs=0.01)


@pytest.mark.parametrize(("options", "cost"), [
    (BundleOptions(), 16936.6515),
    (BundleOptions(gauge="free"), 16936.6515),
    (BundleOptions(focal="shared"), 16936.5808),
    (BundleOptions(fixed_steps=4), 16936.6515),
    (BundleOptions("soft_l1"), 11419.41),
])  # fmt: skip
def test_costs_of_ceres_are_reached(options, cost):
    result = adjust_bundle(reference(), options)
    assert result.final_cost.item() == pytest.approx(cost, rel=1e-6)
    assert result.converged.item() == (options.fixed_steps is None)
    if options.loss == "trivial":
        assert result.steps.item() + result.rejected.item() <= 5


def test_errors_to_the_truth_are_those_of_ceres():
    arrays, result = draw_arrays(), adjust_bundle(reference())
    ours = torch.cat([centers_of(result.cameras.cam_from_world[0]), result.points[0]])
    true = torch.cat([torch.from_numpy(arrays.C), torch.from_numpy(arrays.X)])
    errors = (apply_similarity(fit_similarity(ours, true), ours) - true).square().sum(-1)
    assert errors[:20].mean().sqrt().item() == pytest.approx(0.00311, abs=1e-5)
    assert errors[20:].mean().sqrt().item() == pytest.approx(0.00580, abs=1e-5)
    assert distances(reference(), result).square().mean().sqrt().item() == pytest.approx(1.3039, abs=1e-4)


def test_float32_reaches_the_cost():
    problem = reference()
    cameras = Cameras(*(each.float() for each in problem.cameras))
    single = problem._replace(cameras=cameras, points=problem.points.float(), coords_px=problem.coords_px.float())
    result = adjust_bundle(single)
    assert {each.dtype for each in (*result.cameras, result.points, result.final_cost)} == {torch.float32}
    assert result.final_cost.item() == pytest.approx(16936.6515, rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("focal", ["known", "shared", "free"])
def test_exact_observations_are_explained_exactly(loss, focal):
    problem = small(noise=0.0, num_views=8)
    if focal != "known":
        problem = problem._replace(cameras=problem.cameras._replace(intrinsics=stretched(problem.cameras.intrinsics)))
    result = adjust_bundle(problem, BundleOptions(loss, focal=focal, tolerance=1e-15))
    assert distances(problem, result).max() < 1e-5


def stretched(intrinsics: Tensor) -> Tensor:
    factors = torch.tensor([[1.02, 1, 1], [1, 0.97, 1], [1, 1, 1]], dtype=torch.float64)
    return intrinsics * factors


def test_shared_focal_lengths_are_one_pair_and_free_ones_are_many():
    problem = small(noise=0.5, num_views=6)
    shared, free = (adjust_bundle(problem, BundleOptions(focal=focal, max_steps=20)) for focal in ("shared", "free"))
    assert (shared.cameras.intrinsics == shared.cameras.intrinsics[:, :1]).all()
    assert len(free.cameras.intrinsics[0, :, 0, 0].unique()) == 6
    assert free.final_cost < shared.final_cost
    # The principal point is not refined.
    assert torch.equal(free.cameras.intrinsics[..., 2], problem.cameras.intrinsics[..., 2])


# Batches


def test_scenes_of_different_sizes_are_refined_as_if_alone():
    options = BundleOptions("huber", focal="shared", max_steps=25)
    alone = [small(1, 5, 40), small(2, 8, 25, noise=3.0, turn=6.0), small(3, 3, 60, noise=0.1)]
    most = [max(sizes) for sizes in zip(*((p.view.shape[1], *map(len, (p.points[0], p.cameras[0][0]))) for p in alone),
                                        strict=True)]  # fmt: skip
    together = adjust_bundle(join([pad(p, most[2], most[1], most[0] + 7) for p in alone]), options)
    for index, problem in enumerate(alone):
        one, num_views, num_points = (
            adjust_bundle(problem, options),
            *problem.cameras[0].shape[1:2],
            problem.points.shape[1],
        )
        assert together.final_cost[index].item() == pytest.approx(one.final_cost.item(), rel=1e-9)
        assert (together.steps[index], together.rejected[index]) == (one.steps.item(), one.rejected.item())
        assert together.converged[index] == one.converged
        torch.testing.assert_close(together.points[index, :num_points], one.points[0], rtol=0, atol=1e-8)
        pose = together.cameras.cam_from_world[index, :num_views]
        torch.testing.assert_close(pose, one.cameras.cam_from_world[0], rtol=0, atol=1e-8)


@pytest.mark.parametrize("focal", ["known", "shared"])
def test_points_in_several_parts_give_the_same(monkeypatch, focal):
    both = join([pad(small(1), 6, 50, 290), pad(small(2, 6, 50), 6, 50, 290)])
    want = adjust_bundle(both, BundleOptions(focal=focal, max_steps=6))
    monkeypatch.setattr("geomtx.geometry.bundle_layout._LARGEST_MATRIX", 3 * 2 * 38 * 16)
    got = adjust_bundle(both, BundleOptions(focal=focal, max_steps=6))
    torch.testing.assert_close(got.final_cost, want.final_cost, rtol=1e-10, atol=0)
    torch.testing.assert_close(got.points, want.points, rtol=0, atol=1e-8)


def test_order_of_the_observations_does_not_matter():
    problem, order = small(), torch.randperm(small().view.shape[1])
    view, point, coords = (each[:, order] for each in (problem.view, problem.point, problem.coords_px))
    shuffled = adjust_bundle(problem._replace(view=view, point=point, coords_px=coords))
    torch.testing.assert_close(shuffled.points, adjust_bundle(problem).points, rtol=0, atol=1e-8)


def test_a_weight_of_two_is_an_observation_given_twice():
    problem = small()
    weights = torch.ones_like(problem.coords_px[..., 0])
    weights[:, ::3] = 2
    twice = {name: torch.cat([value, value[:, ::3]], dim=1) for name, value in problem._asdict().items()
             if name in ("view", "point", "coords_px")}  # fmt: skip
    once = adjust_bundle(problem._replace(weights=weights))
    torch.testing.assert_close(once.points, adjust_bundle(problem._replace(**twice)).points, rtol=0, atol=1e-8)


# Gradients


@pytest.mark.parametrize("options", [
    BundleOptions(fixed_steps=4),
    BundleOptions("cauchy", 2.0, focal="shared", fixed_steps=3),
])  # fmt: skip
def test_gradients_are_those_of_finite_differences(options):
    problem = small(num_points=30)
    num = problem.view.shape[1]
    known = CenterPriors(torch.from_numpy(draw_arrays(1, 5, 30).C)[None], torch.full((1, 5), 0.1).double())
    inputs = {
        "observations": problem.coords_px, "confidences": 0.5 + torch.rand(1, num).double(),
        "poses": problem.cameras.cam_from_world, "points": problem.points, "centres": known.centers,
    }  # fmt: skip
    out = torch.randn(1, 5, 3, 4).double(), torch.randn(1, 30, 3).double()

    def value(given: dict[str, Tensor]) -> Tensor:
        cameras = problem.cameras._replace(cam_from_world=given["poses"])
        result = adjust_bundle(
            BundleProblem(cameras, given["points"], *problem[2:4], given["observations"], given["confidences"]),
            options,
            priors=known._replace(centers=given["centres"]),
        )
        return (result.cameras.cam_from_world * out[0]).sum() + (result.points * out[1]).sum()

    leaves = {name: each.clone().requires_grad_() for name, each in inputs.items()}
    gradients = dict(zip(leaves, torch.autograd.grad(value(leaves), list(leaves.values())), strict=True))
    step = 1e-5
    for name, each in inputs.items():
        direction = torch.randn_like(each)
        ahead, behind = (value({**inputs, name: each + sign * step * direction}) for sign in (1, -1))
        want = ((ahead - behind) / (2 * step)).item()
        assert (gradients[name] * direction).sum().item() == pytest.approx(want, rel=1e-6, abs=1e-7), name


def test_gradients_are_finite_with_padding():
    problem = pad(small(), 7, 50, 300)
    leaves = [problem.coords_px.requires_grad_(), problem.weights.requires_grad_()]
    result = adjust_bundle(problem, BundleOptions("soft_l1", focal="free", fixed_steps=2))
    (result.points.sum() + result.cameras.cam_from_world.sum()).backward()
    assert all(leaf.grad.isfinite().all() and leaf.grad.any() for leaf in leaves)


# What is held


def test_the_first_pose_and_the_scale_are_held():
    problem, result = small(), adjust_bundle(small())
    before, after = (each.cameras.cam_from_world[0] for each in (problem, result))
    assert torch.equal(after[0], before[0])
    far = (centers_of(before) - centers_of(before)[0]).norm(dim=-1).argmax()
    assert (after[far, :, 3] == before[far, :, 3]).sum() == 1
    assert (after[1:, :, :3] != before[1:, :, :3]).all()


@pytest.mark.parametrize("num", [1, 2, 5])
def test_known_poses_are_held(num):
    arrays = draw_arrays(1, 5, 40, keep=1.0, noise=0.0)
    problem, fixed = to_problem(arrays), torch.arange(5)[None] >= 5 - num
    pose = torch.where(fixed[..., None, None], poses(arrays.R, arrays.C), problem.cameras.cam_from_world)
    problem = problem._replace(cameras=problem.cameras._replace(cam_from_world=pose))
    result = adjust_bundle(problem, BundleOptions(tolerance=1e-15), fixed_views=fixed)
    assert torch.equal(result.cameras.cam_from_world[fixed], pose[fixed])
    assert distances(problem, result).max() < 1e-5
    # Two known poses give the scale.
    if num > 1:
        torch.testing.assert_close(result.points[0], torch.from_numpy(arrays.X), rtol=0, atol=1e-6)


def test_known_centres_give_place_and_scale():
    arrays = draw_arrays(1, 8, 40, keep=1.0, noise=0.0)
    sigma = torch.full((1, 8), 0.01).double()
    sigma[0, 3] = torch.inf
    centers = torch.from_numpy(arrays.C)[None].clone()
    centers[0, 3] = torch.nan
    problem = to_problem(arrays)
    result = adjust_bundle(problem, BundleOptions(gauge="free"), priors=CenterPriors(centers, sigma))
    # The priors alone hold the world: the truth is the only minimum.
    torch.testing.assert_close(result.points[0], torch.from_numpy(arrays.X), rtol=0, atol=1e-4)
    assert result.final_cost < 1e-6 < result.initial_cost


def test_what_nothing_sees_stays():
    problem = pad(small(), 7, 50, 300)
    moved = problem.cameras.cam_from_world.clone()
    moved[0, 5:, 0, 3] = 4.0
    problem = problem._replace(cameras=problem.cameras._replace(cam_from_world=moved))
    result = adjust_bundle(problem, BundleOptions(focal="free"))
    assert torch.equal(result.cameras.cam_from_world[0, 5:], moved[0, 5:])
    assert torch.equal(result.points[0, 40:], problem.points[0, 40:])
    assert result.converged.all()


def test_points_behind_a_camera_are_left_out():
    problem = small(noise=0.0)
    points = problem.points.clone()
    points[0, 0] = centers_of(problem.cameras.cam_from_world)[0].mean(0) + torch.tensor([0, 100.0, 0]).double()
    result = adjust_bundle(problem._replace(points=points), BundleOptions(tolerance=1e-15))
    in_front = project(points, *reversed([each[0] for each in problem.cameras]))[1][:, 0] > 0
    counted = (problem.point[0] != 0) | in_front[problem.view[0]]
    assert not counted.all()
    assert distances(problem, result)[counted].max() < 1e-5


def test_a_step_behind_a_camera_is_rejected():
    """One point seen at a slant by two cameras, whose rays meet behind them: Gauss-Newton would go there."""
    pose = torch.eye(3, 4).double().repeat(1, 2, 1, 1)
    pose[0, 1, 0, 3] = -1.0
    coords = torch.tensor([[[-0.2, 0.0], [0.2, 0.0]]]).double()
    problem = BundleProblem(
        Cameras(pose, torch.eye(3).double().expand(1, 2, 3, 3)), torch.tensor([[[0.5, 0.0, 3.0]]]).double(),
        torch.tensor([[0, 1]]), torch.tensor([[0, 0]]), coords,
    )  # fmt: skip
    fixed = torch.ones(1, 2, dtype=torch.bool)
    result = adjust_bundle(problem, BundleOptions(max_steps=20), fixed_views=fixed)
    assert result.points[0, 0, 2] > 3
    assert result.final_cost < result.initial_cost
    assert result.final_cost.isfinite()


# Robust losses


@pytest.mark.parametrize("kind", LOSSES)
def test_losses_are_the_squares_near_zero_and_have_their_derivatives(kind):
    squared = torch.linspace(0, 9, 200, dtype=torch.float64, requires_grad=True)
    rho, slope = robust_loss(squared, kind, 1.3)
    torch.testing.assert_close(torch.autograd.grad(rho.sum(), squared)[0], slope.detach(), rtol=1e-12, atol=0)
    assert rho[0] == 0
    assert slope[0] == 1
    assert (slope.diff() <= 0).all()


def test_robust_losses_withstand_outliers():
    arrays = draw_arrays(4, 8, 80, keep=1.0)
    wrong = torch.rand(len(arrays.view)) < 0.05
    problem, true = to_problem(arrays), torch.from_numpy(arrays.X)
    shift = torch.zeros_like(problem.coords_px)
    shift[0, wrong] = 100 * torch.rand(int(wrong.sum()), 2).double() - 50
    errors = {}
    for loss in LOSSES:
        points = adjust_bundle(problem._replace(coords_px=problem.coords_px + shift), BundleOptions(loss, 2.0)).points[
            0
        ]
        errors[loss] = (apply_similarity(fit_similarity(points, true), points) - true).norm().item()
    assert max(errors["soft_l1"], errors["huber"], errors["cauchy"]) < 0.5 * errors["trivial"]


@pytest.mark.parametrize("loss", LOSSES)
def test_pycolmap_reaches_the_same_cost(loss):
    pytest.importorskip("pycolmap")
    from geometry.bundle_pycolmap import solve_pycolmap

    arrays = draw_arrays(5, 6, 60)
    # COLMAP takes no point that a single view sees.
    several = (np.bincount(arrays.point, minlength=60) > 1)[arrays.point]
    view, point, pixels = (each[several] for each in arrays[-3:])
    arrays = arrays._replace(view=view, point=point, pixels=pixels)
    ours = adjust_bundle(to_problem(arrays), BundleOptions(loss))
    theirs = solve_pycolmap(arrays, loss, tolerance=1e-12)
    assert ours.initial_cost.item() == pytest.approx(theirs.initial_cost, rel=1e-9)
    # pycolmap may stop a little above, at its largest number of steps.
    assert theirs.final_cost * (1 - 1e-4) < ours.final_cost.item() < theirs.final_cost * (1 + 1e-6)


# Bad input


@pytest.mark.parametrize(("changes", "message"), [
    ({"point": torch.full((1, 8), 3)}, r"^point must be from 0 to 2, got 3 to 3"),
    ({"view": torch.full((1, 8), -1)}, r"^view must be from 0 to 1, got -1 to -1"),
    ({"coords_px": torch.zeros(1, 7, 2)}, r"^coords_px must have shape \(1, 8, 2\)"),
    ({"weights": torch.ones(1, 2)}, r"^weights must have shape \(1, 8\)"),
])  # fmt: skip
def test_problems_that_do_not_fit(unchecked, changes, message):
    cameras = Cameras(torch.eye(3, 4).expand(1, 2, 3, 4), torch.eye(3).expand(1, 2, 3, 3))
    index = torch.zeros(1, 8, dtype=torch.long)
    problem = BundleProblem(cameras, torch.ones(1, 3, 3), index, index, torch.zeros(1, 8, 2))
    with pytest.raises(ValueError, match=message):
        adjust_bundle(problem._replace(**changes))


@pytest.mark.parametrize(("options", "message"), [
    (BundleOptions(loss="tukey"), "^loss must be one of 'trivial'"),
    (BundleOptions(focal="own"), "^focal must be one of 'known'"),
    (BundleOptions(gauge="none"), "^gauge must be one of 'fixed'"),
    (BundleOptions(loss_scale=0.0), "^loss_scale must be positive"),
    (BundleOptions(damping=0.0), "^damping must be positive"),
    (BundleOptions(max_steps=-1), "^max_steps must be a whole number"),
    (BundleOptions(fixed_steps=-1), "^fixed_steps must be a whole number"),
    (BundleOptions(tolerance=-1.0), "^tolerance must be at least 0"),
])  # fmt: skip
def test_options_that_do_not_exist(options, message):
    with pytest.raises(ValueError, match=message):
        adjust_bundle(small(), options)
