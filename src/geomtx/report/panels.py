"""The panels of a page: the scene from above, and the point cloud in perspective, each with the cameras."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from geomtx.report.layout import BACKGROUND, INK, MUTED, view_color
from geomtx.report.render import Viewpoint, overview, render_points
from geomtx.report.text import format_value, round_length
from geomtx.scene.content import SceneContent
from geomtx.scene.files.frusta import camera_centers, frustum_corners
from geomtx.scene.points import PointCloud

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Points", "cloud_viewpoint", "draw_cloud", "draw_plan", "find_near", "point_widths", "sample_points"]

_MAX_POINTS = 600_000
_MAX_RADIUS = 0.012  # of a splat, share of the picture's width
_FRUSTUM = 0.06  # depth of a drawn camera, share of the scene's extent; less for more than ten


class Points(NamedTuple):
    """A cloud as it is drawn, in numpy.

    Attributes:
        xyz: (N, 3) float64.
        rgb: (N, 3) uint8.
        size: (N,) float64, the width of the surface that a point stands for; 0 where it is not known.
        num_far: Number of points left out because they lie far from nearly all others.
    """

    xyz: np.ndarray
    rgb: np.ndarray
    size: np.ndarray
    num_far: int = 0


def sample_points(scene: SceneContent, cloud: PointCloud | None) -> Points:
    """Return the points to draw: those that are not far away, or the same sample of a large cloud every time.

    Far is outside the box between the 1st and the 99th percentile of each axis after it was widened by half of its
    size on each side: few such points would make a picture of the whole cloud a small one.
    """
    if cloud is None:
        return Points(np.empty((0, 3)), np.empty((0, 3), np.uint8), np.empty(0))
    xyz, rgb, view = cloud.xyz.double().numpy(), cloud.rgb.numpy(), cloud.view.numpy()
    near = find_near(xyz)
    xyz, rgb, view, num_far = xyz[near], rgb[near], view[near], int((~near).sum())
    if len(xyz) > _MAX_POINTS:
        kept = np.random.default_rng(0).permutation(len(xyz))[:_MAX_POINTS]
        xyz, rgb, view = xyz[kept], rgb[kept], view[kept]
    return Points(xyz, rgb, point_widths(scene, xyz, view), num_far)


def find_near(xyz: np.ndarray) -> np.ndarray:
    """Return which points (N, 3) are not far away, see `sample_points`: (N,) bool, one of them at least."""
    low, high = np.percentile(xyz, [1, 99], axis=0)
    near: np.ndarray = (np.abs(xyz - (low + high) / 2) <= high - low).all(axis=1)
    near |= not near.any()
    return near


def point_widths(scene: SceneContent, xyz: np.ndarray, view: np.ndarray) -> np.ndarray:
    """Return (N,) how far apart neighbouring points are: a pixel's width at the point's depth in its own view."""
    cameras = scene.predictions.cameras
    if cameras is None or not all(part.isfinite().all() for part in cameras):
        return np.zeros(len(xyz))
    poses, intrinsics = (part.double().numpy() for part in cameras)
    depth = (poses[view, 2, :3] * xyz).sum(axis=1) + poses[view, 2, 3]
    # Each point of a sample stands for more than its own pixel.
    thinned = np.sqrt(max(1.0, 0.8 * int(scene.masks.sum()) / max(len(xyz), 1)))
    return np.maximum(depth, 0) / intrinsics[view, 0, 0] * thinned


def draw_plan(
    axes: Axes, scene: SceneContent, points: Points, labels: Sequence[int], *, truth: SceneContent | None = None
) -> None:
    """Draw the scene from above: the x-z plane of the first camera's frame.

    Args:
        axes: Axes to fill.
        scene: Scene whose cameras are drawn, each in its colour.
        points: Points below them, see `sample_points`.
        labels: Views whose number is written; up to 12 views all have theirs.
        truth: The same views in the same frame: its cameras are drawn in grey, with a line to the scene's.
    """
    poses, corners = _cameras(scene, points.xyz)
    true_poses, true_corners = (poses[:0], corners[:0]) if truth is None else _cameras(truth, points.xyz)
    if len(points.xyz) == len(poses) == 0:
        axes.text(0.5, 0.5, "no finite camera", transform=axes.transAxes, ha="center", va="center", color=MUTED)
        return
    centers, true_centers = camera_centers(poses), camera_centers(true_poses)
    _fit_plan(axes, points.xyz, np.concatenate([centers, *corners, true_centers, *true_corners]))
    _draw_footprint(axes, points)
    for center, corner in zip(true_centers, true_corners, strict=True):
        _draw_wedge(axes, center, corner, MUTED)
    for start, end in zip(true_centers, centers, strict=False):
        axes.plot([start[0], end[0]], [start[2], end[2]], color=INK, linewidth=0.8)
    for index in reversed(range(len(poses))):
        _draw_wedge(axes, centers[index], corners[index], view_color(index, len(poses)))
    for index in range(len(poses)) if len(poses) <= 12 else labels:
        if index < len(poses):
            _draw_label(axes, index, centers[index], corners[index].mean(axis=0), view_color(index, len(poses)))
    _draw_scale_bar(axes, scene.units)


def _fit_plan(axes: Axes, points: np.ndarray, cameras: np.ndarray) -> None:
    """Set limits that have everything inside; z points up in the picture."""
    flat = np.concatenate([points, cameras])[:, [0, 2]]
    low, high = flat.min(axis=0), flat.max(axis=0)
    box = axes.get_window_extent()
    # Room for the labels behind the cameras, and for the scale bar below.
    per_pixel = max(*((high - low) / (np.array([box.width, box.height]) * [0.86, 0.80])), 1e-9)
    half, middle = per_pixel * np.array([box.width, box.height]) / 2, (low + high) / 2
    middle[1] -= 0.03 * half[1]
    axes.set(xlim=middle[0] + np.array([-1, 1]) * half[0], ylim=middle[1] + np.array([-1, 1]) * half[1])


def _draw_footprint(axes: Axes, points: Points) -> None:
    """Draw the mean colour of the points in and around each cell, fainter where there are few."""
    if not len(points.xyz):
        return
    box, limits = axes.get_window_extent(), [axes.get_xlim(), axes.get_ylim()]
    cell = 2.0
    shape = max(1, round(box.width / cell)), max(1, round(box.height / cell))
    x, z = points.xyz[:, 0], points.xyz[:, 2]
    sums = [
        np.histogram2d(x, z, bins=shape, range=limits, weights=weights)[0].T
        for weights in (np.ones(len(x)), *points.rgb.astype(np.float64).T)
    ]
    # Blurred by the gaps between points, so that surfaces close.
    per_cell = (limits[0][1] - limits[0][0]) / shape[0]
    reach = int(np.clip(np.median(points.size) / per_cell / 2, 1, 6))
    blurred = torch.from_numpy(np.stack(sums))[None]
    for _ in range(2):
        blurred = F.avg_pool2d(blurred, 2 * reach + 1, stride=1, padding=reach)
    weight, *colors = blurred[0].numpy()
    typical = np.percentile(weight[weight > 0], 50) if (weight > 0).any() else 1.0
    alpha = 0.85 * np.clip(weight / typical, 0, 1) ** 0.7
    rgb = np.stack(colors, axis=-1) / np.maximum(weight, 1e-12)[..., None] / 255
    picture = np.concatenate([rgb.clip(0, 1), alpha[..., None]], axis=-1)
    axes.imshow(picture, extent=(*limits[0], *limits[1]), origin="lower", interpolation="bilinear", aspect="auto")


def _draw_wedge(axes: Axes, center: np.ndarray, corners: np.ndarray, color: str | tuple[float, ...]) -> None:
    """Draw a triangle from the camera to the sides of its image."""
    left, right = (corners[pair].mean(axis=0) for pair in ([0, 3], [1, 2]))
    x, z = np.stack([center, left, right])[:, [0, 2]].T
    axes.fill(x, z, facecolor=color, alpha=0.25, linewidth=0)
    axes.fill(x, z, facecolor="none", edgecolor=color, linewidth=1.5, joinstyle="round")
    axes.plot(x[:1], z[:1], marker="o", markersize=4, color=color)


def _draw_label(axes: Axes, index: int, apex: np.ndarray, front: np.ndarray, color: tuple[float, ...]) -> None:
    """Write a view's number behind its camera."""
    from matplotlib.patheffects import withStroke

    back = (apex - front)[[0, 2]]
    length = np.linalg.norm(back)
    offset = 10 * back / length if length > 1e-9 else (0.0, 10.0)
    axes.annotate(
        str(index), (apex[0], apex[2]), offset, textcoords="offset points", ha="center", va="center", color=color,
        weight="bold", fontsize=10, path_effects=[withStroke(linewidth=2.5, foreground=BACKGROUND)],
    )  # fmt: skip


def _draw_scale_bar(axes: Axes, units: str) -> None:
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    width, height = right - left, high - low
    length = round_length(0.25 * width)
    unit = ("scene unit" if length == 1 else "scene units") if units == "up to scale" else units
    text = f"{length:g} {unit}" if 1e-4 <= length < 1e6 else f"{format_value(length)} {unit}"
    start = left + 0.03 * width
    axes.errorbar(
        start + length / 2, low + 0.03 * height, xerr=length / 2, color=INK, capsize=4, elinewidth=1.6, capthick=1.6
    )
    axes.annotate(
        text,
        (start, low + 0.03 * height),
        (0, 8),
        textcoords="offset points",
        color=INK,
        fontsize=9.5,
        parse_math=False,
    )
    axes.text(
        right - 0.02 * width, low + 0.025 * height, "x right, z up: the first camera's frame", color=MUTED, ha="right",
        fontsize=9,
    )  # fmt: skip


def cloud_viewpoint(scene: SceneContent, points: Points, wh: tuple[int, int], *, yaw: float = 22.0) -> Viewpoint:
    """Return a viewpoint from which a cloud and its cameras are seen well."""
    poses, corners = _cameras(scene, points.xyz)
    cameras = np.concatenate([camera_centers(poses), corners.reshape(-1, 3)])
    return overview(points.xyz, poses if len(poses) else np.eye(3, 4)[None], wh, also=cameras, yaw=yaw)


def draw_cloud(
    axes: Axes, scene: SceneContent, points: Points, *, frame: tuple[SceneContent, Points] | None = None,
    yaw: float = 22.0,
) -> None:  # fmt: skip
    """Draw the point cloud in perspective with the cameras in it.

    Args:
        axes: Axes to fill.
        scene: Scene whose cameras are drawn, each in its colour.
        points: Points to draw, at least one, as `sample_points` returns them.
        frame: Scene and points that the viewpoint is chosen for; defaults to the ones that are drawn.
        yaw: Degrees by which the viewpoint is turned to the side.
    """
    box = axes.get_window_extent()
    wh = round(box.width), round(box.height)
    viewpoint = cloud_viewpoint(*(frame or (scene, points)), wh, yaw=yaw)
    _, depth = viewpoint.project(points.xyz)
    radius = 0.9 * points.size * viewpoint.intrinsics[1, 1] / np.maximum(depth, 1e-9)
    radius = np.where(points.size > 0, radius, np.sqrt(wh[0] * wh[1] / len(depth)) / 2).clip(0.7, _MAX_RADIUS * wh[0])
    red, green, blue = (int(BACKGROUND[n : n + 2], 16) for n in (1, 3, 5))
    image = render_points(points.xyz, points.rgb, viewpoint, wh, radius=radius, background=(red, green, blue))
    axes.imshow(np.asarray(image), aspect="auto", interpolation="nearest")
    axes.set(xlim=(-0.5, wh[0] - 0.5), ylim=(wh[1] - 0.5, -0.5))
    poses, corners = _cameras(scene, points.xyz)
    for index, (center, corner) in enumerate(zip(camera_centers(poses), corners, strict=True)):
        pixels, depth = viewpoint.project(np.concatenate([center[None], corner]))
        if (depth <= 0).any() or ((pixels < -0.5) | (pixels > np.array(wh) - 0.5)).any():
            continue  # half a camera at the border says nothing
        color = view_color(index, len(poses))
        for end in pixels[1:]:
            axes.plot(*np.stack([pixels[0], end]).T, color=color, linewidth=1.1)
        axes.plot(*pixels[[1, 2, 3, 4, 1]].T, color=color, linewidth=1.5, solid_joinstyle="round")


def _cameras(scene: SceneContent, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return poses (S, 3, 4) and image corners (S, 4, 3); none where a camera isn't finite."""
    cameras = scene.cameras
    if cameras is None or not all(part.isfinite().all() for part in cameras):
        return np.empty((0, 3, 4)), np.empty((0, 4, 3))
    poses, intrinsics = (part.double().numpy() for part in cameras)
    centers = camera_centers(poses)
    known = np.concatenate([np.percentile(points, [5, 95], axis=0) if len(points) else centers, centers])
    extent = float(np.linalg.norm(np.ptp(known, axis=0))) or 1.0
    sizes = [transform.original_hw for transform in scene.transforms]
    depth = _FRUSTUM * extent * min(1.0, (10 / len(poses)) ** 0.5)
    return poses, frustum_corners(poses, intrinsics, sizes, depth)
