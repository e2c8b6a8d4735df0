"""Files of datasets: pictures and masks as they are stored, text that people edit, and which pictures are missing.

Pictures are decoded by the reader of `load_views`, so that training sees what inference sees, but for one thing: no
EXIF orientation is applied, because cameras of datasets refer to the stored pixels.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geomtx.data.scene_check import SceneError
from geomtx.views.error import PhotoError
from geomtx.views.pictures import open_picture, read_picture
from geomtx.views.pictures import read_mask as read_mask_file

__all__ = ["find_missing", "read_image", "read_mask", "read_png", "read_text"]


def read_image(path: Path) -> NDArray[np.uint8]:
    """RGB, (H, W, 3), as stored: intrinsics belong to the stored pixels, so no orientation is applied.

    Raises:
        SceneError: If the file is missing or damaged, or no picture.
    """
    try:
        return np.array(read_picture(path, kind="picture", upright=False).image)
    except PhotoError as error:
        raise SceneError(str(error)) from error


def read_mask(path: Path) -> NDArray[np.bool_]:
    """(H, W), as stored, True where the value is over half of the largest that there can be.

    That is over 128 of 255; masks of 0 and 1, of 16 bits, and in an alpha channel are understood, too (see
    `geomtx.views.color.convert_to_mask`).

    Raises:
        SceneError: If the file is missing or damaged, or holds numbers that are no mask.
    """
    try:
        return read_mask_file(path)
    except PhotoError as error:
        raise SceneError(str(error)) from error


def read_png(path: Path, *, kind: str) -> tuple[str, NDArray[np.generic]]:
    """Pillow's mode and the values of a picture whose values are no colours, such as depth; (H, W), as stored.

    Raises:
        SceneError: If the file is missing or damaged, or no picture.
    """
    try:
        with open_picture(path, kind=kind) as file:
            return file.mode, np.array(file)
    except PhotoError as error:
        raise SceneError(str(error)) from error


def read_text(path: Path, *, errors: str = "strict") -> str:
    """Text in UTF-8, or in UTF-16 with a byte order mark; the mark, which editors on Windows write, is left out.

    Args:
        path: The file.
        errors: What happens to bytes that are no text, see `bytes.decode`.

    Raises:
        OSError: If it can't be read.
        UnicodeDecodeError: By `errors`.
    """
    content = path.read_bytes()
    is_utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if is_utf_16 else "utf-8-sig", errors)


def find_missing(folder: Path, names: Iterable[str]) -> list[str]:
    """Those of `names`, paths below `folder` with "/", that are no files; what a broken link names is none.

    Each folder is listed once, in place of a question a file: a network drive answers it as quickly.
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
