"""Bundle adjustment: cameras and points that explain observations best (Triggs et al. 1999), batched over scenes.

Levenberg-Marquardt's method with the points eliminated by the Schur complement. In pure torch, on any device, so that
it serves as a block within a network too.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from geomtx.checks import check_at_least, check_count, check_finite_positive, check_mask, check_option, check_shape
from geomtx.geometry.bundle_equations import (
    BundleState,
    Equations,
    Residuals,
    Step,
    add_center_priors,
    center_residuals,
    linearize,
    residuals,
    solve,
)
from geomtx.geometry.bundle_layout import Layout, lay_out
from geomtx.geometry.robust import RobustLoss
from geomtx.layers.precision import float32_island
from geomtx.types import Bool, Cameras, Float, Int, show_shapes

__all__ = ["BundleOptions", "BundleProblem", "BundleResult", "CenterPriors", "FocalChoice", "adjust_bundle"]

FocalChoice = Literal["known", "free", "shared"]
"""Focal lengths: "known" stay as they are, "free" are refined for each view, "shared" are one pair for all views."""
_Gauge = Literal["fixed", "free"]


@show_shapes
class BundleProblem(NamedTuple):
    """Cameras, points, and where views see the points. Scenes of different sizes are padded, see `weights`.

    Attributes:
        cameras: Start of the cameras, (B, S, 3, 4) and (B, S, 3, 3); skew is not respected.
        points: Start of the points in the world of the cameras, (B, N, 3).
        view: View of each observation, (B, M) int64.
        point: Point of each observation, (B, M) int64.
        coords_px: Observations (x, y) in the pixels of the intrinsics, (B, M, 2).
        weights: Weights of the observations, such as confidences, (B, M), not negative. An observation of weight 0 is
            padding: its view and point must exist, its coordinates may be anything. Defaults to 1.
    """

    cameras: Cameras
    points: Float[Tensor, "b n 3"]
    view: Int[Tensor, "b m"]
    point: Int[Tensor, "b m"]
    coords_px: Float[Tensor, "b m 2"]
    weights: Tensor | None = None


class BundleOptions(NamedTuple):
    """What is refined, and how.

    Attributes:
        loss: Robust loss of the distance between observation and projection, see `geomtx.geometry.robust_loss`.
        loss_scale: Distance in pixels from which on the loss grows more slowly, above 0.
        focal: Whether focal lengths are "known", "free" for each view, or "shared" by all views of a scene, whose
            starting values are the mean then.
        gauge: "fixed" holds what observations don't determine: the first view's pose, unless `fixed_views` says which
            poses are known, and, where one pose alone is held, one component of the translation of the view farthest
            from it. "free" holds nothing; the damping then keeps the solution near its start.
        max_steps: Largest number of steps tried, rejected ones included; 0 leaves everything as it is.
        tolerance: Stop when a step lowers the cost by less than this share of it. What the precision can tell is the
            least.
        damping: Damping at the start, as a share of the diagonal of the normal equations, above 0.
        fixed_steps: Number of steps that are made whether or not they lower the cost, with constant damping, and
            without looking at any value; results then have gradients. Defaults to none: steps are tried, and accepted
            where they lower the cost, until `tolerance` is reached; results have no gradients.
    """

    loss: RobustLoss = "trivial"
    loss_scale: float = 1.0
    focal: FocalChoice = "known"
    gauge: _Gauge = "fixed"
    max_steps: int = 100
    tolerance: float = 1e-9
    damping: float = 1e-4
    fixed_steps: int | None = None


@show_shapes
class CenterPriors(NamedTuple):
    """Known centres of cameras, such as from GPS.

    Attributes:
        centers: Centres of the cameras in the world, (B, S, 3); of views without one, they may be anything.
        sigma: Standard deviations of the centres in units of the scene, (B, S), above 0; infinite for views without.
    """

    centers: Float[Tensor, "b s 3"]
    sigma: Float[Tensor, "b s"]


@show_shapes
class BundleResult(NamedTuple):
    """Refined cameras and points of B scenes.

    Attributes:
        cameras: Refined cameras, (B, S, 3, 4) and (B, S, 3, 3).
        points: Refined points, (B, N, 3).
        initial_cost: Half the weighted sum of the loss of the squared distances in pixels, with priors, at the start,
            (B,).
        final_cost: The same at the end, (B,).
        steps: Number of accepted steps of each scene, (B,) int64.
        rejected: Number of rejected steps of each scene, (B,) int64.
        converged: Whether the tolerance was reached, (B,) bool; False after a fixed number of steps.
    """

    cameras: Cameras
    points: Float[Tensor, "b n 3"]
    initial_cost: Float[Tensor, " b"]
    final_cost: Float[Tensor, " b"]
    steps: Int[Tensor, " b"]
    rejected: Int[Tensor, " b"]
    converged: Bool[Tensor, " b"]


class _System(NamedTuple):
    """A problem laid out for the equations: where things lie, the loss, and centres (V, 3) with precisions (V,)."""

    layout: Layout
    loss: tuple[RobustLoss, float]
    priors: tuple[Tensor, Tensor] | None


@float32_island
def adjust_bundle(
    problem: BundleProblem,
    options: BundleOptions = BundleOptions(),  # noqa: B008  (immutable)
    *,
    fixed_views: Bool[Tensor, "b s"] | None = None,
    priors: CenterPriors | None = None,
) -> BundleResult:
    """Refine cameras and points so that projections come close to the observations, in float32 or better.

    What is minimised is the cost of Ceres and COLMAP, ½ Σ w ρ(|projection - observation|²), and for priors
    ½ |centre - prior|² / σ². Observations that lie behind their camera at the start are left out, and a step that
    brings another one there is rejected. Views and points without observations stay where they are.

    Args:
        problem: Start and observations.
        options: Choice of what is refined, loss and damping; see `BundleOptions`.
        fixed_views: Views whose poses are known and held, (B, S) bool; defaults to none.
        priors: Known centres of cameras; defaults to none.

    Returns:
        Cameras, points and costs. Each scene has a damping of its own, and its result doesn't depend on the others.

    Raises:
        ValueError: If a shape is another one, an option is out of range, or an observation names a view or a point that
            doesn't exist.
    """
    _check(problem, options, fixed_views, priors)
    state, system = _prepare(problem, options, fixed_views, priors)
    if options.fixed_steps is None:
        with torch.no_grad():
            state, *report = _search(system, state, options)
    else:
        state, *report = _step_blindly(system, state, options)
    num_scenes, num_views = problem.view.shape[0], problem.cameras.intrinsics.shape[1]
    pose = torch.cat([state.rotation, state.translation[..., None]], dim=-1)
    intrinsics = problem.cameras.intrinsics
    if options.focal != "known":
        focal = state.focal[system.layout.group].unflatten(0, (num_scenes, num_views))
        diagonal = torch.cat([focal, torch.ones_like(focal[..., :1])], dim=-1)
        eye = torch.eye(3, dtype=torch.bool, device=intrinsics.device)
        intrinsics = torch.where(eye, diagonal[..., None], intrinsics)
    cameras = Cameras(pose.unflatten(0, (num_scenes, num_views)), intrinsics)
    return BundleResult(cameras, state.points.unflatten(0, (num_scenes, -1)), *report)


def _check(
    problem: BundleProblem, options: BundleOptions, fixed_views: Tensor | None, priors: CenterPriors | None
) -> None:
    num_scenes, num_views = problem.cameras.cam_from_world.shape[:2]
    check_shape("cam_from_world", problem.cameras.cam_from_world, ("B", "S", 3, 4))
    check_shape("intrinsics", problem.cameras.intrinsics, (num_scenes, num_views, 3, 3))
    check_shape("points", problem.points, (num_scenes, "N", 3))
    check_shape("view", problem.view, (num_scenes, "M"))
    shape = tuple(problem.view.shape)
    check_shape("point", problem.point, shape)
    check_shape("coords_px", problem.coords_px, (*shape, 2))
    if problem.weights is not None:
        check_shape("weights", problem.weights, shape)
    for name, index, size in (("view", problem.view, num_views), ("point", problem.point, problem.points.shape[1])):
        if index.numel() and not bool(((index >= 0) & (index < size)).all()):
            raise ValueError(f"{name} must be from 0 to {size - 1}, got {int(index.min())} to {int(index.max())}")
    if fixed_views is not None:
        check_mask("fixed_views", fixed_views, (num_scenes, num_views))
    if priors is not None:
        check_shape("centers", priors.centers, (num_scenes, num_views, 3))
        check_shape("sigma", priors.sigma, (num_scenes, num_views))
    check_option("loss", options.loss, get_args(RobustLoss))
    check_finite_positive("loss_scale", options.loss_scale)
    check_option("focal", options.focal, get_args(FocalChoice))
    check_option("gauge", options.gauge, get_args(_Gauge))
    check_count("max_steps", options.max_steps, 0)
    check_at_least("tolerance", options.tolerance, 0)
    check_finite_positive("damping", options.damping)
    if options.fixed_steps is not None:
        check_count("fixed_steps", options.fixed_steps, 0)


def _prepare(
    problem: BundleProblem, options: BundleOptions, fixed_views: Tensor | None, priors: CenterPriors | None
) -> tuple[BundleState, _System]:
    """Return the start and the layout."""
    (cam_from_world, intrinsics), points = problem.cameras, problem.points
    (num_scenes, num_views), device = intrinsics.shape[:2], points.device
    scenes = torch.arange(num_scenes, device=device)[:, None]
    views = torch.arange(num_views, device=device)
    focal, group = intrinsics.diagonal(dim1=-2, dim2=-1)[..., :2], num_views * scenes + views
    block = 6 * views[:, None] + torch.arange(6, device=device)
    num_parameters = 6 * num_views
    if options.focal == "shared":
        focal, group = focal.mean(1, keepdim=True), scenes.expand(-1, num_views)
        block = torch.cat([block, (num_parameters + torch.arange(2, device=device)).expand(num_views, 2)], dim=1)
        num_parameters += 2
    elif options.focal == "free":
        block = torch.cat([block, num_parameters + 2 * views[:, None] + torch.arange(2, device=device)], dim=1)
        num_parameters += 2 * num_views
    pose = cam_from_world.flatten(0, 1)
    state = BundleState(pose[..., :3], pose[..., 3], focal.flatten(0, 1), points.flatten(0, 1))
    weights = problem.coords_px.new_ones(problem.view.shape) if problem.weights is None else problem.weights
    with torch.no_grad():
        in_front = _depth(problem) > 0
        free = _free_parameters(cam_from_world, fixed_views, options.gauge)
        free = torch.nn.functional.pad(free, (0, num_parameters - 6 * num_views), value=1.0)
    principal = intrinsics[..., :2, 2][scenes, problem.view]
    layout = lay_out(
        problem.view,
        problem.point,
        (problem.coords_px - principal, torch.where(in_front, weights, 0.0)),
        sizes=(num_scenes, num_views, points.shape[1]),
        block=block,
        free=free,
        group=group.flatten(),
    )
    return state, _System(layout, (options.loss, options.loss_scale), _prior_precisions(priors))


def _depth(problem: BundleProblem) -> Tensor:
    """Return the depth of the point of each observation, (B, M)."""
    scenes = torch.arange(len(problem.view), device=problem.view.device)[:, None]
    third = problem.cameras.cam_from_world[:, :, 2]
    # A point of all pairs is cheaper than a row of each observation, where many views see it.
    x, y, z, shift = (third[..., axis].gather(1, problem.view) for axis in range(4))
    points = [problem.points[..., axis][scenes, problem.point] for axis in range(3)]
    return x * points[0] + y * points[1] + z * points[2] + shift


def _prior_precisions(priors: CenterPriors | None) -> tuple[Tensor, Tensor] | None:
    if priors is None:
        return None
    return priors.centers.flatten(0, 1), priors.sigma.flatten().square().reciprocal()


def _free_parameters(cam_from_world: Tensor, fixed_views: Tensor | None, gauge: _Gauge) -> Tensor:
    """Return which of the six numbers of each pose are refined, (B, 6·S) as 1 and 0."""
    num_scenes, num_views = cam_from_world.shape[:2]
    none = cam_from_world.new_zeros(num_scenes, num_views, dtype=torch.bool)
    fixed = none if fixed_views is None else fixed_views.clone()
    scale = none[..., None].repeat(1, 1, 6)
    if gauge == "fixed":
        # The first of the known views, or the first of all.
        first = fixed.to(torch.uint8).argmax(1)
        scenes = torch.arange(num_scenes, device=fixed.device)
        fixed[scenes, first] = True
        rotation, translation = cam_from_world[..., :3], cam_from_world[..., 3:]
        centers = -(rotation.mT @ translation).squeeze(-1)
        # How each translation changes when the scene is scaled about the first centre.
        change = (rotation @ (centers[scenes, first][:, None] - centers)[..., None]).squeeze(-1)
        farthest = change.square().sum(-1).argmax(1)
        component = change[scenes, farthest].abs().argmax(1)
        scale[scenes, farthest, 3 + component] = fixed.sum(1) == 1
    return (~(fixed[..., None] | scale)).to(cam_from_world.dtype).flatten(1)


def _look(system: _System, state: BundleState) -> tuple[Residuals, Tensor, tuple[Tensor, Tensor, Tensor] | None]:
    """Return residuals, the cost of each scene with priors, and what the priors give."""
    at = residuals(system.layout, state, system.loss)
    if system.priors is None:
        return at, at.cost, None
    centers = center_residuals(state, system.priors, system.layout.sizes[0])
    return at, at.cost + centers[2], centers


def _equations(system: _System, state: BundleState, at: Residuals, centers: tuple | None) -> Equations:
    equations = linearize(system.layout, state, at)
    if centers is None or system.priors is None:
        return equations
    return add_center_priors(system.layout, equations, system.priors[1], centers)


def _step_blindly(system: _System, state: BundleState, options: BundleOptions) -> tuple:
    at, initial, centers = _look(system, state)
    damping, cost = torch.full_like(initial, options.damping), initial
    for _ in range(options.fixed_steps or 0):
        state = solve(system.layout, state, _equations(system, state, at, centers), damping).state
        at, cost, centers = _look(system, state)
    steps = torch.full_like(initial, options.fixed_steps or 0, dtype=torch.long)
    none = torch.zeros_like(steps)
    return state, initial, cost, steps, none, none.bool()


class _Search(NamedTuple):
    """Where the search stands; all but the state are (B,).

    Attributes:
        state: Best cameras and points so far.
        cost: Their cost.
        damping: Damping of the next step.
        growth: Factor of the damping when the next step is rejected.
        steps: Number of accepted steps.
        rejected: Number of rejected steps.
        converged: Whether the tolerance is reached.
    """

    state: BundleState
    cost: Tensor
    damping: Tensor
    growth: Tensor
    steps: Tensor
    rejected: Tensor
    converged: Tensor


_LEAST_GAIN = 1e-3  # share of the predicted decrease that a step must reach, as in Ceres
_LARGEST_DAMPING = 1e16


def _search(system: _System, state: BundleState, options: BundleOptions) -> tuple:
    """Try steps until every scene has converged; the damping follows Nielsen's rule, as in Ceres."""
    at, initial, centers = _look(system, state)
    none = torch.zeros_like(initial, dtype=torch.long)
    damping = torch.full_like(initial, options.damping)
    # Nothing can be gained where nothing is left.
    now = _Search(state, initial, damping, torch.full_like(initial, 2.0), none, none, initial <= 0)
    tolerance = max(options.tolerance, 16 * torch.finfo(initial.dtype).eps)
    equations: Equations | None = None
    for _ in range(options.max_steps):
        done = now.converged | (now.damping > _LARGEST_DAMPING)
        if bool(done.all()):
            break
        if equations is None:
            equations = _equations(system, now.state, at, centers)
        step = solve(system.layout, now.state, equations, now.damping)
        tried, cost, tried_centers = _look(system, step.state)
        accepted = ~done & (now.cost - cost > _LEAST_GAIN * step.decrease) & (step.decrease > 0)
        now = _decide(now, step, cost, (accepted, done), tolerance)
        if bool(accepted.all()):
            at, centers, equations = tried, tried_centers, None
        elif bool(accepted.any()):
            (at, _, centers), equations = _look(system, now.state), None
    return now.state, initial, now.cost, now.steps, now.rejected, now.converged


def _decide(now: _Search, step: Step, cost: Tensor, which: tuple[Tensor, Tensor], tolerance: float) -> _Search:
    """Take the accepted steps, and set the damping of the next ones."""
    accepted, done = which
    rejected = ~accepted & ~done
    gain = (now.cost - cost) / step.decrease
    shrink = (1 - (2 * gain - 1) ** 3).clamp(min=1 / 3)
    damping = torch.where(accepted, now.damping * shrink, torch.where(rejected, now.damping * now.growth, now.damping))
    small = (now.cost - cost <= tolerance * now.cost) & accepted
    # A step that promises nothing more is rejected for the rounding of the costs alone.
    nothing = (step.decrease <= tolerance * now.cost) & rejected & step.decrease.isfinite()
    return _Search(
        BundleState(*(_choose(accepted, new, old) for new, old in zip(step.state, now.state, strict=True))),
        torch.where(accepted, cost, now.cost),
        damping,
        torch.where(accepted, 2.0, torch.where(rejected, 2 * now.growth, now.growth)),
        now.steps + accepted,
        now.rejected + rejected,
        now.converged | small | nothing,
    )


def _choose(scenes: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Return the rows of scenes that took a step anew, those of the others as they were."""
    rows = scenes.repeat_interleave(len(new) // len(scenes))
    return torch.where(rows.view(-1, *(1,) * (new.ndim - 1)), new, old)
