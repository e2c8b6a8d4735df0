"""Options for a video in place of photos, and the files of its frames."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from geomtx.cli.device import is_first_process
from geomtx.cli.parser import parse_count, parse_positive
from geomtx.files import LISTING
from geomtx.views.listing import find_video, list_photos

if TYPE_CHECKING:
    from geomtx.scene import Scene
    from geomtx.views.frames import FramePlan

__all__ = ["FRAMES", "PhotoFiles", "add_options", "check_options", "own_frames", "photo_files"]

FRAMES = "frames"
"""Folder of the results that has the frames of a video."""
_OPTIONS = ("fps", "max_views", "skip_blurred", "skip_duplicates")


class PhotoFiles(NamedTuple):
    """Photos that a command reads.

    Attributes:
        paths: Files of the photos, or of the frames of a video.
        plan: The video and its chosen frames; None for photos.
    """

    paths: list[Path]
    plan: FramePlan | None = None

    @property
    def inputs(self) -> list[Path]:
        """Files of the user that are read."""
        return self.paths if self.plan is None else [self.plan.path]

    @property
    def names(self) -> tuple[str, ...]:
        """Paths of the files of the frames in the folder of the results; none for photos."""
        return () if self.plan is None else tuple(f"{FRAMES}/{name}" for name in (*self._files, LISTING))

    @property
    def _files(self) -> tuple[str, ...]:
        return tuple(path.name for path in self.paths)

    def describe(self) -> dict[str, str]:
        """Return the name of the video and how many of its frames there are, as parts of a scene's provenance."""
        assert self.plan is not None
        return {"photos": self.plan.path.name, "frames": f"{len(self.paths)} of {len(self.plan.timeline.times)}"}

    def move(self, scene: Scene, folder: Path) -> Scene:
        """Move the files of the frames into the folder of the results; returns the scene with their paths there."""
        if self.plan is None:
            return scene
        (folder / FRAMES).mkdir()
        for name in (*self._files, LISTING):
            shutil.move(self.paths[0].with_name(name), folder / FRAMES / name)
        return replace(scene, paths=tuple(folder / FRAMES / name for name in self._files))


def add_options(parser: argparse.ArgumentParser, rule: str) -> None:
    """Add the options to a command.

    Args:
        parser: Parser of the command.
        rule: Description of how many frames are taken where nobody says.
    """
    group = parser.add_argument_group("video", "Which frames of a video are taken; needs the extra video.")
    number = group.add_mutually_exclusive_group()
    number.add_argument("--fps", type=parse_positive, metavar="F", help=f"number of frames a second ({rule})")
    number.add_argument(
        "--max-views", type=parse_count, metavar="N", help="number of frames, evenly spread over the video"
    )
    group.add_argument(
        "--skip-blurred", action="store_true", help="take the nearest sharp frame in place of a blurred one"
    )
    group.add_argument("--skip-duplicates", action="store_true", help="leave out frames that look like the one before")


def check_options(arguments: argparse.Namespace) -> None:
    """Require a video, alone, for options that are for videos.

    Raises:
        ValueError: Otherwise.
    """
    if find_video(arguments.photos) is None:
        for name in _OPTIONS:
            if getattr(arguments, name):
                raise ValueError(f"--{name.replace('_', '-')} must be for a video, got photos")


@contextmanager
def photo_files(arguments: argparse.Namespace, *, most: int | None = None) -> Iterator[PhotoFiles]:
    """Yield the files of the photos; those of a video's frames are in a temporary folder, removed after the block.

    Args:
        arguments: Arguments of a command with `photos` and `add_options`, checked.
        most: Largest number of frames of a video, evenly spread, where neither `fps` nor `max_views` is given; defaults
            to the rule of `FrameChoice`.

    Raises:
        ValueError: If there are no photos, or the video can't be used.
        ImportError: For a video if PyAV is not installed.
    """
    photos = arguments.photos
    video = find_video(photos)
    if video is None:
        yield PhotoFiles(list_photos(photos[0] if len(photos) == 1 else photos))
        return
    from geomtx.views.frames import FrameChoice, plan_frames, write_frames

    if is_first_process() and sys.stderr.isatty():
        print(f"geomtx: reading '{video}'", file=sys.stderr)
    wanted = {name: getattr(arguments, name) for name in _OPTIONS}
    if wanted["fps"] is None and wanted["max_views"] is None:
        wanted["max_views"] = most
    plan = plan_frames(video, FrameChoice(**wanted))
    with tempfile.TemporaryDirectory(prefix="geomtx-") as scratch:
        folder = Path(scratch) / FRAMES
        folder.mkdir()
        yield PhotoFiles(write_frames(plan, folder), plan)


def own_frames(output: Path, inputs: Sequence[Path]) -> tuple[str, ...]:
    """Return the frames of an earlier run in the folder of the results, which are stale unless they are read now."""
    from geomtx.views.frames import listed_frames

    folder = output / FRAMES
    if not folder.is_dir() or any(path.absolute().parent == folder.absolute() for path in inputs):
        return ()
    return tuple(f"{FRAMES}/{name}" for name in listed_frames(folder))
