"""Point clouds as PLY files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geomtx.files import user_path
from geomtx.scene.content import FIRST_CAMERA
from geomtx.scene.points import PointCloud

__all__ = ["write_coloured_points", "write_ply"]

_XYZ = [(name, "<f4") for name in ("x", "y", "z")]
_NORMAL = [(name, "<f4") for name in ("nx", "ny", "nz")]
_RGB = [(name, "u1") for name in ("red", "green", "blue")]
_RECORD = np.dtype([*_XYZ, *_RGB, ("confidence", "<f4"), ("view", "<i4")])
_PLY_TYPES = {"<f4": "float", "|u1": "uchar", "<i4": "int"}
_ROWS_AT_ONCE = 1 << 20


def write_ply(
    path: str | Path, cloud: PointCloud, *, units: str = "up to scale", notice: str = "", world: str = FIRST_CAMERA
) -> None:
    """Write a binary little-endian PLY file: x, y, z, red, green, blue, confidence, view.

    Points are in the world of the scene, by default the first camera's frame with OpenCV axes (x right, y down, z
    forward); the header says so.

    Args:
        path: Path of the file, which is overwritten if it exists.
        cloud: Points to write.
        units: Unit of lengths, which the header names.
        notice: A warning that the header repeats, or "".
        world: Description of the world's frame, see `Scene.world`; defaults to the first view's camera.
    """
    first = "first camera, OpenCV axes (x right, y down, z forward)"
    frame = f"frame: {first if world == FIRST_CAMERA else world}"
    comments = ["geomtx point cloud", f"units: {units}", frame, *([f"notice: {notice}"] if notice else [])]
    header = _header(_RECORD, len(cloud.xyz), comments)
    with user_path(path).open("wb") as file:
        file.write(header)
        for start in range(0, len(cloud.xyz), _ROWS_AT_ONCE):
            file.write(_to_records(PointCloud(*(part[start : start + _ROWS_AT_ONCE] for part in cloud))).tobytes())


def write_coloured_points(
    path: Path, xyz: NDArray[np.floating], rgb: NDArray[np.uint8], normals: NDArray[np.floating] | None = None
) -> None:
    """Write points as trainers of splats read them: float x, y, z, normals if there are, 8-bit red, green, blue.

    Args:
        path: Path of the file, which is overwritten if it exists.
        xyz: Points, (M, 3).
        rgb: Colours, (M, 3).
        normals: Unit normals nx, ny, nz, (M, 3); defaults to none.
    """
    parts = [(_XYZ, xyz), *([] if normals is None else [(_NORMAL, normals)]), (_RGB, rgb)]
    records = np.empty(len(xyz), np.dtype([field for fields, _ in parts for field in fields]))
    for fields, values in parts:
        for axis, (name, _) in enumerate(fields):
            records[name] = values[:, axis]
    path.write_bytes(_header(records.dtype, len(records), ["geomtx point cloud"]) + records.tobytes())


def _header(record: np.dtype, count: int, comments: Sequence[str]) -> bytes:
    lines = [
        "ply",
        "format binary_little_endian 1.0",
        *(f"comment {' '.join(comment.split())}" for comment in comments),
        f"element vertex {count}",
        *(f"property {_PLY_TYPES[record[name].str]} {name}" for name in record.names or ()),
        "end_header",
    ]
    return ("\n".join(lines) + "\n").encode("ascii", errors="replace")


def _to_records(cloud: PointCloud) -> np.ndarray:
    records = np.empty(len(cloud.xyz), _RECORD)
    for axis, name in enumerate("xyz"):
        records[name] = cloud.xyz[:, axis].numpy()
    for channel, name in enumerate(("red", "green", "blue")):
        records[name] = cloud.rgb[:, channel].numpy()
    records["confidence"], records["view"] = cloud.confidence.numpy(), cloud.view.numpy()
    return records
