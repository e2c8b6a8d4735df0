"""Points of a scene with the pixels in which its photos see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geomtx.checks import check_count, check_finite_positive
from geomtx.scene.content import MatchedPixels, SceneContent
from geomtx.scene.filters import PixelFilter, valid_pixels
from geomtx.scene.points import NoPointsError, confidence_threshold
from geomtx.scene.surfaces import Surfaces, find_surfaces
from geomtx.types import Float, Int, UInt8, show_shapes
from geomtx.views.transform import lies_inside

__all__ = [
    "ObservedPoints",
    "describe_observations",
    "join_matched",
    "join_matches",
    "merge_observations",
    "observe_points",
]

_CANDIDATES = 2  # points that are tried for each that is kept
_ROWS_AT_ONCE = 1 << 13  # few enough for a processor's cache
_COARSE = 10  # times the tolerance that a first look allows
_VISIBLE = 0.5  # probability from which a track counts as seen


@show_shapes
class ObservedPoints(NamedTuple):
    """Points with the pixels in which photos see them, as a sparse model of COLMAP holds them.

    Attributes:
        xyz: Points in the world of the scene, (M, 3) float64.
        rgb: Colours, (M, 3) uint8.
        view: View of each observation, (K,) int64.
        point: Point of each observation, (K,) int64; observations are sorted by point, then by view.
        coords_px: Pixel in which the view sees the point, (K, 2) float64, in original pixels, pixel centres at
            integers.
        confidence: Confidence of each observation, (K,) float32, which ranks them and is not a probability.
    """

    xyz: Float[Tensor, "m 3"]
    rgb: UInt8[Tensor, "m 3"]
    view: Int[Tensor, " k"]
    point: Int[Tensor, " k"]
    coords_px: Float[Tensor, "k 2"]
    confidence: Float[Tensor, " k"]


class _Found(NamedTuple):
    """Points with their observations in pixels of the model's images, and what the scene's points are chosen by.

    Attributes:
        xyz: Points, (M, 3) float64.
        anchor: View and pixel (view, row, column) that each point was started from, (M, 3) int64.
        view: View of each observation, (K,) int64.
        point: Point of each observation, (K,) int64; sorted by point, then by view.
        coords: Positions (x, y) of the observations, (K, 2) float64.
    """

    xyz: NDArray[np.float64]
    anchor: NDArray[np.int64]
    view: NDArray[np.int64]
    point: NDArray[np.int64]
    coords: NDArray[np.float64]


_NO_INDICES = np.empty(0, np.int64)
_NOTHING = _Found(np.empty((0, 3)), np.empty((0, 3), np.int64), _NO_INDICES, _NO_INDICES, np.empty((0, 2)))


def observe_points(
    scene: SceneContent,
    *,
    max_points: int | None = 100_000,
    percentile: float = 20.0,
    tolerance: float = 0.02,
    which: PixelFilter | None = None,
) -> ObservedPoints:
    """Merge the points of several photos into points with an observation in each of them.

    Every observation is measured in its own photo, so that refinement and filters have something to work with; the
    projection of the merged point is none. Points come from three sources:

    - Tracks, where the scene has them: the observations are the positions of the track in the views where it is
      visible with a probability above a half.
    - Matched pixels, where the scene has them: the observations are those whose own surface is no farther from the mean
      of all than `tolerance` times the depth, two at least.
    - The dense maps. A pixel of one view is a point with one observation. Another view observes the same point where
      its own surface comes nearest to that pixel's point, in three dimensions and between pixels, if the two are
      mutual nearest neighbours (the surface of the first view is nearest to the found point within half a pixel of
      the pixel that it began with) and no farther apart than `tolerance` times the depth.

    The merged point is the mean of the points that the views themselves have at their observations. Pixels are those
    that `Scene.points` keeps. Where the scene has no depth but points, the depth is that of the points in the cameras.

    Args:
        scene: Scene with cameras, and with depth or points.
        max_points: Largest number of points. Each view keeps its share of the points that began in it, those with most
            observations first, and then the points with most observations of all views; defaults to 100,000, None keeps
            all.
        percentile: Percentile of confidence from which pixels may be points, 0 to 100, see `Scene.points`.
        tolerance: Largest distance between the points of two views that are merged, as a share of their depth.
        which: Further tests that a pixel must pass, see `Scene.points`; defaults to `PixelFilter()`.

    Returns:
        The points; the same every time, with any number of threads.

    Raises:
        ValueError: If the scene lacks cameras, or depth and points, an argument is out of range, or no pixel gives a
            point.
    """
    if max_points is not None:
        check_count("max_points", max_points)
    check_finite_positive("tolerance", tolerance)
    surfaces = find_surfaces(scene)
    valid = _valid_pixels(surfaces, scene, percentile, which)
    rng = np.random.default_rng(0)
    found = [_follow_tracks(scene, surfaces), _find_matched(scene, surfaces, tolerance)]
    left = None if max_points is None else max_points - len(found[0].xyz)
    if left is not None:
        found[1] = _keep_most_observed(found[1], max(left, 0), len(scene), rng)
        left -= len(found[1].xyz)
    if left is None or left > 0:
        candidates = [
            _observe_pixels(surfaces, view, rows, tolerance)
            for view, rows in enumerate(_choose_pixels(valid, left, rng))
            if len(rows)
        ]
        found.append(_keep_most_observed(_join(candidates), left, len(scene), rng))
    joined = _join(found)
    if max_points is not None:
        joined = _select(joined, np.arange(min(len(joined.xyz), max_points)))
    return _to_original(joined, scene, surfaces)


def describe_observations(observed: ObservedPoints) -> str:
    """Return one line with the number of points, their mean track length, and the shares with two and more views."""
    length = torch.bincount(observed.point, minlength=len(observed.xyz)).double()
    two, three = (100 * (length >= least).double().mean().item() for least in (2, 3))
    return (
        f"{len(observed.xyz):,} points with {len(observed.view):,} observations: mean track length "
        f"{length.mean().item():.2f}, {two:.1f} % with two observations or more, {three:.1f} % with three or more"
    )


def _valid_pixels(
    surfaces: Surfaces, scene: SceneContent, percentile: float, which: PixelFilter | None
) -> NDArray[np.bool_]:
    """Pixels that may be points, (S, H, W)."""
    if not scene.masks.any():
        raise NoPointsError("no points: masks and padding leave no pixel")
    valid = np.isfinite(surfaces.inverse_depth) & valid_pixels(scene, which).numpy()
    if not valid.any():
        raise NoPointsError(
            "no points: cameras, depth or confidence are not finite, or the depth is not positive anywhere"
        )
    confidence = torch.from_numpy(surfaces.confidence)
    least = confidence_threshold(confidence[torch.from_numpy(valid)], percentile)
    return valid & (surfaces.confidence >= least)


def _choose_pixels(
    valid: NDArray[np.bool_], max_points: int | None, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Pixels (row, column) of each view that become candidates: all, or the same number of each view by chance."""
    share = None if max_points is None else -(-_CANDIDATES * max_points // max(int(valid.any((1, 2)).sum()), 1))
    chosen = []
    for view in valid:
        pixels = np.argwhere(view)
        if share is not None and len(pixels) > share:
            pixels = pixels[np.sort(rng.choice(len(pixels), share, replace=False))]
        chosen.append(pixels)
    return chosen


def _observe_pixels(surfaces: Surfaces, view: int, pixels: NDArray[np.int64], tolerance: float) -> _Found:
    """Make a point of each pixel (row, column) of a view, and look for it in all the others."""
    parts = range(0, len(pixels), _ROWS_AT_ONCE)
    return _join([_observe_some(surfaces, view, pixels[i : i + _ROWS_AT_ONCE], tolerance) for i in parts])


def _observe_some(surfaces: Surfaces, view: int, pixels: NDArray[np.int64], tolerance: float) -> _Found:
    num = len(pixels)
    start = pixels[:, ::-1].astype(np.float64)
    own = surfaces.unproject(view, start)
    found = [
        (other, *_observe_in(surfaces, (view, other), (start, own), tolerance))
        for other in np.nonzero(surfaces.known)[0].tolist()
        if other != view
    ]
    views = np.concatenate([np.empty(0, np.int64), *(np.full(len(rows), other) for other, rows, _, _ in found)])
    rows = np.concatenate([np.empty(0, np.int64), *(rows for _, rows, _, _ in found)])
    coords = np.concatenate([np.empty((0, 2)), *(coords for _, _, coords, _ in found)])
    points = np.concatenate([np.empty((0, 3)), *(points for _, _, _, points in found)])

    count = 1.0 + np.bincount(rows, minlength=num)
    xyz = np.stack([own[:, i] + np.bincount(rows, points[:, i], minlength=num) for i in range(3)], axis=-1)
    all_views = np.concatenate([np.full(num, view), views])
    all_rows = np.concatenate([np.arange(num), rows])
    all_coords = np.concatenate([start, coords])
    order = np.lexsort((all_views, all_rows))
    anchor = np.concatenate([np.full((num, 1), view), pixels], axis=1)
    # A point of one observation is its pixel's own to the last digit.
    mean = np.where(count[:, None] > 1, xyz / count[:, None], own)
    return _Found(mean, anchor, all_views[order], all_rows[order], all_coords[order])


def _observe_in(
    surfaces: Surfaces, views: tuple[int, int], first: tuple[NDArray[np.float64], NDArray[np.float64]], tolerance: float
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Find the points of one view on the surface of another: mutual nearest neighbours.

    Args:
        surfaces: The surfaces of all views.
        views: The view that the points began in, and the one that is searched.
        first: Positions (K, 2) on the first view's image, and their points (K, 3).
        tolerance: Largest relative difference of depth, see `observe_points`.

    Returns:
        Rows of the points that were found, (J,), their positions on the image, (J, 2), and the points there, (J, 3).
    """
    (view, other), (start, own) = views, first
    # A coarse look, which most don't pass, before the search.
    rows = np.nonzero(surfaces.nearest(other, own, tolerance=_COARSE * tolerance, steps=0)[1])[0]
    coords, near = surfaces.nearest(other, own[rows], tolerance=tolerance, steps=2)
    rows, coords = rows[near], coords[near]
    points = surfaces.unproject(other, coords)
    back, near = surfaces.nearest(view, points, tolerance=tolerance, steps=2)
    mutual = near & (np.abs(back - start[rows]) <= 0.5).all(-1)
    return rows[mutual], coords[mutual], points[mutual]


def _follow_tracks(scene: SceneContent, surfaces: Surfaces) -> _Found:
    """Points of the tracks that a view sees on its surface; none where the scene has no tracks."""
    tracks, queries = scene.predictions.tracks, scene.query_points
    if tracks is None or queries is None or not len(queries):
        return _NOTHING
    coords = tracks.coords_px.double().numpy().transpose(1, 0, 2)  # (N, S, 2)
    seen = (tracks.visibility.numpy().T > _VISIBLE) & surfaces.holds(coords) & surfaces.known
    rows, views = np.nonzero(seen)
    return _mean_points(surfaces, rows, views, coords[rows, views])


def _find_matched(scene: SceneContent, surfaces: Surfaces, tolerance: float) -> _Found:
    """Points of the matched pixels whose views agree on where they are; none where the scene has no such pixels."""
    if scene.matched is None or not len(scene.matched.view):
        return _NOTHING
    view, point = scene.matched.view.numpy(), scene.matched.point.numpy()
    coords = _to_model_pixels(scene, scene.matched)
    held = surfaces.holds(coords) & surfaces.known[view]
    found = _mean_points(surfaces, point[held], view[held], coords[held])
    pose = surfaces.cam_from_world[found.view]
    own = surfaces.unproject_each(found.view, found.coords)
    depth = (pose[:, 2, :3] * own).sum(1) + pose[:, 2, 3]
    near = np.linalg.norm(own - found.xyz[found.point], axis=1) <= tolerance * depth
    near &= np.bincount(found.point[near], minlength=len(found.xyz))[found.point] > 1
    return _mean_points(surfaces, found.point[near], found.view[near], found.coords[near])


def _mean_points(
    surfaces: Surfaces, point: NDArray[np.int64], view: NDArray[np.int64], coords: NDArray[np.float64]
) -> _Found:
    """Return the points at the mean of the surfaces at their observations, sorted by point, where these are known."""
    own = surfaces.unproject_each(view, coords)
    on_surface = np.isfinite(own).all(-1)
    point, view, coords, own = point[on_surface], view[on_surface], coords[on_surface], own[on_surface]
    kept, first, point = np.unique(point, return_index=True, return_inverse=True)
    if not len(kept):
        return _NOTHING
    xyz = np.stack([np.bincount(point, own[:, i]) for i in range(3)], axis=-1) / np.bincount(point)[:, None]
    pixels = np.floor(coords[first] + 0.5).astype(np.int64)[:, ::-1]
    anchor = np.concatenate([view[first, None], surfaces.clamp(pixels)], axis=1)
    return _Found(xyz, anchor, view, point, coords)


def _keep_most_observed(found: _Found, max_points: int | None, num_views: int, rng: np.random.Generator) -> _Found:
    """Keep the points with most observations: a share of each view's own first, then those of all views."""
    num = len(found.xyz)
    if max_points is None or num <= max_points:
        return found
    length = np.bincount(found.point, minlength=num)
    ranked = np.lexsort((rng.permutation(num), -length))  # ties by chance, which spreads them over the photos
    start = found.anchor[ranked, 0]
    by_view = np.argsort(start, kind="stable")
    first = np.searchsorted(start[by_view], np.arange(num_views))
    place = np.empty(num, np.int64)  # among the points of its own view
    place[by_view] = np.arange(num) - first[start[by_view]]
    share = max_points // num_views
    kept = ranked[np.lexsort((np.arange(num), place >= share))[:max_points]]
    return _select(found, np.sort(kept))


def _select(found: _Found, points: NDArray[np.int64]) -> _Found:
    """Keep some points, given in rising order, with their observations."""
    if len(points) == len(found.xyz):
        return found
    new = np.full(len(found.xyz), -1)
    new[points] = np.arange(len(points))
    kept = new[found.point] >= 0
    return _Found(found.xyz[points], found.anchor[points], found.view[kept], new[found.point[kept]], found.coords[kept])


def _join(parts: list[_Found]) -> _Found:
    first = np.cumsum([0, *(len(part.xyz) for part in parts[:-1])])
    moved = [part._replace(point=part.point + start) for part, start in zip(parts, first, strict=True)]
    return _Found(*(np.concatenate(each) for each in zip(*moved, strict=True)))


def _to_original(found: _Found, scene: SceneContent, surfaces: Surfaces) -> ObservedPoints:
    """Bring observations to the pixels of the photos; leaves out those beside the photo, and points without any."""
    coords = torch.from_numpy(found.coords)
    original = torch.empty_like(coords)
    inside = torch.zeros(len(coords), dtype=torch.bool)
    view = torch.from_numpy(found.view)
    for index, transform in enumerate(scene.transforms):
        rows = (view == index).nonzero()[:, 0]
        original[rows] = transform.to_original(coords[rows])
        inside[rows] = lies_inside(original[rows], transform.original_hw)
    point = torch.from_numpy(found.point)[inside]
    kept, point = point.unique(return_inverse=True)
    anchor = torch.from_numpy(found.anchor)[kept]
    pixel = torch.from_numpy(surfaces.clamp(np.floor(found.coords[:, ::-1] + 0.5).astype(np.int64)))[inside]
    view = view[inside]
    confidence = torch.from_numpy(surfaces.confidence)[view, pixel[:, 0], pixel[:, 1]]
    return ObservedPoints(
        xyz=torch.from_numpy(found.xyz)[kept],
        rgb=scene.images[anchor[:, 0], :, anchor[:, 1], anchor[:, 2]],
        view=view,
        point=point,
        coords_px=original[inside],
        confidence=confidence.float(),
    )


def join_matches(matches: NDArray[np.int64], view_of: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """Join matches of features to points: returns the feature and the point of each observation, sorted by point.

    Points with two features of one view are left out.

    Args:
        matches: Two features that show the same in each row, (M, 2).
        view_of: View of each feature.
    """
    root = np.arange(len(view_of))
    while True:  # the smallest feature that can be reached, by ever longer steps
        low = root.copy()
        np.minimum.at(low, matches[:, 0], root[matches[:, 1]])
        np.minimum.at(low, matches[:, 1], root[matches[:, 0]])
        low = low[low]
        if (low == root).all():
            break
        root = low
    size = np.bincount(root, minlength=len(root))
    feature = np.nonzero(size[root] > 1)[0]
    feature = feature[np.lexsort((view_of[feature], root[feature]))]
    label = root[feature]
    twice = (np.diff(label) == 0) & (np.diff(view_of[feature]) == 0)
    wrong = np.isin(label, label[1:][twice])
    feature = feature[~wrong]
    _, point = np.unique(root[feature], return_inverse=True)
    return feature, point


def join_matched(parts: Sequence[MatchedPixels]) -> MatchedPixels:
    """Join matched pixels of several scenes of the same views: points with a pixel in common are one.

    Points that two pixels of one view then belong to are left out.

    Args:
        parts: View, point and pixel of each observation, in each scene.
    """
    rows = np.concatenate([np.column_stack([part.view.numpy(), part.coords_px.numpy()]) for part in parts])
    counts = np.cumsum([0, *(int(part.point.max()) + 1 if len(part.point) else 0 for part in parts)])
    point = np.concatenate([part.point.numpy() + start for part, start in zip(parts, counts, strict=False)])
    features, feature = np.unique(rows, axis=0, return_inverse=True)
    feature = feature.ravel()
    same = np.nonzero(np.diff(point) == 0)[0]  # an observation and the next one of its point
    view_of = features[:, 0].astype(np.int64)
    kept, joined = join_matches(np.column_stack([feature[same], feature[same + 1]]), view_of)
    view, coords = torch.from_numpy(view_of[kept]), torch.from_numpy(features[kept, 1:])
    return MatchedPixels(view, torch.from_numpy(joined), coords)


def _to_model_pixels(scene: SceneContent, matched: MatchedPixels) -> NDArray[np.float64]:
    """Return matched pixels in the model's images, (K, 2)."""
    coords = torch.empty_like(matched.coords_px)
    for index, transform in enumerate(scene.transforms):
        rows = matched.view == index
        coords[rows] = transform.from_original(matched.coords_px[rows])
    return coords.numpy()


def merge_observations(scene: SceneContent, surfaces: Surfaces, observed: MatchedPixels) -> ObservedPoints:
    """Return points at the mean of the surfaces that views have at their observations; each has the confidence 1.

    Args:
        scene: Scene with cameras, and with depth or points.
        surfaces: The surfaces of its views.
        observed: View, point and original pixel of each observation.
    """
    view, point, original = (each.numpy() for each in observed)
    coords = _to_model_pixels(scene, observed)
    held = surfaces.holds(coords)
    own = surfaces.unproject_each(view, np.where(held[:, None], coords, 0.0))
    known = held & np.isfinite(own).all(1)
    num_points = int(point.max()) + 1 if len(point) else 0
    count = np.bincount(point[known], minlength=num_points)
    sums = [np.bincount(point[known], own[known, axis], minlength=num_points) for axis in range(3)]
    xyz = np.stack(sums, axis=-1) / np.where(count > 0, count, np.nan)[:, None]
    kept = held & (count[point] > 0)
    names, point = np.unique(point[kept], return_inverse=True)
    view, original, coords = view[kept], original[kept], coords[kept]
    pixel = surfaces.clamp(np.floor(coords[:, ::-1] + 0.5).astype(np.int64))
    _, first = np.unique(point, return_index=True)
    return ObservedPoints(
        xyz=torch.from_numpy(xyz[names]),
        rgb=scene.images[view[first], :, pixel[first, 0], pixel[first, 1]],
        view=torch.from_numpy(view),
        point=torch.from_numpy(point),
        coords_px=torch.from_numpy(original),
        confidence=torch.ones(len(view)),
    )
