"""Reading of files of datasets: pictures, masks and text; and a search for missing files.

Pictures are decoded by the reader of `load_views`, so that training and inference see the same pixels, except that no
EXIF orientation is applied, because cameras of datasets refer to pixels as they are stored.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geomtx.data.scene_check import SceneError
from geomtx.views.listing import PhotoError
from geomtx.views.pictures import open_picture, read_picture
from geomtx.views.pictures import read_mask as read_mask_file

__all__ = ["find_missing", "read_image", "read_mask", "read_png", "read_text"]


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read a picture as RGB (H, W, 3) as it is stored, without its EXIF orientation.

    Raises:
        SceneError: If the file is missing, damaged or not a picture.
    """
    try:
        return np.array(read_picture(path, kind="picture", upright=False).image)
    except PhotoError as error:
        raise SceneError(str(error)) from error


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Read a mask (H, W) bool as it is stored, True above half of the range, that is above 128 of 255.

    Masks of 0 and 1, of 16 bits and in an alpha channel are read as well, see `geomtx.views.color.convert_to_mask`.

    Raises:
        SceneError: If the file is missing, damaged or not a mask.
    """
    try:
        return read_mask_file(path)
    except PhotoError as error:
        raise SceneError(str(error)) from error


def read_png(path: Path, *, kind: str) -> tuple[str, NDArray[np.generic]]:
    """Read Pillow's mode and the values (H, W) of a picture that holds other values than colours, such as depth.

    Raises:
        SceneError: If the file is missing, damaged or not a picture.
    """
    try:
        with open_picture(path, kind=kind) as file:
            return file.mode, np.array(file)
    except PhotoError as error:
        raise SceneError(str(error)) from error


def read_text(path: Path, *, errors: str = "strict") -> str:
    """Read text in UTF-8, or in UTF-16 with a byte order mark, which editors on Windows write; the mark is removed.

    Args:
        path: Text file.
        errors: Handling of bytes that are not text, see `bytes.decode`; defaults to "strict".

    Raises:
        OSError: If the file cannot be read.
        UnicodeDecodeError: For bytes that are not text, depending on `errors`.
    """
    content = path.read_bytes()
    is_utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if is_utf_16 else "utf-8-sig", errors)


def find_missing(folder: Path, names: Iterable[str]) -> list[str]:
    """Return those of `names`, paths below `folder` with "/", that are not existing files. Broken links are missing.

    Each folder is listed once, because a network drive would be slow to answer a query for each file.
    """
    listings: dict[str, set[str]] = {}
    missing = []
    for name in names:
        parent, base = os.path.split(name)
        if parent not in listings:
            listings[parent] = _list_files(folder / parent)
        if base not in listings[parent]:
            missing.append(name)
    return missing


def _list_files(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if _is_file(entry)}
    except OSError:
        return set()


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself, for example
        return False
