"""The directories of a TIFF file: which of them holds the photo, and which a preview, a mask or a raw image.

A TIFF file is a chain of directories, one per image, and a directory may refer to further ones ("SubIFDs"). Cameras'
raw files (DNG, NEF, ARW, CR2, …) are TIFF files whose first image is a small preview. (TIFF 6.0, section 8; Adobe's
TIFF Technical Note 1 on trees of directories; DNG specification 1.7, "NewSubFileType".)
"""

from __future__ import annotations

import logging
import struct
from pathlib import Path
from typing import BinaryIO

from geomtx.views.listing import PhotoError

__all__ = ["RAW_EXTENSIONS", "find_photo_directory"]

logger = logging.getLogger(__name__)

RAW_EXTENSIONS = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".gpr", ".iiq", ".k25", ".kdc", ".mef"),
    *(".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
)
"""File name extensions of cameras' raw files, of which Pillow reads the preview or nothing."""

_NEW_SUBFILE_TYPE, _SUBFILE_TYPE, _WIDTH, _HEIGHT, _PHOTOMETRIC, _SUB_DIRECTORIES = 254, 255, 256, 257, 262, 330
_DNG_VERSION = 50706
_RAW_PHOTOMETRIC = (32803, 34892)  # colour filter array, linear raw
_REDUCED, _TRANSPARENCY_MASK = 1, 4  # bits of NewSubfileType
_CODES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}  # TIFF types of those tags → codes of struct
_MOST_DIRECTORIES = 10_000

Directory = dict[int, tuple[int, ...]]


def find_photo_directory(path: Path, name: str) -> int:
    """Find the directory that holds the photo in full resolution, as its index in the chain.

    It is the first directory that is marked neither as reduced in resolution nor as a transparency mask. A warning is
    logged if a later one of these is larger.

    Args:
        path: TIFF file.
        name: Name of the file in messages, such as "photo 'a.tif'".

    Raises:
        PhotoError: If the file is a camera's raw file, or the photo is not in the chain itself.
    """
    with path.open("rb") as stream:
        is_canon_raw, chain, nested = _read_directories(stream)
    directories = [*chain, *(directory for group in nested for directory in group)]
    if is_canon_raw or path.suffix.lower() in RAW_EXTENSIONS or any(map(_is_raw, directories)):
        raise PhotoError(f"{name} must be a developed photo, got a camera's raw file: convert it to TIFF or JPEG first")
    full = [index for index, directory in enumerate(chain) if _is_photo(directory)]
    if chain and not full:
        raise PhotoError(f"{name} must hold the photo, got only a preview of {_describe(chain[0])}")
    if not full:
        return 0  # a header that Pillow understands and this module does not
    chosen = chain[full[0]]
    for directory in nested[full[0]]:
        if _is_photo(directory) and _area(directory) > _area(chosen):
            raise PhotoError(
                f"{name} must hold the photo in its first directories, got a preview of {_describe(chosen)} before "
                f"{_describe(directory)}: convert it to a TIFF or JPEG of one image first"
            )
    largest = max((chain[index] for index in full), key=_area)
    if _area(largest) > _area(chosen):
        logger.warning(
            "%s holds %d images: the first, of %s, is read; the largest has %s",
            *(name, len(full), _describe(chosen), _describe(largest)),
        )
    return full[0]


def _is_raw(directory: Directory) -> bool:
    return _DNG_VERSION in directory or directory.get(_PHOTOMETRIC, (0,))[0] in _RAW_PHOTOMETRIC


def _is_photo(directory: Directory) -> bool:
    kind = directory.get(_NEW_SUBFILE_TYPE, (0,))[0]
    return not kind & (_REDUCED | _TRANSPARENCY_MASK) and directory.get(_SUBFILE_TYPE, (1,))[0] != 2


def _area(directory: Directory) -> int:
    return directory.get(_WIDTH, (0,))[0] * directory.get(_HEIGHT, (0,))[0]


def _describe(directory: Directory) -> str:
    return f"{directory.get(_WIDTH, (0,))[0]}x{directory.get(_HEIGHT, (0,))[0]} pixels"


def _read_directories(stream: BinaryIO) -> tuple[bool, list[Directory], list[list[Directory]]]:
    """Return whether the file is Canon's CR2, the chain, and for each directory of the chain its nested ones.

    Damaged data ends the list without an error, because Pillow reports it when it reads the image.
    """
    header = stream.read(16)
    order = {b"II": "<", b"MM": ">"}.get(header[:2])
    if order is None or len(header) < 8:
        return False, [], []
    is_big = header[2:4] in (b"\x2b\0", b"\0\x2b")
    place = struct.unpack(order + "Q", header[8:16])[0] if is_big and len(header) == 16 else 0
    place = place if is_big else struct.unpack(order + "I", header[4:8])[0]
    seen: set[int] = set()
    chain, nested = [], []
    while place and place not in seen and len(seen) < _MOST_DIRECTORIES:
        directory, following = _read_directory(stream, place, order, is_big)
        seen.add(place)
        if not directory:
            break
        inner: list[Directory] = []
        waiting = list(directory.get(_SUB_DIRECTORIES, ()))
        while waiting and len(seen) < _MOST_DIRECTORIES:
            at = waiting.pop(0)
            if at in seen:
                continue
            seen.add(at)
            child, _ = _read_directory(stream, at, order, is_big)
            inner.append(child)
            waiting += child.get(_SUB_DIRECTORIES, ())
        chain.append(directory)
        nested.append(inner)
        place = following
    return header[8:10] == b"CR" and not is_big, chain, nested


def _read_directory(stream: BinaryIO, place: int, order: str, is_big: bool) -> tuple[Directory, int]:
    """Read the tags that this module uses and the offset of the next directory, which is 0 after the last."""
    count_code, entry_code, inline = ("Q", "HHQ8s", 8) if is_big else ("H", "HHI4s", 4)
    directory: Directory = {}
    try:
        (count,) = _unpack(stream, order + count_code, place)
        entry_size = struct.calcsize("<" + entry_code)
        start = place + struct.calcsize("<" + count_code)
        stream.seek(start)
        entries = stream.read(entry_size * min(count, 65535))
        for tag, kind, number, value in struct.iter_unpack(order + entry_code, entries):
            if tag == _DNG_VERSION:
                directory[tag] = (1,)
            elif tag in range(_NEW_SUBFILE_TYPE, _SUB_DIRECTORIES + 1) and kind in _CODES and 0 < number < 1000:
                code = f"{order}{number}{_CODES[kind]}"
                if struct.calcsize(code) <= inline:
                    directory[tag] = struct.unpack_from(code, value)
                else:
                    directory[tag] = _unpack(stream, code, struct.unpack(order + "IQ"[is_big], value)[0])
        (following,) = _unpack(stream, order + "IQ"[is_big], start + entry_size * count)
    except (struct.error, OSError, OverflowError):
        following = 0
    return directory, following


def _unpack(stream: BinaryIO, code: str, place: int) -> tuple[int, ...]:
    stream.seek(place)
    return struct.unpack(code, stream.read(struct.calcsize(code)))
