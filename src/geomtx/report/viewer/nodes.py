"""The things of a scene in the viewer's 3-D view: points, cameras with pictures, tracks."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from geomtx.report.layout import view_color
from geomtx.report.viewer.flight import to_wxyz
from geomtx.report.viewer.shown import Result, ShownCamera, ShownScene

__all__ = ["COLORS", "GAP", "PICTURES", "Look", "SceneNodes"]

COLORS = ("photo", "confidence", "photo number")
PICTURES = ("photo", "depth", "confidence", "none")

GAP = 1.2
"""From one result to the other beside it, in widths of the scene."""

_RESULT_COLORS = {"refined": (40, 110, 220), "first": (230, 120, 30)}
_RESULT_TITLES = {"refined": "refined", "first": "as predicted"}
_FRUSTUM = 0.13  # size of a camera in units of the viewer, where a scene is 4 wide; less for more than ten
_TITLE_GAP = 0.15  # from a result to its title, in units of the viewer
_POINT = 0.01  # size of a point whose width is not known


@dataclasses.dataclass
class Look:
    """How a scene is shown.

    Attributes:
        percent: Share of the points that is left out, the least confident first, in percent.
        point_size: Size of the points, times the one that closes surfaces.
        color: Source of the points' colours, one of `COLORS`.
        cameras: Whether cameras are shown.
        camera_size: Size of the cameras, times the usual one.
        picture: Kind of picture on the cameras, one of `PICTURES`.
        tracks: Whether tracks are shown.
        hidden: Views whose points and cameras are hidden.
        through: View through whose camera one looks, where pictures on cameras would be in the way; None in general.
        results: Names of the results that are shown.
        layout: "over one another", or "side by side".
        frame: View whose moving points are shown, or -1 for all.
    """

    percent: float = 20.0
    point_size: float = 1.0
    color: str = "photo"
    cameras: bool = True
    camera_size: float = 1.0
    picture: str = "photo"
    tracks: bool = True
    hidden: frozenset[int] = frozenset()
    through: int | None = None
    results: tuple[str, ...] = ()
    layout: Literal["over one another", "side by side"] = "over one another"
    frame: int = 0


class SceneNodes:
    """Draws a scene as its look says, and again after a change of it.

    Args:
        server: A `viser.ViserServer`.
        shown: The scene.
        on_photo: Function that is called with the view and with viser's handle of the browser when a camera is clicked.
    """

    def __init__(self, server: Any, shown: ShownScene, on_photo: Callable[[int, Any], None]) -> None:
        self.shown = shown
        self.look = Look(results=tuple(shown.results)[:1])
        self._server, self._on_photo = server, on_photo
        self._clouds: dict[str, Any] = {}
        self._moving: dict[str, Any] = {}
        self._frusta: dict[tuple[str, int], Any] = {}
        self._titles: list[Any] = []
        self._tracks: Any = None
        self._drawn: Look | None = None
        self._lock = threading.Lock()
        self.points = np.empty((0, 3), np.float32)
        self.draw()

    def change(self, **values: Any) -> None:
        """Change fields of the look, and draw what they change."""
        self.look = dataclasses.replace(self.look, **values)
        self.draw()

    def draw(self) -> None:
        """Draw what is not drawn as the look says; of changes that come faster than they are drawn, the last counts."""
        with self._lock:
            look, drawn = dataclasses.replace(self.look), self._drawn
            if look == drawn:
                return
            with self._server.atomic():
                if _differ(look, drawn, "percent", "point_size", "color", "hidden", "results", "layout"):
                    self._draw_points(look)
                if _differ(look, drawn, "percent", "point_size", "hidden", "results", "layout", "frame"):
                    self._draw_moving(look)
                if _differ(look, drawn, "cameras", "camera_size", "picture", "hidden", "through", "results", "layout"):
                    self._draw_cameras(look, drawn)
                if _differ(look, drawn, "results", "layout"):
                    self._draw_titles(look)
                if _differ(look, drawn, "tracks"):
                    self._draw_tracks(look)
            self._drawn = look

    def remove(self) -> None:
        """Remove everything."""
        with self._lock:
            handles = (*self._clouds.values(), *self._moving.values(), *self._frusta.values(), *self._titles)
            for handle in (*handles, *([self._tracks] if self._tracks else [])):
                handle.remove()
            self._clouds, self._moving, self._frusta, self._titles, self._tracks = {}, {}, {}, [], None

    def camera(self, view: int) -> tuple[ShownCamera, np.ndarray] | None:
        """Return the camera of a view in the first result that is shown, and where that result is moved to, (3,)."""
        for name in self.look.results:
            for camera in self.shown.results[name].cameras:
                if camera.view == view:
                    return camera, self.offset(name, self.look)
        return None

    def offset(self, name: str, look: Look) -> np.ndarray:
        """Return where a result is moved to, (3,): the second one to the right of the first, seen from the cameras."""
        if look.layout != "side by side" or look.results.index(name) == 0:
            return np.zeros(3)
        result = self.shown.results[look.results[0]]
        right = result.axis(0)
        return right * GAP * float(np.ptp(np.percentile(result.places() @ right, [2, 98])))

    @property
    def point_size(self) -> float:
        """Size of the largest points that are shown, in units of the viewer."""
        return max((_point_size(self.shown.results[name], self.look) for name in self.look.results), default=0.0)

    def _draw_points(self, look: Look) -> None:
        for name in [name for name in self._clouds if name not in look.results]:
            self._clouds.pop(name).remove()
        shown = []
        for name in look.results:
            result = self.shown.results[name]
            index = result.keep(look.percent, look.hidden)
            xyz = (result.xyz[index] + self.offset(name, look)).astype(np.float32)
            shown.append(xyz)
            if not len(xyz):
                if name in self._clouds:
                    self._clouds.pop(name).remove()
                continue
            colors = self._colors(result, index, name, look)
            self._clouds[name] = self._add_cloud(f"/points/{name}", xyz, colors, _point_size(result, look))
        self.points = np.concatenate(shown) if shown else self.points[:0]

    def _draw_moving(self, look: Look) -> None:
        """Show the moving points of one frame, in the colours of its photo, or those of all."""
        for handle in self._moving.values():
            handle.remove()
        self._moving = {}
        for name in look.results:
            result = self.shown.moving.get(name)
            if result is not None:
                index = result.keep(look.percent, look.hidden)
                index = index if look.frame < 0 else index[result.view[index] == look.frame]
                if len(index):
                    xyz = (result.xyz[index] + self.offset(name, look)).astype(np.float32)
                    size = _point_size(result, look)
                    self._moving[name] = self._add_cloud(f"/moving/{name}", xyz, result.rgb[index], size)

    def _add_cloud(self, name: str, xyz: np.ndarray, colors: np.ndarray, size: float) -> Any:
        return self._server.scene.add_point_cloud(
            name, xyz, colors, point_size=size, point_shape="circle", point_shading="flat", precision="float32"
        )

    def _colors(self, result: Result, index: np.ndarray, name: str, look: Look) -> np.ndarray:
        if look.color == "photo":
            colors = result.rgb[index]
        else:
            import matplotlib

            # Confidence ranks points and means no more, so that colours are spread evenly over the ranks.
            count = len(result.xyz) if look.color == "confidence" else len(self.shown.scene)
            rank = count - 1 - index if look.color == "confidence" else result.view[index]
            if look.color == "confidence":
                colors = matplotlib.colormaps["viridis"](rank / max(1, count - 1))[:, :3]
            else:
                colors = np.array([view_color(view, count) for view in range(count)])[rank]
            colors = (colors * 255).round().astype(np.uint8)
        if len(look.results) > 1 and look.layout == "over one another":
            colors = (0.5 * colors + 0.5 * np.array(_RESULT_COLORS[name])).round().astype(np.uint8)
        return colors

    def _draw_cameras(self, look: Look, drawn: Look | None) -> None:
        if drawn is None or _differ(look, drawn, "results", "layout"):
            for handle in self._frusta.values():
                handle.remove()
            self._frusta = {}
        size = _FRUSTUM * look.camera_size * min(1.0, (10 / len(self.shown.scene)) ** 0.5)
        for name in look.results:
            for camera in self.shown.results[name].cameras:
                key = name, camera.view
                handle = self._frusta.get(key)
                if handle is None:
                    handle = self._frusta[key] = self._add_frustum(name, camera, look)
                elif drawn is not None and drawn.picture != look.picture:
                    handle.image = self._picture(camera.view, look)
                handle.scale = size
                handle.visible = look.cameras and look.through is None and camera.view not in look.hidden

    def _add_frustum(self, name: str, camera: ShownCamera, look: Look) -> Any:
        red, green, blue = (round(255 * part) for part in view_color(camera.view, len(self.shown.scene)))
        handle = self._server.scene.add_camera_frustum(
            f"/cameras/{name}/{camera.view}",
            fov=camera.fov,
            aspect=camera.aspect,
            thickness=1.5,
            thickness_units="screen",
            color=_RESULT_COLORS[name] if len(look.results) > 1 else (red, green, blue),
            image=self._picture(camera.view, look),
            format="jpeg",
            jpeg_quality=80,
            wxyz=to_wxyz(camera.rotation),
            position=camera.position + self.offset(name, look),
        )
        handle.on_click(lambda event, view=camera.view: self._on_photo(view, event.client))
        return handle

    def _picture(self, view: int, look: Look) -> np.ndarray | None:
        return None if look.picture == "none" else self.shown.picture(view, look.picture)

    def _draw_titles(self, look: Look) -> None:
        """Write above each of two results side by side which one it is."""
        for handle in self._titles:
            handle.remove()
        self._titles = []
        if look.layout != "side by side":
            return
        for name in look.results:
            result = self.shown.results[name]
            places, up = result.places(), -result.axis(1)
            middle = np.median(places, axis=0)
            above = up * (float(np.percentile((places - middle) @ up, 98)) + _TITLE_GAP)
            position = middle + above + self.offset(name, look)
            self._titles.append(
                self._server.scene.add_label(f"/titles/{name}", _RESULT_TITLES[name], position=position)
            )

    def _draw_tracks(self, look: Look) -> None:
        if not len(self.shown.track_lines):
            return
        if self._tracks is None:
            count = self.shown.num_tracks
            colors = np.array([view_color(track, count) for track in range(count)])[self.shown.track_of_line]
            self._tracks = self._server.scene.add_line_segments(
                "/tracks",
                points=self.shown.track_lines,
                colors=np.repeat((colors * 255).round().astype(np.uint8)[:, None], 2, axis=1),
                thickness=2.5,
                thickness_units="screen",
            )
        self._tracks.visible = look.tracks


def _point_size(result: Result, look: Look) -> float:
    return (result.width or _POINT) * look.point_size


def _differ(look: Look, drawn: Look | None, *names: str) -> bool:
    return drawn is None or any(getattr(look, name) != getattr(drawn, name) for name in names)
