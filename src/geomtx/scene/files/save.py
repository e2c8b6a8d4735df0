"""The files of a scene: which there are, what writes each, and writing them all or none."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from geomtx.checks import check_name
from geomtx.files import (
    LISTING,
    check_writable,
    file_digest,
    listed_files,
    save_picture,
    staged_folder,
    user_path,
)
from geomtx.scene.content import SceneContent
from geomtx.scene.files.archive import ARCHIVE, write_archive
from geomtx.scene.files.cameras import write_cameras
from geomtx.scene.files.colmap import check_text_names, write_colmap_model
from geomtx.scene.files.export import Export, ExportOptions
from geomtx.scene.files.glb import write_glb
from geomtx.scene.files.json_file import write_json
from geomtx.scene.files.nerfstudio import plan_nerfstudio, write_nerfstudio
from geomtx.scene.files.photos import file_names, find_photos
from geomtx.scene.files.ply import write_ply
from geomtx.scene.files.splat import plan_splat, write_splat
from geomtx.scene.files.tracks import write_tracks
from geomtx.scene.points import NoPointsError, PointCloud

__all__ = [
    "DEFAULT_FORMATS",
    "FORMATS",
    "SCENE_FILES",
    "check_formats",
    "check_photos",
    "check_sizes",
    "convert_scene",
    "order_names",
    "owned_files",
    "scene_cloud",
    "write_formats",
    "write_scene_files",
]

logger = logging.getLogger(__name__)

_Maps = Literal["original", "network"]

DEFAULT_FORMATS: tuple[str, ...] = ("ply",)
"""Formats that are written where none are named."""


class Format(NamedTuple):
    """A way of writing a scene for other programs.

    Attributes:
        folder: Name of its folder, "" for formats of a single file.
        plan: Function of the photos' names and the options that returns the paths in the folder that may be written,
            and raises ValueError for names that the format can't hold.
        write: Function that writes into that folder, which is there and empty; for single files, into the scene's.
        copies: Whether photos are copied.
    """

    folder: str
    plan: Callable[[Sequence[str], ExportOptions], tuple[str, ...]]
    write: Callable[[Path, Export], None]
    copies: bool = False


def _plan_colmap(names: Sequence[str], options: ExportOptions) -> tuple[str, ...]:
    return tuple(f"sparse/0/{name}" for name in options.layout().names)


def _plan_colmap_text(names: Sequence[str], options: ExportOptions) -> tuple[str, ...]:
    check_text_names(names)
    return tuple(f"sparse/0/{name}" for name in options.layout(text=True).names)


def _write_colmap(folder: Path, export: Export, *, text: bool = False) -> None:
    (folder / "sparse" / "0").mkdir(parents=True)
    names = file_names(export.scene)
    write_colmap_model(
        folder / "sparse" / "0",
        export.model,
        [names[view] for view in export.model.views],
        export.options.layout(text=text),
    )
    turned = [name for name, each in zip(names, export.scene.transforms, strict=True) if each.exif_orientation != 1]
    if turned:
        logger.warning(
            "%d of %d photos are stored turned (EXIF orientation), the first '%s': the model of COLMAP is for them "
            "upright, as the format splat copies them",
            len(turned),
            len(names),
            turned[0],
        )


def _write_colmap_text(folder: Path, export: Export) -> None:
    _write_colmap(folder, export, text=True)


def _write_points(folder: Path, export: Export) -> None:
    if export.cloud is not None:
        scene = export.scene
        write_ply(folder / "points.ply", export.cloud, units=scene.units, notice=scene.notice, world=scene.world)


def _write_glb(folder: Path, export: Export) -> None:
    if export.cloud is None:
        raise NoPointsError("scene must have points for scene.glb, got none")
    write_glb(folder / "scene.glb", export.scene, export.cloud)


FORMATS: dict[str, Format] = {
    "ply": Format("", lambda *_: ("points.ply",), _write_points),
    "glb": Format("", lambda *_: ("scene.glb",), _write_glb),
    "colmap": Format("colmap", _plan_colmap, _write_colmap),
    "colmap-text": Format("colmap-text", _plan_colmap_text, _write_colmap_text),
    "nerfstudio": Format("nerfstudio", plan_nerfstudio, write_nerfstudio, copies=True),
    "splat": Format("splat", plan_splat, write_splat, copies=True),
}

# The report is drawn by `geomtx.report`, which imports scenes: it is named here, and imported when a report is wanted.
_DRAW_REPORT = "geomtx.report:draw_report"
SCENE_FILES = (ARCHIVE, "cameras.json", "tracks.json", "points.ply", "report.png")
"""The files that are written where no formats are named."""


def check_formats(
    formats: Sequence[str], names: Sequence[str] | None = None, options: ExportOptions | None = None
) -> tuple[str, ...]:
    """Require known formats, and names of photos that they can hold.

    Args:
        formats: Names of formats; one that is there twice counts once.
        names: Names of the photos; defaults to none, which checks the formats alone.
        options: How they are written.

    Returns:
        The formats.

    Raises:
        ValueError: Otherwise.
    """
    if isinstance(formats, str):
        raise ValueError(f"formats must be a sequence of names, got {formats!r}")
    for name in formats:
        check_name("format", name, FORMATS)
    formats = tuple(dict.fromkeys(formats))
    if names is not None:
        _planned(formats, names, options or ExportOptions())
    return formats


def owned_files(
    folder: Path, formats: Sequence[str], names: Sequence[str], options: ExportOptions, *, record: bool = True
) -> tuple[str, ...]:
    """Return the paths in a folder that may be written, or are stale afterwards.

    Args:
        folder: Folder for the results.
        formats: Names of formats.
        names: Names of the photos.
        options: How the formats are written.
        record: Whether the scene's own files are written too, after which what earlier formats left is stale.
    """
    files = dict.fromkeys(_planned(formats, names, options))
    if record:
        files |= dict.fromkeys((*SCENE_FILES, "scene.glb"))
    for name, each in FORMATS.items():
        if each.folder and (record or name in formats):
            files |= dict.fromkeys(f"{each.folder}/{path}" for path in listed_files(folder / each.folder))
    return tuple(files)


def convert_scene(
    scene: SceneContent,
    folder: Path,
    formats: Sequence[str],
    *,
    percentile: float = 20.0,
    max_points: int | None = None,
    overwrite: bool = False,
    options: ExportOptions | None = None,
) -> tuple[tuple[str, ...], list[str]]:
    """Write formats of a scene into a folder, all or none, and leave what else is there alone.

    Args:
        scene: The scene.
        folder: Folder of the formats' folders and files.
        formats: Names of formats.
        percentile: Percentile of confidence from which pixels are points.
        max_points: Largest number of points in points.ply and scene.glb; defaults to no limit.
        overwrite: Whether files that geomtx did not write may be replaced.
        options: How they are written.

    Returns:
        The names of the files, or of the folders of files, that were written; and lines about them for the user.

    Raises:
        ValueError: As `Scene.save`, and if there are no points for points.ply.
    """
    options = options or ExportOptions()
    owned = owned_files(folder, formats, file_names(scene), options, record=False)
    photos = [path for path in scene.paths if path is not None]
    check_writable(folder, owned, overwrite=overwrite, inputs=photos)
    check_photos(scene, formats, options)
    # Without points there is nothing to write, which is no more than a warning beside a scene's own files.
    cloud = scene.points(percentile, max_points=max_points) if {"ply", "glb"} & set(formats) else None
    export = Export(scene, cloud, options, percentile, folder)
    with staged_folder(folder, owned, overwrite=overwrite) as stage:
        names = write_formats(export, formats, stage)
    return names, export.notes


def scene_cloud(
    scene: SceneContent, percentile: float, max_points: int | None, formats: Sequence[str] = DEFAULT_FORMATS
) -> PointCloud | None:
    """Return the point cloud, or None where the predictions allow none, with a warning if they should.

    Args:
        scene: Any scene.
        percentile: See `Scene.points`.
        max_points: See `Scene.points`.
        formats: Formats that are written, for the warning; defaults to points.ply.
    """
    has_depth = scene.predictions.depth is not None and scene.predictions.cameras is not None
    if not has_depth and scene.predictions.points is None:
        return None
    try:
        return scene.points(percentile, max_points=max_points)
    except NoPointsError as error:
        logger.warning("left out %s, %s", "points.ply" if "ply" in formats else "the cloud", error)
        return None


def write_scene_files(
    scene: SceneContent,
    cloud: PointCloud | None,
    folder: Path,
    *,
    home: Path,
    maps: _Maps = "network",
    report: bool = True,
) -> tuple[str, ...]:
    """Write a scene's own files into a folder that exists, and return their names.

    Args:
        scene: Any scene. Files that its predictions don't allow are left out.
        cloud: Its points, see `scene_cloud`, which the report shows.
        folder: An existing folder.
        home: Folder that the files are for, from which the archive names the photos.
        maps: Resolution of the maps in the archive, see `write_archive`.
        report: Whether to draw report.png.
    """
    written = [ARCHIVE]
    write_archive(folder / ARCHIVE, scene, maps=maps, home=home)
    if scene.predictions.cameras is not None:
        write_cameras(folder / "cameras.json", scene)
        written.append("cameras.json")
    if scene.predictions.tracks is not None and scene.query_points is not None:
        write_tracks(folder / "tracks.json", scene)
        written.append("tracks.json")
    if report:
        save_picture(_find(_DRAW_REPORT)(scene, cloud), folder / "report.png", "report")
        written.append("report.png")
    return tuple(written)


def write_formats(export: Export, formats: Sequence[str], folder: Path) -> tuple[str, ...]:
    """Write formats into a folder that exists, and return the names of the files, or of the folders of files.

    Args:
        export: The scene.
        formats: Names of formats.
        folder: An existing folder.

    Raises:
        ValueError: If the scene lacks what a format needs.
    """
    written = []
    for name in formats:
        each = FORMATS[name]
        place = folder / each.folder
        if each.folder:
            place.mkdir()
        each.write(place, export)
        if each.folder:
            _write_listing(place, name)
        made = (each.folder,) if each.folder else each.plan((), export.options)
        written += [file for file in made if (folder / file).exists()]
    return tuple(written)


def check_sizes(formats: Sequence[str], sizes: Iterable[tuple[int, int]], options: ExportOptions) -> None:
    """Require photos of one size, height and width each, where formats are to have one camera for all of them.

    Raises:
        ValueError: Otherwise.
    """
    found = sorted(set(sizes))
    if options.shared_camera and len(found) > 1 and any(FORMATS[name].folder for name in formats):
        names = " and ".join(f"{width}x{height}" for height, width in found[:2])
        raise ValueError(f"photos must have one size to share a camera, got {names}")


def check_photos(scene: SceneContent, formats: Sequence[str], options: ExportOptions) -> None:
    """Require photos that formats can be made of, before the work."""
    check_sizes(formats, [transform.original_hw for transform in scene.transforms], options)
    if any(FORMATS[name].copies for name in formats):
        find_photos(scene, None if options.photos is None else user_path(options.photos))


def _planned(formats: Sequence[str], names: Sequence[str], options: ExportOptions) -> list[str]:
    """Paths that formats may write."""
    files: list[str] = []
    for name in formats:
        each = FORMATS[name]
        paths = each.plan(names, options)
        files += [f"{each.folder}/{path}" for path in (*paths, LISTING)] if each.folder else paths
    return files


def _write_listing(folder: Path, name: str) -> None:
    """List the files of a format's folder, by which they are known as geomtx's own."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    write_json(
        folder / LISTING,
        {"format": f"geomtx.{name}", "files": {each: file_digest(folder / each) for each in names}},
    )


def order_names(names: Iterable[str]) -> tuple[str, ...]:
    """Put names of files into the order in which they are shown: the scene's own, then those of formats."""
    place = {name: index for index, name in enumerate(SCENE_FILES)}
    return tuple(sorted(names, key=lambda name: place.get(name, len(place))))


def _find(dotted: str) -> Any:
    """Import "module:name"."""
    module, _, name = dotted.partition(":")
    return getattr(importlib.import_module(module), name)
