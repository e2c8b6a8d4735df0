"""The two panels beside a report's rows: the plan and the point cloud, each with the cameras."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from geomtx.export.canvas import PANEL, view_color
from geomtx.export.plan import camera_centers, draw_plan, frustum_corners
from geomtx.export.render import Viewpoint, overview, render_points
from geomtx.scene.pointcloud import PointCloud
from geomtx.scene.scene import Scene

__all__ = ["cloud_panel", "cloud_viewpoint", "plan_panel"]

_MAX_POINTS = 600_000
_MAX_RADIUS = 5.0  # of a point, pixels
_FRUSTUM = 0.07  # depth of a drawn camera, share of the scene's extent; less for more than ten


def plan_panel(
    scene: Scene, cloud: PointCloud | None, wh: tuple[int, int], labels: list[int], *, truth: Scene | None = None
) -> Image.Image:
    """The scene from above.

    Args:
        scene: Whose cameras to draw, each in its colour.
        cloud: Points to draw below them.
        wh: Width and height, pixels.
        labels: Views whose number is written; up to 12 views all have theirs.
        truth: The same views in the same frame: its cameras are drawn in grey, with a line to the scene's.
    """
    points, colors = _thin(cloud)
    poses, corners = _cameras(scene, points)
    numbered = labels if len(poses) > 12 else list(range(len(poses)))
    true_poses, true_corners = (np.empty((0, 3, 4)), None) if truth is None else _cameras(truth, points)
    return draw_plan(
        wh,
        points,
        colors,
        camera_centers(poses),
        corners,
        labels=[n for n in numbered if n < len(poses)],
        units=scene.units,
        truth=None if true_corners is None else (camera_centers(true_poses), true_corners),
    )


def cloud_viewpoint(scene: Scene, cloud: PointCloud, wh: tuple[int, int]) -> Viewpoint:
    """From where a cloud and its cameras are seen well."""
    points, _ = _thin(cloud)
    poses, corners = _cameras(scene, points)
    return overview(points, poses if len(poses) else np.eye(3, 4)[None], wh, also=corners.reshape(-1, 3))


def cloud_panel(
    scene: Scene, cloud: PointCloud, wh: tuple[int, int], *, viewpoint: Viewpoint | None = None
) -> Image.Image:
    """The point cloud in perspective with the cameras in it; `viewpoint` None = `cloud_viewpoint`."""
    points, colors = _thin(cloud)
    poses, corners = _cameras(scene, points)
    viewpoint = viewpoint or cloud_viewpoint(scene, cloud, wh)
    # As wide as the gaps between points, so that surfaces close; a pixel a point needs none.
    radius = float(np.clip(np.sqrt(wh[0] * wh[1] / len(points)), 1.0, _MAX_RADIUS))
    image = render_points(points, colors, viewpoint, wh, radius=radius, background=PANEL)
    big = image.resize((2 * wh[0], 2 * wh[1]), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(big)
    for index, (center, corner) in enumerate(zip(camera_centers(poses), corners, strict=True)):
        pixels, depth = viewpoint.project(np.concatenate([center[None], corner]))
        if (depth <= 0).any() or np.abs(pixels).max() > 1e5:
            continue
        apex, *frame = (tuple(xy * 2 + 0.5) for xy in pixels)
        color = view_color(index, len(poses))
        for end in frame:
            draw.line([apex, end], fill=color, width=3)
        draw.line([*frame, frame[0], frame[1]], fill=color, width=4, joint="curve")
    return big.resize(wh, Image.Resampling.BOX)


def _thin(cloud: PointCloud | None) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 3) float64 and colours (N, 3) uint8: a sample of a large cloud, the same every time."""
    if cloud is None:
        return np.empty((0, 3)), np.empty((0, 3), np.uint8)
    xyz, rgb = cloud.xyz.double().numpy(), cloud.rgb.numpy()
    if len(xyz) > _MAX_POINTS:
        kept = np.random.default_rng(0).permutation(len(xyz))[:_MAX_POINTS]
        xyz, rgb = xyz[kept], rgb[kept]
    return xyz, rgb


def _cameras(scene: Scene, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Poses (S, 3, 4) and image corners (S, 4, 3); none where a camera isn't finite."""
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
