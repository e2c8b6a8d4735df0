"""The files of a scene: which there are, what writes each, and writing them all or none."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from geomtx.files import check_writable, save_picture, staged_folder, user_path
from geomtx.scene.content import SceneContent
from geomtx.scene.files.archive import ARCHIVE, write_archive
from geomtx.scene.files.cameras import write_cameras
from geomtx.scene.files.ply import write_ply
from geomtx.scene.files.tracks import write_tracks
from geomtx.scene.points import NoPointsError, PointCloud

__all__ = ["SCENE_FILES", "save_scene", "scene_cloud", "write_scene_files"]

logger = logging.getLogger(__name__)

_Maps = Literal["original", "network"]


class _Job(NamedTuple):
    """What writers choose from.

    Attributes:
        scene: The scene.
        cloud: Its point cloud; None where there are no points.
        maps: Resolution of the maps in the archive, see `write_archive`.
        report: Whether a report is wanted.
    """

    scene: SceneContent
    cloud: PointCloud | None
    maps: _Maps
    report: bool


# The report is drawn by `geomtx.report`, which imports scenes: it is named here, and imported when a report is wanted.
_DRAW_REPORT = "geomtx.report:draw_report"


def _archive(path: Path, job: _Job) -> bool:
    write_archive(path, job.scene, maps=job.maps)
    return True


def _cameras(path: Path, job: _Job) -> bool:
    known = job.scene.predictions.cameras is not None
    if known:
        write_cameras(path, job.scene)
    return known


def _tracks(path: Path, job: _Job) -> bool:
    known = job.scene.predictions.tracks is not None and job.scene.query_points is not None
    if known:
        write_tracks(path, job.scene)
    return known


def _points(path: Path, job: _Job) -> bool:
    if job.cloud is not None:
        write_ply(path, job.cloud, units=job.scene.units, notice=job.scene.notice)
    return job.cloud is not None


def _report(path: Path, job: _Job) -> bool:
    if job.report:
        save_picture(_find(_DRAW_REPORT)(job.scene, job.cloud), path, "report")
    return job.report


# Each returns whether it wrote its file: not where the scene lacks what the file would hold.
_WRITERS: dict[str, Callable[[Path, _Job], bool]] = {
    ARCHIVE: _archive,
    "cameras.json": _cameras,
    "tracks.json": _tracks,
    "points.ply": _points,
    "report.png": _report,
}
SCENE_FILES = tuple(_WRITERS)


def save_scene(
    scene: SceneContent,
    folder: str | Path,
    *,
    percentile: float = 20.0,
    max_points: int | None = None,
    maps: _Maps = "network",
    report: bool = True,
    overwrite: bool = False,
) -> tuple[Path, ...]:
    """Write a scene's files, all or none; see `Scene.save`."""
    folder = user_path(folder)
    check_writable(folder, SCENE_FILES, overwrite=overwrite)
    cloud = scene_cloud(scene, percentile, max_points)
    with staged_folder(folder, SCENE_FILES, overwrite=overwrite) as stage:
        names = write_scene_files(scene, cloud, stage, maps=maps, report=report)
    return tuple(folder / name for name in names)


def scene_cloud(scene: SceneContent, percentile: float, max_points: int | None) -> PointCloud | None:
    """Return the point cloud, or None where the predictions allow none, with a warning if they should.

    Args:
        scene: Any scene.
        percentile: See `Scene.points`.
        max_points: See `Scene.points`.
    """
    has_depth = scene.predictions.depth is not None and scene.predictions.cameras is not None
    if not has_depth and scene.predictions.points is None:
        return None
    try:
        return scene.points(percentile, max_points=max_points)
    except NoPointsError as error:
        logger.warning("left out points.ply, %s", error)
        return None


def write_scene_files(
    scene: SceneContent, cloud: PointCloud | None, folder: Path, *, maps: _Maps = "network", report: bool = True
) -> tuple[str, ...]:
    """Write the files of a scene into a folder that exists, and return their names.

    Args:
        scene: Any scene. Files that its predictions don't allow are left out.
        cloud: Its points, see `scene_cloud`; None leaves out points.ply.
        folder: An existing folder.
        maps: Resolution of the maps in the archive, see `write_archive`.
        report: Whether to draw report.png.
    """
    job = _Job(scene, cloud, maps, report)
    return tuple([name for name, write in _WRITERS.items() if write(folder / name, job)])


def _find(dotted: str) -> Any:
    """Import "module:name"."""
    module, _, name = dotted.partition(":")
    return getattr(importlib.import_module(module), name)
