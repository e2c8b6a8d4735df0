"""All files or none: write beside the destination, then move into place."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["check_writable", "staged_folder"]


def check_writable(folder: str | os.PathLike[str], owned: Iterable[str] = ()) -> None:
    """Find out before the work whether `folder` can be made and files be written to it; leaves nothing behind.

    Args:
        folder: That `staged_folder` will write.
        owned: Names of the files.

    Raises:
        OSError: If it can't: a file or a broken link in the way, a folder in the way of a file, no permission, a
            read-only disk.
    """
    _remove(_make_stage(Path(folder), owned))


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
    folder, owned = Path(folder), tuple(owned)
    stage = _make_stage(folder, owned)
    try:
        new = stage / "new"
        new.mkdir()
        yield new
        _move_into_place(new, folder, owned, stage / "old")
    except OSError as error:
        if isinstance(error.filename, str | Path) and Path(error.filename).is_relative_to(stage / "new"):
            error.filename = str(folder / Path(error.filename).relative_to(stage / "new"))
        raise
    finally:
        _remove(stage)


def _make_stage(folder: Path, owned: Iterable[str]) -> Path:
    """A fresh hidden folder in `folder`, or in its first ancestor that exists: on the same disk, so moving is cheap."""
    home = folder
    while not os.path.lexists(home) and home != home.parent:
        home = home.parent
    if not home.is_dir():
        found = "a link to nothing" if home.is_symlink() else "a file"
        raise NotADirectoryError(f"output folder '{folder}' must be a folder, but '{home}' is {found}")
    for name in owned:
        if (folder / name).is_dir():
            raise IsADirectoryError(
                f"output folder '{folder}' must have room for files, but '{name}' in it is a folder"
            )
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
    made: list[Path] = []
    moved: list[tuple[Path, Path]] = []

    def move(name: Path, source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            source.replace(target)
        except OSError as error:  # that names the user's file, not ours
            raise type(error)(error.errno, error.strerror, str(folder / name)) from error
        moved.append((source, target))

    try:
        _make_parents({folder / name.parent for name in names} | {folder}, made)
        for name in sorted({*names, *map(Path, owned)}):
            if (folder / name).is_file() or (folder / name).is_symlink():
                move(name, folder / name, old / name)
        for name in names:
            move(name, new / name, folder / name)
    except BaseException:
        for source, target in reversed(moved):
            target.replace(source)
        for path in reversed(made):
            path.rmdir()
        raise


def _make_parents(folders: Iterable[Path], made: list[Path]) -> None:
    """Make folders and their ancestors; adds those that didn't exist to `made`, outermost first."""
    missing = {path for folder in folders for path in (folder, *folder.parents) if not path.exists()}
    for path in sorted(missing, key=lambda path: len(path.parts)):
        path.mkdir()
        made.append(path)
