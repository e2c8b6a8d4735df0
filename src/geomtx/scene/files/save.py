"""The files of a scene: which there are, what writes each, and writing them all or none."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
from geomtx.scene.files.export import Export, ExportOptions, SaveOptions
from geomtx.scene.files.glb import write_glb
from geomtx.scene.files.json_file import write_json
from geomtx.scene.files.nerfstudio import plan_nerfstudio, write_nerfstudio
from geomtx.scene.files.photos import file_names, find_photos
from geomtx.scene.files.ply import write_ply
from geomtx.scene.files.splat import plan_splat, write_splat
from geomtx.scene.files.tracks import write_tracks
from geomtx.scene.filters import PixelFilter
from geomtx.scene.points import NoPointsError, PointCloud

__all__ = [
    "DEFAULT_FORMATS",
    "FORMATS",
    "SCENE_FILES",
    "Saved",
    "check_formats",
    "check_sizes",
    "owned_files",
    "save_scene",
    "scene_cloud",
    "write_files",
    "write_listing",
]

logger = logging.getLogger(__name__)

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

# Reports are made by `geomtx.report`, which imports scenes: they are named here, and imported when they are wanted.
_DRAW_REPORT, _WRITE_PAGE = "geomtx.report:draw_report", "geomtx.report:write_page"
SCENE_FILES = (ARCHIVE, "cameras.json", "tracks.json", "points.ply", "report.html", "report.png")
"""The files that are written where no formats are named."""


def check_formats(formats: Sequence[str]) -> tuple[str, ...]:
    """Return names of formats, each once.

    Raises:
        ValueError: If one is unknown.
    """
    if isinstance(formats, str):
        raise ValueError(f"formats must be a sequence of names, got {formats!r}")
    for name in formats:
        check_name("format", name, FORMATS)
    return tuple(dict.fromkeys(formats))


def owned_files(
    folder: Path, names: Sequence[str], what: SaveOptions, *, formats_alone: bool = False
) -> tuple[str, ...]:
    """Return the paths in a folder that may be written, or are stale afterwards.

    Args:
        folder: Folder for the results.
        names: Names of the photos.
        what: Formats and options of what is written.
        formats_alone: Whether the scene's own files stay as they are. Where they are written too, what earlier formats
            left is stale.
    """
    files = dict.fromkeys(_planned(what.formats, names, what.export))
    if not formats_alone:
        files |= dict.fromkeys((*SCENE_FILES, "scene.glb"))
    for name, each in FORMATS.items():
        if each.folder and (name in what.formats or not formats_alone):
            files |= dict.fromkeys(f"{each.folder}/{path}" for path in listed_files(folder / each.folder))
    return tuple(files)


class Saved(NamedTuple):
    """What was written of a scene.

    Attributes:
        names: Names of the files, and of the folders of formats, the scene's own first.
        num_points: Number of points of the cloud; None without one.
        notes: Lines about the formats for whoever asked for them.
    """

    names: tuple[str, ...]
    num_points: int | None
    notes: tuple[str, ...]


def save_scene(
    scene: SceneContent, folder: Path, what: SaveOptions, *, overwrite: bool = False, formats_alone: bool = False
) -> Saved:
    """Write a scene into a folder, all files or none, and leave what else is there alone.

    Args:
        scene: The scene.
        folder: Folder of the files.
        what: Formats and options of what is written.
        overwrite: Whether files that geomtx did not write may be replaced.
        formats_alone: Whether only the formats are written, and not the scene's own files.

    Raises:
        FileExistsError: As `Scene.save`.
        OSError: As `Scene.save`.
        ValueError: As `Scene.save`; of formats alone, also if there are no points for points.ply.
    """
    owned = owned_files(folder, file_names(scene), what, formats_alone=formats_alone)
    photos = [path for path in scene.paths if path is not None]
    check_writable(folder, owned, overwrite=overwrite, inputs=photos)
    check_sizes(what, [transform.original_hw for transform in scene.transforms])
    if any(FORMATS[name].copies for name in what.formats):
        find_photos(scene, None if what.export.photos is None else user_path(what.export.photos))
    with staged_folder(folder, owned, overwrite=overwrite) as stage:
        return write_files(scene, stage, what, home=folder, formats_alone=formats_alone)


def write_files(
    scene: SceneContent, folder: Path, what: SaveOptions, *, home: Path, formats_alone: bool = False
) -> Saved:
    """Write a scene into a folder that exists and has none of the files, without a check beforehand.

    Args:
        scene: The scene.
        folder: An existing folder.
        what: Formats and options of what is written.
        home: Folder that the files are for: from there the archive names the photos, and notes name it.
        formats_alone: Whether only the formats are written, and not the scene's own files.

    Raises:
        ValueError: As `save_scene`.
    """
    cloud = None
    if not formats_alone:
        cloud = scene_cloud(scene, what.percentile, what.max_points, what.formats, what.which)
    elif {"ply", "glb"} & set(what.formats):
        # Without points there is nothing to write, which is no more than a warning beside a scene's own files.
        cloud = scene.points(what.percentile, max_points=what.max_points, which=what.which)
    names = () if formats_alone else _write_own_files(scene, cloud, folder, home, what)
    export = Export(scene, cloud, what, home)
    names += _write_formats(export, folder)
    place = {name: index for index, name in enumerate(SCENE_FILES)}
    ordered = sorted(names, key=lambda name: place.get(name, len(place)))
    return Saved(tuple(ordered), None if cloud is None else len(cloud.xyz), tuple(export.notes))


def scene_cloud(
    scene: SceneContent,
    percentile: float,
    max_points: int | None,
    formats: Sequence[str] = DEFAULT_FORMATS,
    which: PixelFilter | None = None,
) -> PointCloud | None:
    """Return the point cloud, or None where the predictions allow none, with a warning if they should.

    Args:
        scene: Any scene.
        percentile: Percentile of confidence below which points are left out, see `Scene.points`.
        max_points: Largest number of points, see `Scene.points`.
        formats: Formats that are written, for the warning; defaults to points.ply.
        which: Further tests that a pixel must pass, see `Scene.points`.
    """
    has_depth = scene.predictions.depth is not None and scene.predictions.cameras is not None
    if not has_depth and scene.predictions.points is None:
        return None
    try:
        return scene.points(percentile, max_points=max_points, which=which)
    except NoPointsError as error:
        logger.warning("left out %s, %s", "points.ply" if "ply" in formats else "the cloud", error)
        return None


def _write_own_files(
    scene: SceneContent, cloud: PointCloud | None, folder: Path, home: Path, what: SaveOptions
) -> tuple[str, ...]:
    """Write the files of a scene that no format has and that its predictions allow, and return their names."""
    written = [ARCHIVE]
    write_archive(folder / ARCHIVE, scene, maps=what.maps, home=home)
    if scene.predictions.cameras is not None:
        write_cameras(folder / "cameras.json", scene)
        written.append("cameras.json")
    if scene.predictions.tracks is not None and scene.query_points is not None:
        write_tracks(folder / "tracks.json", scene)
        written.append("tracks.json")
    if what.report:
        _find(_WRITE_PAGE)(folder / "report.html", scene, percentile=what.percentile, which=what.which)
        written.append("report.html")
        save_picture(_find(_DRAW_REPORT)(scene, cloud), folder / "report.png", "report")
        written.append("report.png")
    return tuple(written)


def _write_formats(export: Export, folder: Path) -> tuple[str, ...]:
    """Write formats into a folder that exists, and return the names of the files, or of the folders of files."""
    written = []
    for name in export.what.formats:
        each = FORMATS[name]
        place = folder / each.folder
        if each.folder:
            place.mkdir()
        each.write(place, export)
        if each.folder:
            write_listing(place, name)
        made = (each.folder,) if each.folder else each.plan((), export.options)
        written += [file for file in made if (folder / file).exists()]
    return tuple(written)


def check_sizes(what: SaveOptions, sizes: Iterable[tuple[int, int]]) -> None:
    """Require photos, of which height and width are given, that can share a camera and be made smaller, where asked.

    Raises:
        ValueError: Otherwise.
    """
    found, options = sorted(set(sizes)), what.export
    formats = [FORMATS[name] for name in what.formats]
    if options.shared_camera and len(found) > 1 and any(each.folder for each in formats):
        names = " and ".join(f"{width}x{height}" for height, width in found[:2])
        raise ValueError(f"photos must have one size to share a camera, got {names}")
    largest = max(options.image_factors, default=1)
    height, width = min(found, key=min, default=(largest, largest))
    if largest > min(height, width) and any(each.copies for each in formats):
        raise ValueError(f"image_factors must be at most the sides of the photos, got {largest} for {width}x{height}")


def _planned(formats: Sequence[str], names: Sequence[str], options: ExportOptions) -> list[str]:
    """Paths that formats may write."""
    files: list[str] = []
    for name in formats:
        each = FORMATS[name]
        paths = each.plan(names, options)
        files += [f"{each.folder}/{path}" for path in (*paths, LISTING)] if each.folder else paths
    return files


def write_listing(folder: Path, name: str) -> None:
    """List the files of a folder, by which they are known as geomtx's own.

    Args:
        folder: Folder with files of geomtx alone.
        name: Name of the format of the files.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    write_json(
        folder / LISTING,
        {"format": f"geomtx.{name}", "files": {each: file_digest(folder / each) for each in names}},
    )


def _find(dotted: str) -> Any:
    """Import "module:name"."""
    module, _, name = dotted.partition(":")
    return getattr(importlib.import_module(module), name)
