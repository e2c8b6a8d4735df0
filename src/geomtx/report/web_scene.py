"""What the view in space of report.html shows: points, cameras and tracks as numbers for the page's script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from geomtx.report.cells import seen_part
from geomtx.report.layout import choose_rows, view_color
from geomtx.report.panels import find_near
from geomtx.scene.content import SceneContent
from geomtx.scene.files.frusta import camera_centers, frustum_corners
from geomtx.scene.points import PointCloud
from geomtx.scene.surfaces import find_surfaces
from geomtx.views.transform import lies_inside

__all__ = [
    "PackedPoints",
    "WebCamera",
    "describe_space",
    "find_cameras",
    "find_track_places",
    "hex_color",
    "pack_points",
]

_FRUSTUM = 0.055  # depth of a drawn camera, share of the scene's extent; less for more than ten
_MOST_TRACKS = 200
_COVER = 1.3  # width of a point in widths of what it stands for, so that surfaces of a random sample close


class PackedPoints(NamedTuple):
    """Points as the page holds them.

    Attributes:
        data: Bytes of N points, 10 a point, in the order of the views: 6 N of x, y, z as little-endian uint16 over the
            box, 3 N of red, green and blue, N of the rank of the confidence.
        low: Least x, y, z of the box, (3,).
        size: Sides of the box, (3,).
        first: Index of the first point of each view, and N, (S + 1,).
        xyz: The points themselves, (N, 3) float64.
        num_far: Number of points left out because they lie far from nearly all others.
    """

    data: bytes
    low: np.ndarray
    size: np.ndarray
    first: np.ndarray
    xyz: np.ndarray
    num_far: int


class WebCamera(NamedTuple):
    """A camera with finite values, in the scene's world.

    Attributes:
        cam_from_world: Pose, (3, 4).
        center: Its centre, (3,).
        intrinsics: (3, 3), for the part of the photo that the model saw, in the photo's pixels.
        hw: Height and width of that part.
        pixel: Angle of a pixel of the model's image, as a share of the depth.
    """

    cam_from_world: np.ndarray
    center: np.ndarray
    intrinsics: np.ndarray
    hw: tuple[float, float]
    pixel: float


def hex_color(color: tuple[float, float, float]) -> str:
    """Return a colour in 0 … 1 as CSS writes it."""
    return "#" + "".join(f"{round(255 * value):02x}" for value in color)


def pack_points(cloud: PointCloud | None, num_views: int) -> PackedPoints:
    """Return the points of a cloud that are not far away, in few bytes.

    The rank of a point is the share of all points that are at most as sure, in 256ths: what is left when the page
    leaves out p per cent are the points whose rank is at least 2.56 p, as `Scene.points` has them.

    Args:
        cloud: Points in the order of the views; None for none.
        num_views: Number of views.
    """
    if cloud is None:
        nothing = np.zeros(3)
        return PackedPoints(b"", nothing, nothing, np.zeros(num_views + 1, np.int64), np.empty((0, 3)), 0)
    xyz = cloud.xyz.double().numpy()
    near = find_near(xyz)
    xyz, rgb = xyz[near], cloud.rgb.numpy()[near]
    confidence, view = cloud.confidence.numpy()[near], cloud.view.numpy()[near]
    low = xyz.min(axis=0)
    size = xyz.max(axis=0) - low
    grid = np.rint((xyz - low) / np.where(size > 0, size, 1.0) * 65535).astype("<u2")
    not_above = np.searchsorted(np.sort(confidence), confidence, side="right")
    rank = np.clip(-(-256 * not_above // len(xyz)) - 1, 0, 255).astype(np.uint8)
    first = np.searchsorted(view, np.arange(num_views + 1))
    data = grid.tobytes() + np.ascontiguousarray(rgb).tobytes() + rank.tobytes()
    return PackedPoints(data, low, size, first, xyz, int((~near).sum()))


def find_cameras(scene: SceneContent) -> list[WebCamera | None]:
    """Return the camera of each view; None where its values are not finite, or there are none."""
    cameras = scene.cameras
    if cameras is None:
        return [None] * len(scene)
    found: list[WebCamera | None] = []
    poses, intrinsics = (part.double().numpy() for part in cameras)
    centers = camera_centers(poses)
    for view, transform in enumerate(scene.transforms):
        left, top, right, bottom = seen_part(transform)
        k = intrinsics[view].copy()
        k[:2, 2] -= left, top
        values = (poses[view], centers[view], k)
        usable = all(np.isfinite(each).all() for each in values) and k[0, 0] > 0 and k[1, 1] > 0
        found.append(
            WebCamera(*values, (bottom - top, right - left), 1 / (k[0, 0] * transform.scale[0])) if usable else None
        )
    return found


def describe_space(scene: SceneContent, points: PackedPoints, cameras: list[WebCamera | None]) -> dict[str, Any] | None:
    """Return the numbers that `web/scene.js` reads, in the scene's world; None where there is nothing in space.

    Args:
        scene: The scene.
        points: Its points, see `pack_points`.
        cameras: Its cameras, see `find_cameras`.
    """
    known = [camera for camera in cameras if camera is not None]
    centers = np.array([camera.center for camera in known]).reshape(-1, 3)
    if not len(points.xyz) and not known:
        return None
    places = points.xyz if len(points.xyz) else centers
    low, size = (points.low, points.size) if len(points.xyz) else (places.min(axis=0), np.ptp(places, axis=0))
    extent = _measure_extent(points.xyz, centers)
    depth = _FRUSTUM * extent * min(1.0, (10 / max(len(known), 1)) ** 0.5)
    thinned = _COVER * np.sqrt(max(1.0, int(scene.masks.sum()) / max(len(points.xyz), 1)))
    colors = [view_color(view, len(scene)) for view in range(len(scene))]
    down = np.sum([camera.cam_from_world[1, :3] for camera in known], axis=0) if known else np.array([0.0, 1.0, 0.0])
    if np.linalg.norm(down) < 0.1 * len(known):  # they look every way, upside down too
        down = known[0].cam_from_world[1, :3]
    return {
        "units": scene.units,
        "box": {"low": _numbers(low), "size": _numbers(size if size.any() else np.full(3, extent))},
        "count": len(points.xyz),
        "first": points.first.tolist(),
        "spread": _number(extent / max(len(points.xyz), 1) ** 0.5),
        "down": _numbers(down),
        "colors": [hex_color(color) for color in colors],
        "cameras": [
            None if camera is None else _describe_camera(camera, colors[view], _own(points, view), (depth, thinned))
            for view, camera in enumerate(cameras)
        ],
        "tracks": _describe_tracks(scene),
    }


def _measure_extent(points: np.ndarray, centers: np.ndarray) -> float:
    """Return the diagonal of the box around most points and all cameras that lie near them."""
    if not len(points):
        return float(np.linalg.norm(np.ptp(centers, axis=0))) or 1.0
    known = np.percentile(points, [5, 95], axis=0)
    near = np.concatenate([known, centers[find_near(np.concatenate([points, centers]))[len(points) :]]])
    return float(np.linalg.norm(np.ptp(near, axis=0))) or 1.0


def _own(points: PackedPoints, view: int) -> np.ndarray:
    """Return the points of a view, (n, 3)."""
    return points.xyz[points.first[view] : points.first[view + 1]]


def _describe_camera(
    camera: WebCamera, color: tuple[float, float, float], own: np.ndarray, sizes: tuple[float, float]
) -> dict[str, Any]:
    """Return a camera for the page; `sizes` are the depth of its drawing and the width of a point in pixels."""
    depth, thinned = sizes
    pose, k, (height, width) = camera.cam_from_world, camera.intrinsics, camera.hw
    corners = frustum_corners(pose[None], k[None], [(height, width)], depth)[0]  # type: ignore[list-item]
    # Forward is where the middle of the photo is, whatever the principal point.
    middle = corners.mean(axis=0) - camera.center
    z = own @ pose[2, :3] + pose[2, 3]
    return {
        "center": _numbers(camera.center),
        "corners": [_numbers(corner) for corner in corners],
        "color": [_number(value) for value in color],
        "forward": _numbers(middle / np.linalg.norm(middle)),
        "right": _numbers(pose[0, :3]),
        "tangents": _numbers(np.array([width / k[0, 0], height / k[1, 1]]) / 2),
        "depth": _number(float(np.median(z)) if len(z) and np.median(z) > 0 else 10 * depth),
        "reach": _number(1.2 * float(np.linalg.norm(corners - camera.center, axis=1).max())),
        "width": _numbers(pose[2] * (thinned * camera.pixel)),
    }


def _describe_tracks(scene: SceneContent) -> list[dict[str, Any]]:
    """Return some of the tracks with their colours."""
    total = 0 if scene.predictions.tracks is None else scene.predictions.tracks.coords_px.shape[1]
    chosen = choose_rows(total, _MOST_TRACKS) if total else []
    return [
        {
            "places": [_numbers(place) for place in places],
            "color": [_number(value) for value in view_color(track, total)],
        }
        for track, places in zip(chosen, find_track_places(scene, chosen), strict=True)
        if len(places)
    ]


def find_track_places(scene: SceneContent, chosen: Sequence[int]) -> list[np.ndarray]:
    """Return where the views that see the point of a track have their surface there, in the order of the views.

    Where views disagree the places are apart; for a point that moves they are its way.

    Args:
        scene: The scene.
        chosen: Indices of the tracks.

    Returns:
        Places (n, 3) of each track; none where there are no cameras, or neither depth nor points.
    """
    tracks, cameras = scene.predictions.tracks, scene.predictions.cameras
    if tracks is None or cameras is None or (scene.predictions.depth is None and scene.predictions.points is None):
        return [np.empty((0, 3))] * len(chosen)
    surfaces = find_surfaces(scene)
    coords = tracks.coords_px.double()
    height, width = scene.images.shape[-2:]
    seen = ((tracks.visibility > 0.5) & lies_inside(coords, (height, width))).numpy()
    held = coords.clamp(min=torch.zeros(2), max=torch.tensor([width - 1.0, height - 1.0])).numpy()
    found = []
    for track in chosen:
        views = np.flatnonzero(seen[:, track] & surfaces.known)
        places = surfaces.unproject_each(views, held[views, track])
        found.append(places[np.isfinite(places).all(axis=1)])
    return found


def _number(value: float) -> float:
    return float(f"{value:.7g}")


def _numbers(values: np.ndarray) -> list[float]:
    return [_number(value) for value in values.tolist()]
