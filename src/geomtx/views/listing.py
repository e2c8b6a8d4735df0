"""Listing of photos and their masks: file types, order and names, and the error for those that cannot be used.

This module imports no torch, which takes seconds.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from geomtx.checks import enumerate_names
from geomtx.files import is_own_picture, unique_names, user_path

__all__ = [
    "EXTENSIONS",
    "VIDEO_EXTENSIONS",
    "PathLike",
    "PhotoError",
    "check_file",
    "find_video",
    "list_masks",
    "list_photos",
    "name_files",
]

logger = logging.getLogger(__name__)


PathLike = str | os.PathLike[str]

EXTENSIONS = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".hif", ".jfif", ".jp2", ".jpeg", ".jpg", ".mpo"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
"""File name extensions of images in a folder. An image that cannot be read, or a broken link, is an error."""

VIDEO_EXTENSIONS = (
    *(".3g2", ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf"),
    *(".ogv", ".ts", ".webm", ".wmv"),
)
"""File name extensions of videos."""


class PhotoError(ValueError):
    """Raised for a photo, a folder of photos or a video that cannot be used.

    The message is one line that names the file, the rule and what was found.
    """


def find_video(source: PathLike | Iterable[PathLike]) -> Path | None:
    """Return the video that a source of views is, known by its extension; None for a folder and for photos.

    Raises:
        PhotoError: For several files with a video among them.
    """
    files = list(source) if isinstance(source, Iterable) and not isinstance(source, str) else [source]
    paths = [user_path(file) for file in files if isinstance(file, str | os.PathLike)]
    videos = [path for path in paths if path.suffix.lower() in VIDEO_EXTENSIONS and not path.is_dir()]
    if videos and len(files) > 1:
        raise PhotoError(f"source must be one video alone, or photos, got '{videos[0]}' among {len(files)} files")
    return videos[0] if videos else None


def list_photos(source: PathLike | Iterable[PathLike]) -> list[Path]:
    """List the files that `load_views` reads, in its order.

    Raises:
        PhotoError: If there are none, or one of them does not exist.
    """
    if not isinstance(source, str | os.PathLike):
        if not isinstance(source, Iterable):
            raise PhotoError(f"source must be a folder, a file or a list of files, got {type(source).__name__}")
        paths = []
        for path in source:
            if not isinstance(path, str | os.PathLike):
                raise PhotoError(f"source must hold paths, got {type(path).__name__}; for images see Views.from_images")
            paths.append(user_path(path))
        if not paths:
            raise PhotoError("source must hold at least one photo, got an empty list")
        for path in paths:
            check_file(path)
        return paths
    path = user_path(source)
    if path.is_dir():
        return _list_folder(path)
    if not path.exists():
        raise PhotoError(f"source must be an existing folder or image, got '{path}'")
    return [path]


def _list_folder(folder: Path) -> list[Path]:
    try:
        content = sorted(folder.iterdir())
        files = [file for file in content if file.suffix.lower() in EXTENSIONS and file.name[0] != "."]
    except OSError as error:
        raise PhotoError(f"folder '{folder}' must be readable, got {error.strerror}") from error
    files = sorted((file for file in files if not file.is_dir()), key=_natural_key)
    for file in files:
        check_file(file)
    files = _without_own(files)
    if not files:
        video = next((file for file in content if file.suffix.lower() in VIDEO_EXTENSIONS), None)
        hint = f"; name the video '{video}' itself to use it" if video else ""
        raise PhotoError(f"folder '{folder}' must hold images (.jpg, .png, …), got none{hint}")
    return files


def _without_own(files: list[Path]) -> list[Path]:
    """Leave out reports and other pictures that geomtx wrote, and log a warning that names them."""
    own = [file for file in files if is_own_picture(file)]
    if own:
        names = ", ".join(f"'{file}'" for file in own)
        logger.warning("left out %s: written by geomtx, not a photo; name the file itself to use it", names)
    return [file for file in files if file not in own]


def _natural_key(path: Path) -> tuple[list[str | int], str]:
    """Sort key in which runs of digits compare as numbers; text and numbers alternate, so that types match."""
    parts = re.split(r"(\d+)", path.name.casefold())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], path.name


def name_files(paths: Sequence[Path]) -> tuple[str, ...]:
    """Name files, with as many parent folders as make the names unique; a file listed twice gets a number."""
    all_parts = [path.absolute().parts[1:] for path in paths]
    depths = dict.fromkeys(all_parts, 1)
    while True:
        names = {parts: "/".join(parts[-depth:]) for parts, depth in depths.items()}
        counts = Counter(names.values())
        short = [parts for parts, depth in depths.items() if counts[names[parts]] > 1 and depth < len(parts)]
        if not short:
            break
        depths.update({parts: depths[parts] + 1 for parts in short})
    return unique_names(names[parts] for parts in all_parts)


def check_file(path: Path, kind: str = "photo") -> None:
    """Require an existing file.

    Raises:
        PhotoError: If there is none, for a folder, a broken link, or a file that may not be read.
    """
    try:
        mode = path.stat().st_mode
    except PermissionError as error:
        raise PhotoError(f"{kind} '{path}' must be readable, got no permission to read it") from error
    except (OSError, ValueError) as error:
        found = "a link to nothing" if path.is_symlink() else "none"
        raise PhotoError(f"{kind} '{path}' must be an existing file, got {found}") from error
    if not stat.S_ISREG(mode):
        found = "a folder" if stat.S_ISDIR(mode) else "none"
        raise PhotoError(f"{kind} '{path}' must be an existing file, got {found}")


def list_masks(folder: PathLike, names: Sequence[str], *, warn: bool = True) -> list[Path | None]:
    """Return the file of each photo's mask, None for a photo that has none.

    The mask of sub/a.jpg is sub/a.EXT or sub/a.jpg.EXT below the folder, in any format, or else a.EXT or a.jpg.EXT.

    Args:
        folder: Folder of masks.
        names: Names of the photos, see `Views.names`.
        warn: Whether a warning in the log names photos without a mask, and masks of no photo; defaults to True.

    Raises:
        PhotoError: If there is no such folder, no mask is that of a photo, a photo has two, or two photos have one.
    """
    place = user_path(folder)
    if not place.is_dir():
        raise PhotoError(f"masks must be in an existing folder, got '{folder}'")
    files = sorted(file for file in place.rglob("*") if file.suffix.lower() in EXTENSIONS and file.name[0] != ".")
    by_key: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        by_key[file.relative_to(place).with_suffix("").as_posix()].append(file)
    masks = [_find_mask(name, by_key) for name in names]
    owners: dict[Path, str] = {}
    for name, mask in zip(names, masks, strict=True):
        if mask in owners:
            raise PhotoError(f"mask '{mask}' must be of one photo, got '{owners[mask]}' and '{name}'")
        if mask is not None:
            owners[mask] = name
    if not owners:
        found, wanted = enumerate_names([file.name for file in files]) or "none", enumerate_names(names)
        raise PhotoError(f"masks in '{folder}' must have the names of the photos, got {found} for {wanted}")
    if warn:
        without = [name for name, mask in zip(names, masks, strict=True) if mask is None]
        _warn_of_others(without, f"of {len(names)} photos without a mask, which take part as a whole")
        _warn_of_others([file.name for file in files if file not in owners], f"of {len(files)} masks are of no photo")
    return masks


def _find_mask(name: str, by_key: dict[str, list[Path]]) -> Path | None:
    path = PurePosixPath(name)
    for key in (name, path.with_suffix("").as_posix(), path.name, path.stem):
        found = by_key.get(key, [])
        if len(found) > 1:
            raise PhotoError(f"photo '{name}' must have one mask, got {enumerate_names([file.name for file in found])}")
        if found:
            return found[0]
    return None


def _warn_of_others(names: Sequence[str], what: str) -> None:
    if names:
        logger.warning("%d %s: %s", len(names), what, enumerate_names(names))
