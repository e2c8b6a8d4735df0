"""A camera's flight: poses between key poses, smooth in position and direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from geomtx.report.viewer.server import require_viser

__all__ = ["Pose", "fly", "to_wxyz"]


class Pose(NamedTuple):
    """A virtual camera in the viewer's coordinates.

    Attributes:
        position: Centre, (3,).
        wxyz: Rotation from the camera, with OpenCV axes, to the world, as a unit quaternion (4,), scalar first.
        fov: Vertical field of view in radians.
    """

    position: np.ndarray
    wxyz: np.ndarray
    fov: float

    @property
    def rotation(self) -> np.ndarray:
        """The rotation as a matrix (3, 3)."""
        matrix: np.ndarray = require_viser().transforms.SO3(self.wxyz).as_matrix()
        return matrix


def to_wxyz(rotation: np.ndarray) -> np.ndarray:
    """Return a rotation (3, 3) as a unit quaternion (4,), scalar first."""
    # viser has it at hand; `geomtx.geometry` would import torch's compiler, which takes seconds.
    wxyz: np.ndarray = require_viser().transforms.SO3.from_matrix(rotation).wxyz
    return wxyz


def fly(keys: Sequence[Pose], num_frames: int) -> list[Pose]:
    """Return poses from the first key pose to the last, with the same time from one key pose to the next.

    Positions are on a Catmull-Rom spline, a cubic through the keys whose slope at a key is half the way from the one
    before to the one after. Rotations turn at a constant speed about one axis from key to key, the shorter way. Fields
    of view change linearly.

    Args:
        keys: Key poses, at least one.
        num_frames: Number of poses, at least 1; the first and the last are those of the keys if there are two or more.

    Returns:
        The poses.
    """
    if len(keys) == 1:
        return [keys[0]] * num_frames
    turn = require_viser().transforms.SO3
    positions = np.stack([key.position for key in keys])
    before, after = np.concatenate([positions[:1], positions[:-1]]), np.concatenate([positions[1:], positions[-1:]])
    slopes = (after - before) / 2
    poses = []
    for time in np.linspace(0, len(keys) - 1, num_frames):
        start = min(int(time), len(keys) - 2)
        t, (first, last) = float(time) - start, keys[start : start + 2]
        weights = (2 * t**3 - 3 * t**2 + 1, t**3 - 2 * t**2 + t, 3 * t**2 - 2 * t**3, t**3 - t**2)
        ends = positions[start], slopes[start], positions[start + 1], slopes[start + 1]
        position = np.sum([weight * end for weight, end in zip(weights, ends, strict=True)], axis=0)
        way = (turn(first.wxyz).inverse() @ turn(last.wxyz)).log()
        wxyz = (turn(first.wxyz) @ turn.exp(t * way)).wxyz
        poses.append(Pose(position, wxyz, (1 - t) * first.fov + t * last.fov))
    return poses
