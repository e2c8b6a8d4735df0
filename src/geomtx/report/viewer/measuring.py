"""The distance between two points of a cloud that are clicked."""

from __future__ import annotations

from typing import Any

import numpy as np

from geomtx.report.text import format_value

__all__ = ["Measure", "describe_length", "pick_point"]

_NEAR, _FARTHEST = 0.006, 0.03  # angles between a click and a point, in radians; about 5 and 25 pixels
_SAME_SURFACE = 1.02  # share of the depth within which points lie on the surface that was clicked
_COLOR = (220, 30, 90)
_NAMES = ("A", "B")
_MARK = 0.012  # least radius of a mark in units of the viewer, where a scene is 4 wide
_STANDS_OUT = 0.75  # radius of a mark in sizes of the points, among which a smaller one would be hidden


def pick_point(points: np.ndarray, origin: np.ndarray, direction: np.ndarray) -> int | None:
    """Return the index of the point that a ray hits, or None where there is none near it.

    It is the one with the smallest angle to the ray, of those that lie no deeper than the first surface near the ray.

    Args:
        points: (N, 3).
        origin: Start of the ray, (3,).
        direction: Direction of the ray, (3,).
    """
    if not len(points):
        return None
    direction = np.asarray(direction, dtype=np.float64)
    direction = direction / np.linalg.norm(direction)
    offsets = points - np.asarray(origin, dtype=np.float64)
    depth = offsets @ direction
    with np.errstate(invalid="ignore", divide="ignore"):
        aside = np.sqrt(np.maximum((offsets**2).sum(axis=1) - depth**2, 0))
        angle = np.where(depth > 0, aside / depth, np.inf)
    near = angle < _NEAR
    if near.any():
        angle = np.where(near & (depth <= depth[near].min() * _SAME_SURFACE), angle, np.inf)
    index = int(angle.argmin())
    return index if angle[index] < _FARTHEST else None


def describe_length(length: float, units: str) -> str:
    """Return a length with its unit, or with the remark that the scale of the scene is not known."""
    return f"{format_value(length)} {'(no unit: up to scale)' if units == 'up to scale' else units}"


class Measure:
    """Marks the points that are clicked as A and B, and writes their distance beside the line between them.

    Points of the cloud may hide the line, but neither letters nor distance.

    Args:
        server: A `viser.ViserServer`.
        unit: One unit of the viewer, in units of the scene.
        units: Name of the units of the scene.
    """

    def __init__(self, server: Any, unit: float, units: str) -> None:
        self._server, self._unit, self._units = server, unit, units
        self._ends: list[np.ndarray] = []
        self._marks: list[Any] = []

    def add(self, point: np.ndarray, size: float = 0.0) -> float | None:
        """Take the next point; a third one is the first of another pair.

        Args:
            point: (3,), in the viewer's coordinates.
            size: Size of the cloud's points, in the viewer's coordinates.

        Returns:
            The distance in units of the scene where this is the second point, else None.
        """
        if len(self._ends) == 2:
            self.clear()
        self._ends.append(np.asarray(point, dtype=np.float64))
        name = _NAMES[len(self._ends) - 1]
        radius = max(_MARK, _STANDS_OUT * size)
        self._marks += [
            self._server.scene.add_icosphere(f"/distance/{name}", radius=radius, color=_COLOR, position=point),
            self._server.scene.add_label(f"/distance/name of {name}", name, position=point, anchor="bottom-center"),
        ]
        if name == "A":
            return None
        start, end = self._ends
        length = float(np.linalg.norm(end - start)) * self._unit
        line = np.stack([start, end])[None].astype(np.float32)
        self._marks += [
            self._server.scene.add_line_segments(
                "/distance/line", points=line, colors=_COLOR, thickness=3, thickness_units="screen"
            ),
            self._server.scene.add_label(
                "/distance/length", describe_length(length, self._units), position=(start + end) / 2
            ),
        ]
        return length

    def clear(self) -> None:
        """Forget the points and remove what is drawn."""
        for mark in self._marks:
            mark.remove()
        self._ends, self._marks = [], []
