"""All files or none: write beside the destination, then move into place."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["check_writable", "staged_folder"]


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Find out before the work whether `folder` can be made and written to; leaves nothing behind.

    Raises:
        OSError: If it can't: a file in the way, no permission, a read-only disk.
    """
    _remove(_make_stage(Path(folder)))


@contextmanager
def staged_folder(folder: str | os.PathLike[str], owned: Iterable[str] = ()) -> Iterator[Path]:
    """Yield an empty folder, whose files replace those of `folder` if the block succeeds.

    If the block raises, or moving the files into place fails, `folder` is as it was before. A process that is killed
    leaves at most a hidden folder that ends in ".partial".

    Args:
        folder: Made with its parents if it doesn't exist. Files in it that are neither written nor owned are left
            alone.
        owned: Names of files that would be stale if the block doesn't write them; removed then.

    Raises:
        OSError: If `folder` can't be written.
    """
    folder = Path(folder)
    stage = _make_stage(folder)
    try:
        new = stage / "new"
        new.mkdir()
        yield new
        _move_into_place(new, folder, owned, stage / "old")
    finally:
        _remove(stage)


def _make_stage(folder: Path) -> Path:
    """A fresh hidden folder in `folder`, or in its first ancestor that exists: on the same disk, so moving is cheap."""
    home = folder
    while not home.exists() and home != home.parent:
        home = home.parent
    if not home.is_dir():
        raise NotADirectoryError(f"output folder '{folder}' must be a folder, but '{home}' is a file")
    stage = home / f".geomtx-{uuid.uuid4().hex[:12]}.partial"
    try:
        stage.mkdir()
    except OSError as error:
        raise type(error)(f"output folder '{folder}' must be writable, got: {error.strerror}") from error
    return stage


def _remove(stage: Path) -> None:
    shutil.rmtree(stage, ignore_errors=True)


def _move_into_place(new: Path, folder: Path, owned: Iterable[str], old: Path) -> None:
    """Move every file of `new` into `folder`; undo it all if one can't be moved."""
    names = sorted(path.relative_to(new) for path in new.rglob("*") if path.is_file())
    made = _make_parents({folder / name.parent for name in names} | {folder})
    moved: list[tuple[Path, Path]] = []

    def move(source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)
        moved.append((source, target))

    try:
        for name in sorted({*names, *map(Path, owned)}):
            if (folder / name).is_file():
                move(folder / name, old / name)
        for name in names:
            move(new / name, folder / name)
    except BaseException:
        for source, target in reversed(moved):
            target.replace(source)
        for path in reversed(made):
            path.rmdir()
        raise


def _make_parents(folders: Iterable[Path]) -> list[Path]:
    """Make folders and their ancestors; returns those that didn't exist, outermost first."""
    missing = {path for folder in folders for path in (folder, *folder.parents) if not path.exists()}
    made = sorted(missing, key=lambda path: len(path.parts))
    for path in made:
        path.mkdir(exist_ok=True)
    return made
