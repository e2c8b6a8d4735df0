"""A PLY parser that shares nothing with the writer."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

_TYPES = {"float": "f", "uchar": "B", "int": "i"}


def parse_ply(path: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """The comments, and name → values."""
    head, body = path.read_bytes().split(b"end_header\n", 1)
    lines = head.decode("ascii").splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    comments = [line.removeprefix("comment ") for line in lines if line.startswith("comment ")]
    (count,) = (int(line.split()[2]) for line in lines if line.startswith("element vertex "))
    properties = [line.split()[1:] for line in lines if line.startswith("property ")]
    row = struct.Struct("<" + "".join(_TYPES[kind] for kind, _ in properties))
    assert len(body) == count * row.size
    columns = list(zip(*row.iter_unpack(body), strict=True)) or [()] * len(properties)
    return comments, {name: np.array(values) for (_, name), values in zip(properties, columns, strict=True)}
