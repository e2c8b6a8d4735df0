"""The two panels beside a report's rows: the plan and the point cloud, each with the cameras."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from geomtx.export.canvas import PANEL, view_color
from geomtx.export.plan import camera_centers, draw_plan, frustum_corners
from geomtx.export.render import overview, render_points
from geomtx.scene.pointcloud import PointCloud
from geomtx.scene.scene import Scene

__all__ = ["cloud_panel", "plan_panel"]

_MAX_POINTS = 600_000
_FRUSTUM = 0.07  # depth of a drawn camera, share of the scene's extent; less for more than ten


def plan_panel(scene: Scene, cloud: PointCloud | None, wh: tuple[int, int], labels: list[int]) -> Image.Image:
    """The scene from above; `labels` are the views whose number is written."""
    points, colors = _thin(cloud)
    poses, corners = _cameras(scene, points)
    numbered = labels if len(poses) > 12 else list(range(len(poses)))
    centers = camera_centers(poses)
    return draw_plan(
        wh, points, colors, centers, corners, labels=[n for n in numbered if n < len(poses)], units=scene.units
    )


def cloud_panel(scene: Scene, cloud: PointCloud, wh: tuple[int, int]) -> Image.Image:
    """The point cloud in perspective with the cameras in it."""
    points, colors = _thin(cloud)
    poses, corners = _cameras(scene, points)
    viewpoint = overview(points, poses if len(poses) else np.eye(3, 4)[None], wh, also=corners.reshape(-1, 3))
    # As wide as the gaps between points, so that surfaces close; a pixel a point needs none.
    radius = float(np.clip(np.sqrt(wh[0] * wh[1] / len(points)), 1.0, 3.0))
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
