"""Point clouds as PLY files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from geomtx.files import user_path
from geomtx.scene.points import PointCloud

__all__ = ["write_ply"]

_RECORD = np.dtype(
    [
        *((name, "<f4") for name in ("x", "y", "z")),
        *((name, "u1") for name in ("red", "green", "blue")),
        ("confidence", "<f4"),
        ("view", "<i4"),
    ]
)
_PLY_TYPES = {"<f4": "float", "|u1": "uchar", "<i4": "int"}
_ROWS_AT_ONCE = 1 << 20


def write_ply(path: str | Path, cloud: PointCloud, *, units: str = "up to scale", notice: str = "") -> None:
    """Write a binary little-endian PLY file: x, y, z, red, green, blue, confidence, view.

    Points are in the first camera's frame with OpenCV axes (x right, y down, z forward).

    Args:
        path: Path of the file, which is overwritten if it exists.
        cloud: Points to write.
        units: Unit of lengths, which the header names.
        notice: A warning that the header repeats, or "".
    """
    frame = "frame: first camera, OpenCV axes (x right, y down, z forward)"
    comments = ["geomtx point cloud", f"units: {units}", frame, *([f"notice: {notice}"] if notice else [])]
    header = [
        "ply",
        "format binary_little_endian 1.0",
        *(f"comment {' '.join(comment.split())}" for comment in comments),
        f"element vertex {len(cloud.xyz)}",
        *(f"property {_PLY_TYPES[_RECORD[name].str]} {name}" for name in _RECORD.names or ()),
        "end_header",
    ]
    with user_path(path).open("wb") as file:
        file.write(("\n".join(header) + "\n").encode("ascii", errors="replace"))
        for start in range(0, len(cloud.xyz), _ROWS_AT_ONCE):
            file.write(_to_records(PointCloud(*(part[start : start + _ROWS_AT_ONCE] for part in cloud))).tobytes())


def _to_records(cloud: PointCloud) -> np.ndarray:
    records = np.empty(len(cloud.xyz), _RECORD)
    for axis, name in enumerate("xyz"):
        records[name] = cloud.xyz[:, axis].numpy()
    for channel, name in enumerate(("red", "green", "blue")):
        records[name] = cloud.rgb[:, channel].numpy()
    records["confidence"], records["view"] = cloud.confidence.numpy(), cloud.view.numpy()
    return records
