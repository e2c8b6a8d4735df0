"""What the viewer shows of a scene, as arrays in coordinates of its own that suit a browser."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from geomtx.report.cells import value_range
from geomtx.report.panels import point_widths
from geomtx.report.web_pictures import map_picture, photo_picture
from geomtx.report.web_scene import find_cameras, find_track_places
from geomtx.scene.content import SceneContent
from geomtx.scene.files.save import scene_cloud
from geomtx.scene.points import PointCloud, confidence_threshold, sample_indices

__all__ = ["Frame", "Result", "ShownCamera", "ShownScene", "show_scene"]

_EXTENT = 4.0  # of a scene in the viewer, whose near and far planes are at 0.01 and 1000
_MANY_VIEWS = 50
_SIDE, _SMALL_SIDE = 320, 160  # longer sides of pictures in pixels; the small one for many views


class Frame(NamedTuple):
    """Coordinates of the viewer, near the origin and of moderate size, so that float32 in a browser holds any world.

    Attributes:
        origin: The viewer's origin in the world, (3,) float64.
        unit: One unit of the viewer, in units of the scene.
    """

    origin: np.ndarray
    unit: float

    def to_viewer(self, points: np.ndarray) -> np.ndarray:
        """Return points (..., 3) of the world in the viewer's coordinates."""
        return (points - self.origin) / self.unit


class ShownCamera(NamedTuple):
    """A camera as a frustum: the part of the photo that the model saw.

    Attributes:
        view: Index of the view.
        position: Centre in the viewer's coordinates, (3,).
        rotation: Rotation (3, 3) from the camera, with OpenCV axes, to the world.
        fov: Vertical field of view in radians.
        aspect: Width over height.
    """

    view: int
    position: np.ndarray
    rotation: np.ndarray
    fov: float
    aspect: float


class Result(NamedTuple):
    """Points and cameras of a scene, or of what it was before a refinement; points from the most confident one on.

    Attributes:
        xyz: Points in the viewer's coordinates, (N, 3) float32.
        rgb: Colours of the points, (N, 3) uint8.
        confidence: Confidence of the points, (N,) float32, falling.
        view: Index of the view that each point comes from, (N,) int64.
        width: Width of the surface that a point stands for, half of them have less; 0 where it is not known.
        cameras: Cameras whose values are finite.
    """

    xyz: np.ndarray
    rgb: np.ndarray
    confidence: np.ndarray
    view: np.ndarray
    width: float
    cameras: tuple[ShownCamera, ...]

    def keep(self, percent: float, hidden: frozenset[int]) -> np.ndarray:
        """Return the indices of the points that are left, (M,).

        Args:
            percent: Share of all points that is left out, the least confident first, in percent.
            hidden: Views whose points are left out, too.
        """
        if not len(self.xyz):
            return np.empty(0, np.int64)
        threshold = confidence_threshold(torch.from_numpy(self.confidence), percent)
        kept = np.arange(np.searchsorted(-self.confidence, -threshold, side="right"))
        return kept[~np.isin(self.view[kept], list(hidden))] if hidden else kept

    def places(self) -> np.ndarray:
        """Return the points and the centres of the cameras, (N + S, 3)."""
        return np.concatenate([self.xyz, *(camera.position[None] for camera in self.cameras)])

    def axis(self, index: int) -> np.ndarray:
        """Return an axis that the cameras have on average, (3,): 0 to their right, 1 downwards, 2 where they look."""
        axis = np.eye(3)[index]
        if self.cameras:
            axis = np.mean([camera.rotation[:, index] for camera in self.cameras], axis=0)
        length = np.linalg.norm(axis)
        return axis / length if length > 1e-6 else np.eye(3)[index]


@dataclasses.dataclass(frozen=True)
class ShownScene:
    """A scene as the viewer shows it.

    Attributes:
        scene: The scene.
        frame: Transform between the scene's world and the viewer's coordinates.
        results: Its points and cameras by name; those of the predicted cameras second where the scene was refined.
        num_points: Number of points before they were thinned.
        track_lines: Steps of tracks from a view to the next one that sees the point, (L, 2, 3) float32.
        track_of_line: Index of the track of each step, (L,) int64.
        num_tracks: Number of tracks.
        moving: For each of the results, the points that move by themselves, if there are any.
    """

    scene: SceneContent
    frame: Frame
    results: dict[str, Result]
    num_points: int
    track_lines: np.ndarray
    track_of_line: np.ndarray
    num_tracks: int
    moving: dict[str, Result]

    def picture(self, view: int, kind: str) -> np.ndarray:
        """Return what the model saw of a photo, or predicted for it, as a small picture (h, w, 3) uint8.

        Args:
            view: Index of the view.
            kind: "photo", "depth" or "confidence".
        """
        side = _SIDE if len(self.scene) <= _MANY_VIEWS else _SMALL_SIDE
        if kind == "photo":
            return np.asarray(photo_picture(self.scene, view, side))
        colormap = "turbo" if kind == "depth" else "viridis"
        limits = self.limits(kind)
        return np.asarray(
            map_picture(self._maps(kind)[view], self.scene, view, colormap=colormap, limits=limits, side=side)
        )

    def limits(self, kind: str) -> tuple[float, float]:
        """Return the values at the ends of the colours of "depth" or "confidence"."""
        return value_range(self._maps(kind), self.scene, range(len(self.scene)))

    def _maps(self, kind: str) -> Tensor:
        maps = self.scene.predictions.depth
        assert maps is not None
        return maps.value if kind == "depth" else maps.confidence


def show_scene(scene: SceneContent, *, max_points: int) -> ShownScene:
    """Return what the viewer shows of a scene.

    Args:
        scene: Scene with points, depth and cameras, or cameras alone.
        max_points: Largest number of points; more are thinned at random, the same in every call.

    Raises:
        ValueError: If the scene has neither points nor cameras.
    """
    first = None
    if scene.first_cameras is not None:
        first = dataclasses.replace(scene, predictions=scene.predictions._replace(cameras=scene.first_cameras))
    cloud = scene_cloud(scene, 0.0, None)
    if scene.predictions.cameras is None and cloud is None:
        raise ValueError("scene must have points or cameras for the viewer, got neither")
    centers = np.array([camera.center for camera in find_cameras(scene) if camera is not None]).reshape(-1, 3)
    frame = _place(np.empty((0, 3)) if cloud is None else cloud.xyz.double().numpy(), centers)
    results = {"refined" if first else "scene": _result(scene, cloud, frame, max_points)}
    if first is not None:
        results["first"] = _result(first, scene_cloud(first, 0.0, None), frame, max_points)
    moving = {}
    if scene.moving is not None and (scene.masks & scene.moving).any():
        for name, each in zip(results, (scene, first), strict=False):
            assert each is not None
            only = dataclasses.replace(each, masks=scene.masks & scene.moving, moving=None)
            moving[name] = _result(only, scene_cloud(only, 0.0, None), frame, max_points)
    lines, track = _track_lines(scene, frame)
    tracks = scene.predictions.tracks
    return ShownScene(
        scene=scene,
        frame=frame,
        results=results,
        num_points=0 if cloud is None else len(cloud.xyz),
        track_lines=lines,
        track_of_line=track,
        num_tracks=0 if tracks is None else tracks.coords_px.shape[1],
        moving=moving,
    )


def _place(points: np.ndarray, centers: np.ndarray) -> Frame:
    """Return the frame in which most of the points and all cameras have a given extent around the origin."""
    known = np.concatenate([np.percentile(points, [5, 95], axis=0) if len(points) else centers, centers])
    if not len(known):
        return Frame(np.zeros(3), 1.0)
    low, high = known.min(axis=0), known.max(axis=0)
    extent = float(np.linalg.norm(high - low))
    return Frame((low + high) / 2, extent / _EXTENT if extent > 0 else 1.0)


def _result(scene: SceneContent, cloud: PointCloud | None, frame: Frame, max_points: int) -> Result:
    cameras = []
    for view, camera in enumerate(find_cameras(scene)):
        if camera is not None:
            (height, width), k = camera.hw, camera.intrinsics
            shown = ShownCamera(
                view=view,
                position=frame.to_viewer(camera.center),
                rotation=camera.cam_from_world[:, :3].T,
                fov=2 * float(np.arctan(height / 2 / k[1, 1])),
                aspect=float(width / k[0, 0] / (height / k[1, 1])),
            )
            cameras.append(shown)
    if cloud is None:
        nothing = np.empty(0, np.float32)
        return Result(
            nothing.reshape(0, 3), np.empty((0, 3), np.uint8), nothing, np.empty(0, np.int64), 0.0, tuple(cameras)
        )
    index = sample_indices(len(cloud.xyz), max_points)
    xyz, rgb, confidence, views = (part[index].numpy() for part in cloud)
    widths = point_widths(scene, xyz.astype(np.float64), views)
    order = np.argsort(-confidence, kind="stable")
    return Result(
        xyz=frame.to_viewer(xyz[order].astype(np.float64)).astype(np.float32),
        rgb=rgb[order],
        confidence=confidence[order],
        view=views[order],
        width=float(np.median(widths)) / frame.unit,
        cameras=tuple(cameras),
    )


def _track_lines(scene: SceneContent, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps of tracks in space, (L, 2, 3) float32, and the track of each, (L,)."""
    tracks = scene.predictions.tracks
    ways = find_track_places(scene, range(0 if tracks is None else tracks.coords_px.shape[1]))
    ways = [frame.to_viewer(way).astype(np.float32) for way in ways]
    lines = [np.empty((0, 2, 3), np.float32), *(np.stack([way[:-1], way[1:]], axis=1) for way in ways)]
    return np.concatenate(lines), np.repeat(np.arange(len(ways)), [len(each) for each in lines[1:]])
