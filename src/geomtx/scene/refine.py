"""Bundle adjustment of a scene: its cameras made to agree with what photos see of the same points."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from geomtx.checks import check_mask, check_option
from geomtx.geometry.bundle import BundleOptions, BundleProblem, FocalChoice, adjust_bundle
from geomtx.geometry.camera import invert_rigid, transform_points
from geomtx.geometry.robust import RobustLoss
from geomtx.geometry.rotation import rotation_angle
from geomtx.scene.observations import ObservedPoints
from geomtx.scene.points import NoPointsError
from geomtx.scene.pycolmap_bridge import has_pycolmap, solve_with_pycolmap
from geomtx.scene.scene import Scene
from geomtx.scene.surfaces import find_surfaces
from geomtx.scene.tracked_points import observe_scene
from geomtx.types import Bool, Cameras

__all__ = ["RefineSolver", "refine"]

logger = logging.getLogger(__name__)

RefineSolver = Literal["auto", "torch", "pycolmap"]
"""Solver of `refine`: "torch" is `geomtx.geometry.adjust_bundle`, "pycolmap" Ceres in the package of the extra colmap,
"auto" is "torch" up to 200 views, beyond which pycolmap's sparse matrices pay if it is installed."""

_LEAST_OBSERVATIONS = 10  # of a view; one with fewer keeps its camera
# A few wrong observations hold a poor start where it is, whatever the loss: in each round, only those count whose
# residual is at most four times the median at its start, ten times in the last. What is right comes back as the cameras
# improve.
_ROUNDS, _FAR, _FAR_AT_LAST = 3, 4.0, 10.0
_LEAST_MEDIAN = 1e-3  # pixels
_TOLERANCE = 1e-6
_LARGEST_FOCAL_CHANGE = 0.25  # of the logarithm
_MANY_VIEWS = 200
# What is more than a refinement comes of wrong observations, which short tracks let the solver explain, unless other
# photos confirm it: an observation is confirmed if it and two others of its point agree to half a percent of the image.
# Of right tracks and matches 23 to 84 % are, of wrong ones at most 5 % (benchmarks/refine.py has both). Of a camera
# that turns, only those count that a photo confirms which does not turn with it: of right ones 17 % and more, of photos
# that a repeated texture turned by 50 degrees together, 2 %.
_LARGEST_CHANGE = 2.0  # factor of a view's depth
_LARGEST_TURN = 15.0  # degrees, without confirmation
_AGREEING = 0.005  # of the longer side of the images
_LEAST_CONFIRMED, _LEAST_OF_VIEW = 0.25, 0.1  # shares of all observations, and of those of a view that turns
_UNTRUSTED = "the observations can't be trusted"


class _UnsolvableError(Exception):
    """The reason why a scene can't be refined."""


def refine(
    scene: Scene,
    observations: ObservedPoints | None = None,
    *,
    solver: RefineSolver = "auto",
    loss: RobustLoss = "cauchy",
    focal: FocalChoice | None = None,
    fixed_views: Bool[Tensor, " s"] | None = None,
    strict: bool = False,
) -> Scene:
    """Refine the cameras of a scene by bundle adjustment, and bring depth and points into agreement with them.

    Cameras and sparse points are moved so that the points project to where the photos see them. The dense depth of each
    view is then scaled by the median factor between its own depth and that of the refined points that it sees, and the
    dense points move with the camera of their view. The first view's pose stays as it is, and so does the scale of the
    scene: the median factor of all observations is 1, unless two or more poses are held.

    A view with fewer than ten observations of points that another view sees too keeps its camera. Where the scene can't
    be refined at all, it comes back unchanged, with `refined` False and the reason in `provenance["refinement"]`: too
    few observations, a solver that diverges, or observations that can't be trusted: by which the depth of a view would
    change by more than a factor of 2, or a camera would turn by more than 15 degrees without confirmation. An
    observation is confirmed if it and two more of the same point agree to 0.5 % of the longer side of the model's
    images; a quarter of all observations must be, and a tenth, at least ten, of those of each camera that turns so far,
    by a photo that does not turn with it.

    Args:
        scene: Scene with cameras, and with depth or points.
        observations: Points with the pixels that see them, such as from `geomtx.scene.track_points`; those that only
            one view sees are ignored. Defaults to the tracks of the scene; where it has less than a hundred, to its
            matched pixels, and without these to what its dense maps have in common (`geomtx.scene.observe_points`).
        solver: "torch", "pycolmap" (extra colmap), or "auto".
        loss: Robust loss of the distance between observation and projection, which grows more slowly from twice the
            median distance on. It is solved four times, each time without the observations that are farthest off.
        focal: Focal lengths that are "known" and stay, "shared" by all views, or "free" for each; defaults to "shared",
            or to "known" where photos differ in size, or where a focal length would change by more than a quarter, as
            the observations don't determine it then.
        fixed_views: Views whose poses are known and held, (S,) bool; defaults to the first view.
        strict: Whether to raise an error in place of giving the scene back unchanged.

    Returns:
        The refined scene, with `refined` True, the cameras that the model predicted in `first_cameras`, and without
        `pose_encodings`.

    Raises:
        ValueError: If the scene lacks cameras, or depth and points, or an argument is out of range; with `strict`, if
            the scene can't be refined.
        ImportError: If pycolmap is asked for and not installed.
    """
    check_option("solver", solver, get_args(RefineSolver))
    check_option("loss", loss, get_args(RobustLoss))
    if focal is not None:
        check_option("focal", focal, get_args(FocalChoice))
    if fixed_views is not None:
        check_mask("fixed_views", fixed_views, (len(scene),))
    find_surfaces(scene)  # says what a scene lacks
    if solver == "auto":
        solver = "pycolmap" if len(scene) > _MANY_VIEWS and has_pycolmap() else "torch"
    try:
        points = observe_scene(scene) if observations is None else observations
        selected = _select(scene, points, fixed_views)
        refined = _solve(selected, solver, loss, focal)
        factors = _depth_factors(scene, selected, refined)
        if selected.num_fixed < 2:
            refined, factors = _keep_scale(selected, refined, factors)
        view_factors = _view_factors(len(scene), selected, factors)
    except (_UnsolvableError, NoPointsError) as error:
        if strict:
            raise ValueError(f"scene must be one that can be refined: {error}") from error
        logger.info("not refined: %s", error)
        made = {**scene.provenance, "refinement": f"none: {error}"}
        return replace(scene, refined=False, provenance=made)
    report = f"{solver}, {loss}, focal lengths {refined.focal}: {_describe(selected, refined)}"
    logger.info("refined by %s", report)
    moved = _apply(scene, selected, refined, view_factors)
    return replace(moved, refined=True, provenance={**scene.provenance, "refinement": report})


class _Selected(NamedTuple):
    """The part of a scene that is refined.

    Attributes:
        views: Indices in the scene of the V views, (V,).
        problem: Their cameras, points and observations in pixels of the model's images, a batch of one in float64.
        fixed: Whether each of the views is held, (V,).
        num_fixed: Number of views that are held.
        one_size: Whether all photos have the same size and became images in the same way.
        agreeing_px: Distance in pixels of the model's images up to which an observation agrees with a point.
    """

    views: Tensor
    problem: BundleProblem
    fixed: Tensor
    num_fixed: int
    one_size: bool
    agreeing_px: float


class _Refined(NamedTuple):
    """Refined cameras (V, 3, 4) and (V, 3, 3), points (N, 3), residuals (M,) before and after, and the choice of focal.

    `counted` says which observations the last round used, (M,) bool.
    """

    cameras: Cameras
    points: Tensor
    before: Tensor
    after: Tensor
    focal: FocalChoice
    counted: Tensor


def _select(scene: Scene, points: ObservedPoints, fixed_views: Tensor | None) -> _Selected:
    """Keep what can be refined: points that two views or more see, views that see ten such points or more."""
    cameras = scene.predictions.cameras
    assert cameras is not None
    pose, intrinsics = cameras.cam_from_world.double(), cameras.intrinsics.double()
    num_views, num_points = len(scene), len(points.xyz)
    usable = pose.isfinite().flatten(1).all(1) & intrinsics.isfinite().flatten(1).all(1)
    coords = _to_model(scene, points)
    kept = points.xyz.isfinite().all(1)[points.point] & coords.isfinite().all(1) & usable[points.view]
    third = pose[points.view, 2]
    depth = (third[:, :3] * points.xyz[points.point]).sum(1) + third[:, 3]
    kept &= depth > 0
    while True:
        lengths = torch.bincount(points.point[kept], minlength=num_points)
        seen = torch.bincount(points.view[kept & (lengths[points.point] > 1)], minlength=num_views)
        fewer = kept & (lengths[points.point] > 1) & (seen[points.view] >= _LEAST_OBSERVATIONS)
        if int(fewer.sum()) == int(kept.sum()):
            break
        kept = fewer
    views, view = points.view[kept].unique(return_inverse=True)
    point_ids, point = points.point[kept].unique(return_inverse=True)
    # A pose has six unknowns and a point three; that of the first view and the scale are given.
    unknowns, equations = 6 * len(views) - 7 + 3 * len(point_ids), 2 * len(view)
    if len(views) < 2 or equations < unknowns:
        raise _UnsolvableError(
            f"too few observations, {len(view)} of {len(point_ids)} points that two photos or more see, "
            f"in {len(views)} photos"
        )
    fixed = torch.zeros(num_views, dtype=torch.bool) if fixed_views is None else fixed_views.cpu()
    problem = BundleProblem(
        Cameras(pose[views][None], intrinsics[views][None]),
        points.xyz[point_ids].double()[None],
        view[None],
        point[None],
        coords[kept][None],
    )
    one_size = len({(each.original_hw, each.scale) for each in scene.transforms}) == 1
    agreeing = _AGREEING * max(scene.images.shape[-2:])
    return _Selected(views, problem, fixed[views], int(fixed[views].sum()), one_size, agreeing)


def _to_model(scene: Scene, points: ObservedPoints) -> Tensor:
    """Return the observations in pixels of the model's images, (K, 2) float64."""
    coords = torch.empty_like(points.coords_px, dtype=torch.float64)
    for view, transform in enumerate(scene.transforms):
        rows = points.view == view
        coords[rows] = transform.from_original(points.coords_px[rows].double())
    return coords


def _solve(selected: _Selected, solver: RefineSolver, loss: RobustLoss, focal: FocalChoice | None) -> _Refined:
    """Solve several times, each without what is far off by now, and judge the result."""
    start = problem = selected.problem
    # Photos of one size are most often one camera's.
    choice = focal or ("shared" if selected.one_size else "known")
    for index in range(_ROUNDS + 1):
        last = index == _ROUNDS
        distances = _distances(problem)
        median = max(float(distances.median()) if index else _first_median(problem, distances), _LEAST_MEDIAN)
        counted = (distances <= (_FAR_AT_LAST if last else _FAR) * median).to(distances.dtype)
        options = BundleOptions(loss, 2 * median, choice if last else "known", tolerance=_TOLERANCE, damping=1e-3)
        tried = _solve_once(selected, problem._replace(weights=counted[None]), solver, options)
        if last and focal is None and not _keeps_focal(problem, tried):
            choice = "known"
            break
        problem = tried
    values = torch.cat([each.flatten() for each in (*problem.cameras, problem.points)])
    if not bool(values.isfinite().all()):
        raise _UnsolvableError("the solver diverged")
    before, after = _distances(start), _distances(problem)
    first_median = _first_median(start, before)
    if not bool(after.median() <= max(first_median, _LEAST_MEDIAN)):
        raise _UnsolvableError(
            f"the median reprojection error would rise from {first_median:.2f} to {after.median():.2f} pixels"
        )
    cameras = Cameras(*(each[0] for each in problem.cameras))
    counted = torch.ones_like(after) if problem.weights is None else problem.weights[0]
    _check_turns(selected, cameras, after)
    return _Refined(cameras, problem.points[0], before, after, choice, counted > 0)


def _first_median(problem: BundleProblem, distances: Tensor) -> float:
    """Return the median distance at the start, without the observation that each point starts from."""
    point = problem.point[0]
    order = distances.argsort(stable=True)
    order = order[point[order].argsort(stable=True)]
    others = distances[order][point[order].diff(prepend=point.new_tensor([-1])) == 0]
    return float(others.median())


def _check_turns(selected: _Selected, cameras: Cameras, after: Tensor) -> None:
    """Require that other photos confirm what cameras see that turn far.

    Photos that turn together, as they show the same wall, agree among themselves wherever the wall is put: what one of
    them sees is confirmed only where a photo agrees that does not turn with it.

    Args:
        selected: Part of the scene that is refined.
        cameras: Refined cameras of the V views.
        after: Distances of the observations from the projections of the refined points, (M,).

    Raises:
        _UnsolvableError: Otherwise.
    """
    before, now = (each[..., :3] for each in (selected.problem.cameras.cam_from_world[0], cameras.cam_from_world))
    degrees, turn = rotation_angle(now, before).rad2deg(), now.mT @ before
    far = ~(degrees < _LARGEST_TURN)
    if not bool(far.any()):
        return
    view, point = selected.problem.view[0], selected.problem.point[0]
    num_points = int(point.max()) + 1
    agrees = after <= selected.agreeing_px
    confirmed = agrees & (torch.bincount(point[agrees], minlength=num_points)[point] > 2)
    share = float(confirmed.double().mean())
    enough = share >= _LEAST_CONFIRMED
    for index in far.nonzero()[:, 0].tolist():
        apart = rotation_angle(turn, turn[index].expand_as(turn)).rad2deg() >= _LARGEST_TURN
        elsewhere = torch.bincount(point[agrees & apart[view]], minlength=num_points) > 0
        own = view == index
        num = int((own & confirmed & elsewhere[point]).sum())
        enough &= num >= max(_LEAST_OBSERVATIONS, _LEAST_OF_VIEW * int(own.sum()))
    if not enough:
        raise _UnsolvableError(
            f"{_UNTRUSTED}: a camera would turn by {degrees.max():.0f} degrees, and other photos confirm too little: "
            f"three agree on {100 * share:.0f} % of the observations"
        )


def _solve_once(
    selected: _Selected, problem: BundleProblem, solver: RefineSolver, options: BundleOptions
) -> BundleProblem:
    """Return the problem with its solution in place of the start."""
    if solver == "pycolmap":
        cameras, points = solve_with_pycolmap(problem, options, selected.fixed)
        return problem._replace(cameras=Cameras(*(each[None] for each in cameras)), points=points[None])
    fixed = selected.fixed[None] if selected.num_fixed else None
    with _one_thread():
        result = adjust_bundle(problem, options, fixed_views=fixed)
    return problem._replace(cameras=result.cameras, points=result.points)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: sums are the same every time then, and problems of this size gain nothing from more."""
    num = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num)


def _keeps_focal(before: BundleProblem, after: BundleProblem) -> bool:
    """Whether no focal length changed so much that the observations can't have determined it."""
    old, new = (each.cameras.intrinsics[0].diagonal(dim1=1, dim2=2)[:, :2] for each in (before, after))
    return bool(((new / old).log().abs() < _LARGEST_FOCAL_CHANGE).all())


def _distances(problem: BundleProblem) -> Tensor:
    """Return the distances of observations from projections in pixels, (M,); infinite behind a camera."""
    view, points = problem.view[0], problem.points[0, problem.point[0]]
    pose, intrinsics = (each[0, view] for each in problem.cameras)
    in_camera = (pose[..., :3] @ points[..., None]).squeeze(-1) + pose[..., 3]
    projected = (intrinsics @ in_camera[..., None]).squeeze(-1)
    distance = (projected[:, :2] / projected[:, 2:] - problem.coords_px[0]).norm(dim=-1)
    return torch.where(in_camera[:, 2] > 0, distance, torch.inf)


def _depth_factors(scene: Scene, selected: _Selected, refined: _Refined) -> Tensor:
    """Return the factor between a view's own depth and that of the refined points it sees, for observations, (M,).

    NaN where the view has no depth, or the point has gone behind it.
    """
    problem, surfaces = selected.problem, find_surfaces(scene)
    view = problem.view[0]
    own = surfaces.unproject_each(selected.views[view].numpy(), problem.coords_px[0].numpy())
    first = problem.cameras.cam_from_world[0, view, 2]
    depth = (first[:, :3] * torch.from_numpy(own)).sum(1) + first[:, 3]
    now = refined.cameras.cam_from_world[view, 2]
    new = (now[:, :3] * refined.points[problem.point[0]]).sum(1) + now[:, 3]
    factors = torch.where((new > 0) & refined.counted, new / depth, torch.nan)
    if not bool(factors.isfinite().any()):
        raise _UnsolvableError("no photo sees a refined point in front of it")
    return factors


def _keep_scale(selected: _Selected, refined: _Refined, factors: Tensor) -> tuple[_Refined, Tensor]:
    """Scale the result about the centre of the view that is held, so that the median factor of the depth is 1."""
    scale = 1 / factors.nanmedian()
    cam_from_world, intrinsics = refined.cameras
    held = int(selected.fixed.to(torch.uint8).argmax())
    center = invert_rigid(cam_from_world[held])[:, 3]
    # R (c + (x - c) / s) + t has the image of s (R x + t), with x of the scaled world.
    shift = scale * (cam_from_world[..., :3] @ center + cam_from_world[..., 3]) - cam_from_world[..., :3] @ center
    moved = torch.cat([cam_from_world[..., :3], shift[..., None]], dim=-1)
    moved[held] = cam_from_world[held]
    points = center + scale * (refined.points - center)
    return refined._replace(cameras=Cameras(moved, intrinsics), points=points), factors * scale


def _view_factors(num_views: int, selected: _Selected, factors: Tensor) -> Tensor:
    """Return the median factor of the depth of each view of the scene, (S,); 1 for views that keep their camera."""
    medians = torch.ones(num_views, dtype=torch.float64)
    for index, view in enumerate(selected.views.tolist()):
        own = factors[selected.problem.view[0] == index]
        own = own[own.isfinite()]
        if len(own):
            medians[view] = own.median()
    worst = medians[medians.log().abs().argmax()]
    if not 1 / _LARGEST_CHANGE < worst < _LARGEST_CHANGE:
        raise _UnsolvableError(f"{_UNTRUSTED}: the depth of a photo would change by a factor of {worst:.3g}")
    return medians


def _apply(scene: Scene, selected: _Selected, refined: _Refined, view_factors: Tensor) -> Scene:
    """Put the refined cameras into the scene, and bring depth and points into agreement."""
    old = scene.predictions.cameras
    assert old is not None
    pose, intrinsics = (each.double().clone() for each in old)
    pose[selected.views], intrinsics[selected.views] = refined.cameras
    depth, points = scene.predictions.depth, scene.predictions.points
    if depth is not None:
        value = depth.value * view_factors[:, None, None].to(depth.value.dtype)
        depth = depth._replace(value=value)
    if points is not None:
        local = transform_points(old.cam_from_world.double(), points.value.double().flatten(1, 2))
        local = local * view_factors[:, None, None]
        focal = (each.double().diagonal(dim1=1, dim2=2)[:, :2] for each in (old.intrinsics, intrinsics))
        before, after = focal
        local[..., :2] *= (before / after)[:, None]  # along the rays of the new focal lengths
        value = transform_points(invert_rigid(pose), local).view_as(points.value)
        points = points._replace(value=value.to(points.value.dtype))
    cameras = Cameras(pose.to(old.cam_from_world.dtype), intrinsics.to(old.intrinsics.dtype))
    predictions = scene.predictions._replace(cameras=cameras, pose_encodings=None, depth=depth, points=points)
    return replace(scene, predictions=predictions, first_cameras=scene.first_cameras or old)


def _describe(selected: _Selected, refined: _Refined) -> str:
    before, after = _first_median(selected.problem, refined.before), refined.after.median()
    return (
        f"{selected.problem.points.shape[1]:,} points, {len(selected.problem.view[0]):,} observations in "
        f"{len(selected.views)} views, median reprojection error {before:.3g} → {after:.3g} pixels of the model's "
        "images"
    )
