"""A scene for nerfstudio: transforms.json, a point cloud in the same frame, and upright copies of the photos."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geomtx.geometry.camera import invert_rigid
from geomtx.scene.files.export import Export, ExportOptions, plan_photo_files
from geomtx.scene.files.json_file import write_json
from geomtx.scene.files.ply import write_coloured_points

__all__ = ["APPLIED_TRANSFORM", "plan_nerfstudio", "write_nerfstudio"]

APPLIED_TRANSFORM = ((1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, -1.0, 0.0, 0.0))
"""From the scene's world to that of transforms.json: (x, y, z) becomes (x, z, -y), so that z points up for photos that
are level."""

_POINTS = "sparse_pc.ply"


def plan_nerfstudio(names: Sequence[str], options: ExportOptions) -> tuple[str, ...]:
    """Return the files that `write_nerfstudio` may write for photos of these names."""
    return ("transforms.json", _POINTS, *plan_photo_files(names, options))


def write_nerfstudio(folder: Path, export: Export) -> None:
    """Write a folder that `ns-train` reads.

    `transforms.json` has a pinhole camera and a pose for each photo, however few points it sees: camera to world, with
    OpenGL axes (x right, y up, z back), in a world that is the scene's after `applied_transform`. Its points are in
    `sparse_pc.ply` in the same world. The unit is the scene's; nerfstudio orients, centres and scales by itself.

    Args:
        folder: Folder, which exists.
        export: The scene.

    Raises:
        ValueError: If photos are not found or have one name, or there is no sparse model.
    """
    model = export.whole_model
    photos = export.photos_of(model)
    applied = torch.tensor(APPLIED_TRANSFORM, dtype=torch.float64)
    world_from_cam = applied[:, :3] @ invert_rigid(model.cam_from_world)
    world_from_cam[:, :, 1:3] *= -1  # y down and z forward become y up and z back
    frames = [
        {**_camera(size, k), "file_path": f"images/{photo.name}", "transform_matrix": [*pose, [0.0, 0.0, 0.0, 1.0]]}
        for photo, size, k, pose in zip(
            photos, model.sizes, model.intrinsics.tolist(), world_from_cam.tolist(), strict=True
        )
    ]
    content = {
        "camera_model": "PINHOLE",
        "ply_file_path": _POINTS,
        "applied_transform": [list(row) for row in APPLIED_TRANSFORM],
        "frames": frames,
    }
    write_json(folder / "transforms.json", content)
    xyz = model.points.xyz.numpy() @ np.array(APPLIED_TRANSFORM)[:, :3].T
    write_coloured_points(folder / _POINTS, xyz, model.points.rgb.numpy())
    export.copy_photos(folder, photos)
    place = shlex.quote(str(export.home / "nerfstudio"))
    export.note(f"nerfstudio: ns-train splatfacto --data {place}")


def _camera(size: tuple[int, int], k: list[list[float]]) -> dict[str, Any]:
    # As in COLMAP, the centre of the first pixel is at 0.5.
    return {
        "w": size[1],
        "h": size[0],
        "fl_x": k[0][0],
        "fl_y": k[1][1],
        "cx": k[0][2] + 0.5,
        "cy": k[1][2] + 0.5,
    }
