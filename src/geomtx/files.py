"""Files that geomtx writes: paths as users give them, which files are its own, and all files or none."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import struct
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "LISTING",
    "PNG_KEY",
    "TRAINING_HEADER",
    "check_inputs",
    "check_writable",
    "escape_name",
    "file_digest",
    "is_own",
    "is_own_picture",
    "list_inputs",
    "listed_files",
    "read_metadata",
    "save_picture",
    "staged_folder",
    "unique_names",
    "user_path",
]

PathLike = str | os.PathLike[str]

# How each kind of file says that it is geomtx's own.
PNG_KEY = "geomtx"
"""Keyword of a PNG text chunk; its value says what the picture is: "report", "photo", …"""
_JSON = re.compile(rb'\s*\{\s*"format":\s*"geomtx\.')
# A log of training begins with a validation before the first step; without one it has the loss in each line, or its own
# counts where all steps were skipped.
_JSON_LINES = re.compile(
    rb'\{"step": 0, "kind": "validation", "'
    rb'|\{"step": \d+, "kind": "(train|validation)", ([^\n]*, )?("objective": |"lr": [^\n]*, "skipped": )'
)
TRAINING_HEADER = "# geomtx train: every value of the run\n"
"""First line of the configuration that a training run writes."""
_HTML = re.compile(rb'<!doctype html>\s*<html[^>]*>\s*<head>\s*<meta[^>]*>\s*<meta name="generator" content="geomtx ')
_PLY = b"comment geomtx "
_GLB = b'{"asset":{"version":"2.0","generator":"geomtx '
_SAFETENSORS_KEY = re.compile(r"geomtx(_|$)")

LISTING = "geomtx.json"
"""Name of a file with the digest of each file of a folder: {"format": "geomtx.…", "files": {path: digest}}."""
_LISTING_DEPTH = 3  # folders from a file up to its listing

_PNG_LEVEL = 4  # zlib's; its default, 6, takes nearly twice the time and makes a report a twentieth smaller
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEAD = 4096  # bytes that decide what a text file is
_MAX_HEADER = 100 << 20  # of a safetensors file, as the package itself allows


def user_path(path: PathLike) -> Path:
    """A path as a user gives it, with `~` and `~name` in front replaced by that user's home folder.

    Every path that comes from outside goes through here, as shells leave `--output=~/x` and configurations alone.
    """
    path = Path(path)
    try:
        return path.expanduser()
    except RuntimeError:  # no such user: a name like any other, as shells take it
        return path


def escape_name(text: str) -> str:
    r"""Text that any file can hold: bytes of a file name that are not UTF-8 become `\xe9`, as `ls -b` writes them."""
    return re.sub("[\ud800-\udfff]", _escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def unique_names(names: Iterable[str]) -> tuple[str, ...]:
    """Names as `escape_name` gives them; of two that are the same "a.png" and "a_2.png" are made."""
    taken: set[str] = set()
    unique = []
    for name in map(escape_name, names):
        path, candidate, number = PurePosixPath(name), name, 1
        while candidate in taken:
            number += 1
            candidate = str(path.with_name(f"{path.stem}_{number}{path.suffix}"))
        taken.add(candidate)
        unique.append(candidate)
    return tuple(unique)


# Which files are our own


def is_own(path: PathLike) -> bool:
    """Whether geomtx wrote a file, by what the file holds, not by its name.

    Own files are pictures with a text chunk `PNG_KEY`, JSON whose first key is a "format" of geomtx's, point clouds
    with geomtx's comment, GLB files and pages that name it as their generator, .safetensors with geomtx's metadata,
    configurations and logs of training runs, and files of which a `LISTING` has the digest, such as copies of photos.
    So is a config.json that says just what geomtx's weights beside it hold too: version 0.1.0 gave it no "format". A
    link is never one: its user put it there.
    """
    path = Path(path)
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(_HEAD)
        if (head.startswith(_PNG_SIGNATURE) and _png_mark(file) is not None) or _is_marked(head):
            return True
    metadata = read_metadata(path)
    if str(metadata.get("format")).startswith("geomtx.") or any(_SAFETENSORS_KEY.match(each) for each in metadata):
        return True
    if path.name == "config.json" and _is_embedded(path, path.with_name("model.safetensors")):
        return True
    listings = [folder for folder in path.parents[:_LISTING_DEPTH] if (folder / LISTING).is_file()]
    return any(_read_listing(each).get(path.relative_to(each).as_posix()) == file_digest(path) for each in listings)


def _is_marked(head: bytes) -> bool:
    """Whether the first bytes of a file say that geomtx wrote it; pictures and .safetensors say so farther on."""
    if head.startswith(b"glTF"):
        return head[20:].startswith(_GLB)
    if head.startswith(b"ply\n"):
        return _PLY in head.partition(b"end_header\n")[0]
    return any(each.match(head) for each in (_HTML, _JSON, _JSON_LINES)) or head.startswith(TRAINING_HEADER.encode())


def is_own_picture(path: PathLike) -> bool:
    """Whether a file is a picture that geomtx made of results, such as report.png: no photo to reconstruct from."""
    try:
        with Path(path).open("rb") as file:
            return file.read(len(_PNG_SIGNATURE)) == _PNG_SIGNATURE and _png_mark(file) not in (None, b"photo")
    except OSError:
        return False


def listed_files(folder: Path) -> tuple[str, ...]:
    """Return the paths that the listing of a folder names, and its own; none without a listing."""
    listed = _read_listing(folder)
    return (*listed, LISTING) if listed else ()


def _read_listing(folder: Path) -> dict[str, str]:
    try:
        files = json.loads((folder / LISTING).read_bytes())["files"]
        return {name: files[name] for name in files if not {"..", "/"} & set(PurePosixPath(name).parts)}
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return {}


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def save_picture(picture: Image.Image, path: PathLike, kind: str) -> None:
    """Write a PNG file that `is_own` recognises.

    Args:
        picture: Picture to write.
        path: Path of the file, overwritten if it exists.
        kind: Kind of the picture: "report", "comparison", …; "photo" for what can be reconstructed from.
    """
    from PIL.PngImagePlugin import PngInfo

    mark = PngInfo()
    mark.add_text(PNG_KEY, kind)
    picture.save(user_path(path), format="PNG", pnginfo=mark, compress_level=_PNG_LEVEL)


def _png_mark(file: BinaryIO) -> bytes | None:
    """The value of the text chunk `PNG_KEY`; None without one before the pixels."""
    file.seek(len(_PNG_SIGNATURE))
    wanted = PNG_KEY.encode() + b"\0"
    while len(start := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", start)
        if kind == b"IDAT":
            return None
        if kind == b"tEXt" and length < _HEAD:
            text = file.read(length)
            if text.startswith(wanted):
                return text[len(wanted) :]
            length = 0
        file.seek(length + 4 if length else 4, os.SEEK_CUR)
    return None


def _is_embedded(config: Path, weights: Path) -> bool:
    """Whether geomtx's metadata of a .safetensors file hold the same values as a file of JSON."""
    try:
        values = json.loads(config.read_bytes())
        own = [text for key, text in read_metadata(weights).items() if _SAFETENSORS_KEY.match(key)]
    except (OSError, ValueError):
        return False
    for text in own:
        with suppress(ValueError, TypeError):  # others are no JSON
            if json.loads(text) == values:
                return True
    return False


def read_metadata(path: PathLike) -> dict[str, str]:
    """Read the metadata of a .safetensors file without the package; nothing for other files."""
    with Path(path).open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else _MAX_HEADER + 1
        if length > _MAX_HEADER or file.read(1) != b"{":
            return {}
        try:
            metadata = json.loads(b"{" + file.read(length - 1)).get("__metadata__", {})
        except (ValueError, AttributeError):
            return {}
    return metadata if isinstance(metadata, dict) else {}


# Writing


def check_writable(
    folder: PathLike, owned: Iterable[str] = (), *, overwrite: bool = False, inputs: Iterable[PathLike] = ()
) -> None:
    """Find out before the work whether `folder` can be made and files be written to it; leaves nothing behind.

    Args:
        folder: Folder that `staged_folder` will write.
        owned: Names of the files that may be written.
        overwrite: Whether files that geomtx did not write may be replaced.
        inputs: Files that are read, which are never replaced, whatever names they were given by.

    Raises:
        FileExistsError: If one of the files is an input, or not geomtx's own and `overwrite` is False.
        OSError: If the folder can't be written: a file or a broken link in the way, a folder in the way of a file, no
            permission, a read-only disk.
    """
    folder, owned = user_path(folder), tuple(owned)
    check_inputs(folder, owned, inputs)
    _remove(_make_stage(folder, owned, overwrite))


def list_inputs(*sources: PathLike | None) -> list[Path]:
    """The files that weights and photos are read from: for a folder those in it, for a hub id or None no file."""
    paths = [user_path(source) for source in sources if source is not None]
    return [file for path in paths for file in (path.iterdir() if path.is_dir() else [path]) if file.is_file()]


def check_inputs(folder: PathLike, owned: Iterable[str], inputs: Iterable[PathLike]) -> None:
    """Require that no file of a folder is also read, however the input is named.

    Files are compared, not paths: links, hard links and other spellings of a path lead to the same file.

    Args:
        folder: Folder that will be written.
        owned: Names of the files that may be written.
        inputs: Files that are read.

    Raises:
        FileExistsError: Naming the file.
    """
    folder = user_path(folder)
    known = {identity: path for path in map(user_path, inputs) if (identity := _identity(path)) is not None}
    for name in owned:
        identity = _identity(folder / name)
        found = None if identity is None else known.get(identity)
        if found is not None:
            raise FileExistsError(
                f"output folder '{folder}' must not hold an input under the name of a result, but '{name}' in it is "
                f"'{found}'; choose another folder"
            )


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and number of the file; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


@contextmanager
def staged_folder(folder: PathLike, owned: Iterable[str] = (), *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder, whose files replace those of `folder` if the block succeeds.

    If the block raises, or moving the files into place fails, `folder` is as it was before. A process that is killed
    leaves at most a hidden folder that ends in ".partial", which the next one removes.

    Args:
        folder: Made with its parents if it doesn't exist. Files in it that are neither written nor owned are left
            alone.
        owned: Names of files that would be stale if the block doesn't write them; removed then.
        overwrite: Whether files that geomtx did not write may be replaced and removed.

    Raises:
        FileExistsError: For such files if `overwrite` is False.
        OSError: If `folder` can't be written.
    """
    folder, owned = user_path(folder), tuple(owned)
    stage = _make_stage(folder, owned, overwrite)
    try:
        new = stage / "new"
        new.mkdir()
        yield new
        names = sorted(path.relative_to(new) for path in new.rglob("*") if path.is_file())
        _check_room(folder, names, overwrite)
        _move_into_place(new, folder, names, owned, stage / "old")
    except OSError as error:
        if isinstance(error.filename, str | Path) and Path(error.filename).is_relative_to(stage / "new"):
            error.filename = str(folder / Path(error.filename).relative_to(stage / "new"))
        raise
    finally:
        _remove(stage)


def _make_stage(folder: Path, owned: Sequence[str], overwrite: bool) -> Path:
    """A fresh hidden folder in `folder`, or in its first ancestor that exists: on the same disk, so moving is cheap."""
    home = folder
    while not os.path.lexists(home) and home != home.parent:
        home = home.parent
    if not home.is_dir():
        found = "a link to nothing" if home.is_symlink() else "a file"
        raise NotADirectoryError(f"output folder '{folder}' must be a folder, but '{home}' is {found}")
    _check_room(folder, owned, overwrite)
    for place in {home, folder.parent}:
        _remove_stale_stages(place)
    stage = home / f".geomtx-{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.partial"
    try:
        stage.mkdir()
    except OSError as error:
        raise type(error)(f"output folder '{folder}' must be writable, got: {error.strerror}") from error
    return stage


def _check_room(folder: Path, names: Sequence[PathLike], overwrite: bool) -> None:
    """Require files by these names to be missing, or files that may be replaced."""
    for name in names:
        for parent in (folder / name).relative_to(folder).parents[:-1]:
            if os.path.lexists(folder / parent) and not (folder / parent).is_dir():
                raise NotADirectoryError(
                    f"output folder '{folder}' must have room for '{name}', but '{parent}' is a file"
                )
        if (folder / name).is_dir():
            raise IsADirectoryError(
                f"output folder '{folder}' must have room for files, but '{name}' in it is a folder"
            )
    foreign = [
        str(name) for name in names if os.path.lexists(folder / name) and not (overwrite or is_own(folder / name))
    ]
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise FileExistsError(
            f"output folder '{folder}' must not hold files of others under the names of results, got "
            f"{', '.join(foreign[:3])}{more}; choose another folder, or replace them with --overwrite (overwrite=True)"
        )


def _machine() -> str:
    """Eight digits that are the same for two processes only if their process ids can be compared."""
    try:
        namespace = Path("/proc/self/ns/pid").readlink()  # a container numbers its processes anew
    except OSError:
        namespace = Path()
    return hashlib.sha256(f"{platform.node()} {namespace}".encode()).hexdigest()[:8]


def _remove_stale_stages(place: Path) -> None:
    """Remove what processes of this machine have left that are no more."""
    for stage in place.glob(f".geomtx-{_machine()}-*.partial"):
        number = stage.name.split("-")[2]
        if number.isdecimal() and not _is_running(int(number)):
            _remove(stage)


def _is_running(number: int) -> bool:
    """Whether there is a process with this id; taken for granted where it can't be asked."""
    if os.name == "nt":  # os.kill would end it
        return True
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True


def _remove(stage: Path) -> None:
    shutil.rmtree(stage, ignore_errors=True)


def _move_into_place(new: Path, folder: Path, names: Sequence[Path], owned: Iterable[str], old: Path) -> None:
    """Move every file of `new` into `folder`; undo it all if one can't be moved."""
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
        _remove_emptied(folder, owned)
    except BaseException:
        for source, target in reversed(moved):
            target.replace(source)
        for path in reversed(made):
            path.rmdir()
        raise


def _remove_emptied(folder: Path, owned: Iterable[str]) -> None:
    """Remove the folders of stale files that are empty now."""
    parents = {parent for name in owned for parent in Path(name).parents[:-1]}
    for parent in sorted(parents, key=lambda path: -len(path.parts)):
        with suppress(OSError):  # not empty, or not there
            (folder / parent).rmdir()


def _make_parents(folders: Iterable[Path], made: list[Path]) -> None:
    """Make folders and their ancestors; adds those that didn't exist to `made`, outermost first."""
    missing = {path for folder in folders for path in (folder, *folder.parents) if not path.exists()}
    for path in sorted(missing, key=lambda path: len(path.parts)):
        path.mkdir()
        made.append(path)
