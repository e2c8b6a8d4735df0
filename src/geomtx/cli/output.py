"""What commands that make a scene share: a progress bar over the stages, and writing the files at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tqdm import tqdm

if TYPE_CHECKING:
    from geomtx.scene import Scene
    from geomtx.scene.files.export import ExportOptions

__all__ = ["NANO_WEIGHTS", "RANDOM_WEIGHTS", "Stages", "write_scene"]

NANO_WEIGHTS = "nano has seen nothing but small rendered rooms: it says little about photos"
RANDOM_WEIGHTS = "RANDOM WEIGHTS: nothing was learned, the geometry is meaningless"


class Stages:
    """A progress bar over named stages, on stderr if that is a terminal."""

    def __init__(self, total: int, *, show: bool = True) -> None:
        self.started = time.monotonic()
        bar_format = "{desc:<24}{bar:20} {n_fmt}/{total_fmt} [{elapsed}]"
        self._bar = tqdm(total=total, unit="stage", bar_format=bar_format, disable=None if show else True)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show a stage while the block runs."""
        self._bar.set_description_str(name)
        try:
            yield
        except BaseException:
            self._bar.close()
            raise
        self._bar.update()

    def finish(self) -> float:
        """Close the bar; returns the seconds since the start."""
        self._bar.set_description_str("done")
        self._bar.close()
        return time.monotonic() - self.started


def write_scene(
    scene: Scene,
    folder: Path,
    *,
    home: Path,
    formats: Sequence[str] = ("ply",),
    percentile: float = 20.0,
    max_points: int | None = None,
    maps: Literal["original", "network"] = "network",
    options: ExportOptions | None = None,
) -> tuple[str, list[str]]:
    """Write all files of a scene into a folder that exists.

    Args:
        scene: The scene.
        folder: Folder that is written.
        home: Folder that the files are for.
        formats: Names of formats.
        percentile: Percentile of confidence from which pixels are points.
        max_points: Largest number of points; defaults to no limit.
        maps: Resolution of the maps in the archive.
        options: How the formats are written; defaults to `ExportOptions()`.

    Returns:
        A summary of two lines, and further lines about the formats.
    """
    from geomtx.report.text import count
    from geomtx.scene.files.export import Export, ExportOptions
    from geomtx.scene.files.save import order_names, scene_cloud, write_formats, write_scene_files

    cloud = scene_cloud(scene, percentile, max_points, formats)
    names = write_scene_files(scene, cloud, folder, home=home, maps=maps)
    export = Export(scene, cloud, options or ExportOptions(), percentile, home)
    names = order_names((*names, *write_formats(export, formats, folder)))
    points = "no points" if cloud is None else count(len(cloud.xyz), "point")
    return f"{', '.join(names)}\n{count(len(scene), 'view')}, {points}, lengths {scene.units}", export.notes
