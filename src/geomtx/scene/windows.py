"""Many views in overlapping windows, with a pass of the model each, stitched into one scene."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.checks import check_count, check_range
from geomtx.geometry.similarity import Similarity, apply_similarity, fit_similarity
from geomtx.scene.align import move_scene
from geomtx.scene.content import MatchedPixels
from geomtx.scene.filters import still_pixels
from geomtx.scene.observations import join_matched
from geomtx.scene.scene import Scene
from geomtx.types import DenseMap, Predictions

__all__ = ["WindowPlan", "check_window", "check_window_heads", "fit_points", "place_windows", "stitch_scenes"]

logger = logging.getLogger(__name__)

_LEAST_POINTS = 100
_MOST_POINTS = 100_000  # more would not change the fit
_ROUNDS = 10
_POOR_FIT = 0.1  # ratio of the median residual to the points' spread
_LINE = 1e-8  # ratio of the variance across a line to that along it


class WindowPlan(NamedTuple):
    """Number of views in a pass of the model.

    Attributes:
        size: Number of views in a window, at least 2.
        overlap: Number of views that a window shares with the one before, at least 1 and less than `size`. The last
            window is as large as the others, so it may share more.
    """

    size: int
    overlap: int


def check_window(plan: WindowPlan) -> None:
    """Require a valid size and overlap.

    Raises:
        ValueError: If one is not valid.
    """
    if not isinstance(plan, WindowPlan):
        raise ValueError(f"window must be a WindowPlan, got {plan!r}")
    check_count("window size", plan.size, 2)
    check_count("window overlap", plan.overlap)
    check_range("window overlap", plan.overlap, 1, plan.size - 1)


def place_windows(num_views: int, plan: WindowPlan) -> list[range]:
    """Return the views of each window, or a single window if all views fit into one.

    Raises:
        ValueError: If the plan is not valid, see `check_window`.
    """
    check_window(plan)
    if num_views <= plan.size:
        return [range(num_views)]
    last = num_views - plan.size
    return [range(start, start + plan.size) for start in (*range(0, last, plan.size - plan.overlap), last)]


def check_window_heads(heads: Sequence[str]) -> None:
    """Require heads whose predictions allow windows to be stitched.

    Raises:
        ValueError: If tracks are among them, or neither depth and cameras nor points.
    """
    if "tracks" in heads:
        raise ValueError("window must be None for tracks, which are followed in one pass; got query_points")
    if "points" not in heads and not {"camera", "depth"} <= set(heads):
        raise ValueError(f"heads must hold camera and depth, or points, to stitch windows, got {', '.join(heads)}")


def stitch_scenes(scenes: Iterable[Scene], windows: Sequence[range]) -> Scene:
    """Join the scenes of windows into one scene of all views, in the first window's frame and unit.

    Each window is aligned with the one before by the similarity between the points that both have of the views that
    they share, see `fit_points`; what moves by itself doesn't count. Of these views, the first half (rounded down) is
    taken from the earlier window and the rest from the later one, so that camera, depth and points of a view come from
    the same pass.

    Args:
        scenes: The scene of each window, with depth and cameras or with points. They are asked for one at a time.
        windows: Consecutive views of each window, which shares some of them with the window before.

    Returns:
        The scene, without `pose_encodings`, which hold for the first camera's frame alone. Matched pixels of windows
        that have one in common see one point.

    Raises:
        ValueError: If windows share too few points, or points that determine no similarity.
    """
    parts: list[Scene] = []
    matched: list[MatchedPixels] = []
    previous: Scene | None = None
    first = 0
    for index, (scene, window) in enumerate(zip(scenes, windows, strict=True)):
        if scene.matched is not None:
            matched.append(scene.matched._replace(view=scene.matched.view + window.start))
        if previous is not None:
            num_shared = windows[index - 1].stop - window.start
            shared = _select(scene, slice(0, num_shared)), _select(previous, slice(-num_shared, None))
            scene = move_scene(scene, _fit_scenes(*shared))
            parts[-1] = _select(parts[-1], slice(0, len(parts[-1]) - (num_shared - num_shared // 2)))
            first = num_shared // 2
        parts.append(_select(scene, slice(first, None)))
        previous = scene
    return _join(parts, matched)


def fit_points(source: DenseMap, target: DenseMap, mask: Tensor) -> Similarity:
    """Fit the similarity that brings points to those of the same pixels in another scene, in float64.

    The fit is by least squares with weights 1 / (1/c₁² + 1/c₂²) from the two confidences. It is repeated ten times with
    each weight divided by 1 + (residual / median residual)² (Cauchy's weights), which suppresses outliers.

    Args:
        source: `value` (..., 3) and `confidence` (...).
        target: Points and confidences of the other scene, of the same shapes.
        mask: Boolean mask of the pairs that count, (...). Pairs that are not finite never do.

    Raises:
        ValueError: If there are fewer than 100 pairs, or they determine no similarity, such as points on a line.
    """
    valid = mask & source.value.isfinite().all(-1) & target.value.isfinite().all(-1)
    valid &= source.confidence.isfinite() & target.confidence.isfinite()
    chosen = valid.flatten().nonzero().squeeze(-1)
    if len(chosen) < _LEAST_POINTS:
        raise ValueError(f"shared points must be at least {_LEAST_POINTS} valid ones, got {len(chosen)}")
    chosen = chosen[:: -(-len(chosen) // _MOST_POINTS)]
    moving, fixed = (each.value.reshape(-1, 3)[chosen].double() for each in (source, target))
    variances = [each.confidence.flatten()[chosen].double() ** -2 for each in (source, target)]
    weights = 1 / (variances[0] + variances[1])
    spread = _spreads(fixed, weights).sum().sqrt()
    similarity = fit_similarity(moving, fixed, weights)
    robust = weights
    for _ in range(_ROUNDS):
        residuals = (apply_similarity(similarity, moving) - fixed).norm(dim=-1)
        scale = _weighted_median(residuals, weights).clamp(min=1e-9 * spread)
        robust = weights / (1 + (residuals / scale).square())
        similarity = fit_similarity(moving, fixed, robust)
    _check_fit(similarity, _spreads(moving, robust), _spreads(fixed, robust))
    if scale > _POOR_FIT * spread:
        logger.warning(
            "windows don't fit well: what they share differs by %.0f %% of its size; neighbouring photos should "
            "show the same things",
            100 * scale / spread,
        )
    return similarity


def _check_fit(similarity: Similarity, *spreads: Tensor) -> None:
    # Written so that NaN is refused, too.
    if any(not spread[1] > _LINE * spread[2] for spread in spreads):
        raise ValueError("shared points must not lie on a line or in one place, got such points; no similarity fits")
    if not (similarity.scale.isfinite() and similarity.scale > 0):
        raise ValueError(f"scale between windows must be positive, got {similarity.scale:g}")


def _spreads(points: Tensor, weights: Tensor) -> Tensor:
    """Return the variances along the three principal axes, in rising order."""
    shares = (weights / weights.sum())[:, None]
    centered = points - (shares * points).sum(0)
    return torch.linalg.eigvalsh((shares * centered).mT @ centered)


def _weighted_median(values: Tensor, weights: Tensor) -> Tensor:
    order = values.argsort()
    reached = weights[order].cumsum(0)
    return values[order[torch.searchsorted(reached, reached[-1:] / 2).clamp(max=len(values) - 1)]].squeeze(0)


def _fit_scenes(scene: Scene, target: Scene) -> Similarity:
    try:
        return fit_points(scene.point_map(), target.point_map(), still_pixels(scene) & still_pixels(target))
    except ValueError as error:
        names = f"{target.names[0]} … {target.names[-1]}" if len(target) > 1 else target.names[0]
        raise ValueError(f"windows can't be stitched at {names}: {error}; a larger overlap may help") from error


def _select(scene: Scene, views: slice) -> Scene:
    """Return the scene of some consecutive views, without pose encodings, tracks and matched pixels."""
    predictions = scene.predictions._replace(pose_encodings=None, tracks=None)
    return replace(
        scene,
        names=scene.names[views],
        transforms=scene.transforms[views],
        images=scene.images[views],
        masks=scene.masks[views],
        predictions=predictions.map(lambda values: values[views]),
        paths=scene.paths[views],
        times=scene.times[views],
        matched=None,
        moving=None if scene.moving is None else scene.moving[views],
    )


def _join(parts: Sequence[Scene], matched: Sequence[MatchedPixels]) -> Scene:
    first = parts[0]
    # Predictions of a scene have no batch axis, which comes before that of the views.
    batches = [part.predictions.map(lambda values: values[None]) for part in parts]
    return replace(
        first,
        names=tuple(name for part in parts for name in part.names),
        transforms=tuple(transform for part in parts for transform in part.transforms),
        images=torch.cat([part.images for part in parts]),
        masks=torch.cat([part.masks for part in parts]),
        predictions=Predictions.cat(batches).map(lambda values: values[0]),
        paths=tuple(path for part in parts for path in part.paths),
        times=tuple(time for part in parts for time in part.times),
        matched=join_matched(matched) if matched else None,
        moving=None if first.moving is None else torch.cat([part.moving for part in parts if part.moving is not None]),
    )
