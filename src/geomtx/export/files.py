"""The files of a scene."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from geomtx.export.archive import ARCHIVE, write_archive
from geomtx.export.cameras import write_cameras
from geomtx.export.pointcloud import write_ply
from geomtx.export.report import draw_report
from geomtx.export.tracks import write_tracks
from geomtx.files import check_writable, save_picture, staged_folder, user_path
from geomtx.scene.pointcloud import NoPointsError, PointCloud
from geomtx.scene.scene import Scene

__all__ = ["SCENE_FILES", "save_scene", "scene_cloud", "write_scene_files"]

logger = logging.getLogger(__name__)

SCENE_FILES = (ARCHIVE, "cameras.json", "tracks.json", "points.ply", "report.png")


def save_scene(
    scene: Scene,
    folder: str | Path,
    *,
    percentile: float = 20.0,
    max_points: int | None = None,
    maps: Literal["original", "network"] = "original",
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


def scene_cloud(scene: Scene, percentile: float, max_points: int | None) -> PointCloud | None:
    """The point cloud, or None where the predictions don't allow one; a warning says why if they should have."""
    has_depth = scene.predictions.depth is not None and scene.predictions.cameras is not None
    if not has_depth and scene.predictions.points is None:
        return None
    try:
        return scene.points(percentile, max_points=max_points)
    except NoPointsError as error:
        logger.warning("left out points.ply, %s", error)
        return None


def write_scene_files(
    scene: Scene,
    cloud: PointCloud | None,
    folder: Path,
    *,
    maps: Literal["original", "network"] = "original",
    report: bool = True,
) -> tuple[str, ...]:
    """Write into a folder that exists; returns the names. What the predictions don't allow is left out."""
    writers: dict[str, Callable[[Path], None]] = {ARCHIVE: lambda path: write_archive(path, scene, maps=maps)}
    if scene.predictions.cameras is not None:
        writers["cameras.json"] = lambda path: write_cameras(path, scene)
    if scene.predictions.tracks is not None and scene.query_points is not None:
        writers["tracks.json"] = lambda path: write_tracks(path, scene)
    if cloud is not None:
        writers["points.ply"] = lambda path: write_ply(path, cloud, units=scene.units, notice=scene.notice)
    if report:
        writers["report.png"] = lambda path: save_picture(draw_report(scene, cloud), path, "report")
    for name, write in writers.items():
        write(folder / name)
    return tuple(writers)
