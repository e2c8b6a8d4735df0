"""TIFF files with several directories, written as TIFF 6.0 describes them."""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np


class Directory(NamedTuple):
    """One image of a file; `tags` are tag → number (LONG), beside those of an RGB image."""

    pixels: np.ndarray
    tags: dict[int, int] = {}  # noqa: RUF012
    nested: tuple[Directory, ...] = ()


def tiff_bytes(chain: list[Directory], *, order: str = "<", big: bool = False, signature: bytes = b"") -> bytes:
    """A TIFF or BigTIFF file of uncompressed RGB images, a strip each."""
    word, entry, count = ("Q", order + "HHQQ", order + "Q") if big else ("I", order + "HHII", order + "H")
    data = bytearray(b"II" if order == "<" else b"MM")
    data += struct.pack(order + "HHHQ", 43, 8, 0, 0) if big else struct.pack(order + "HI", 42, 0) + signature
    link = len(data) - struct.calcsize(word) - len(signature)
    for directory in chain:
        link = _write(data, directory, link, order, word, entry, count)
    return bytes(data)


def _write(data: bytearray, directory: Directory, link: int, order: str, word: str, entry: str, count: str) -> int:
    """Append a directory, whose place goes to `link`; the place of the link to the next one."""
    height, width = directory.pixels.shape[:2]
    data += b"\0" * (len(data) % 2)
    bits = len(data)
    data += struct.pack(order + "4H", 8, 8, 8, 0)
    strip = len(data)
    data += directory.pixels.tobytes() + b"\0" * (directory.pixels.size % 2)
    nested = len(data)
    data += b"\0" * struct.calcsize(word) * len(directory.nested)
    tags = {256: width, 257: height, 259: 1, 262: 2, 273: strip, 277: 3, 278: height, 279: directory.pixels.size}
    entries = {tag: (4, 1, value) for tag, value in (tags | directory.tags).items()}
    # Three numbers of 16 bits fit into the entry itself where that has 8 bytes.
    entries[258] = (3, 3, int.from_bytes(data[bits : bits + 8], "little" if order == "<" else "big"))
    if word == "I":
        entries[258] = (3, 3, bits)
    if directory.nested:
        inline = len(directory.nested) == 1
        entries[330] = (4 if word == "I" else 16, len(directory.nested), 0 if inline else nested)
    place = len(data)
    data += struct.pack(count, len(entries))
    for tag, (kind, number, value) in sorted(entries.items()):
        if tag == 330 and len(directory.nested) == 1:
            nested = len(data) + struct.calcsize(entry) - struct.calcsize(word)
        size = struct.calcsize(word)
        packed = struct.pack(order + word, value)
        if kind == 4 and size == 8:
            packed = struct.pack(order + "II", value, 0)
        data += struct.pack(entry, tag, kind, number, 0)[:-size] + packed
    data += b"\0" * struct.calcsize(word)
    data[link : link + struct.calcsize(word)] = struct.pack(order + word, place)
    following = len(data) - struct.calcsize(word)
    for index, child in enumerate(directory.nested):
        _write(data, child, nested + index * struct.calcsize(word), order, word, entry, count)
    return following
