"""The cameras of a scene as a JSON file."""

from __future__ import annotations

from pathlib import Path

from geomtx.scene.content import FIRST_CAMERA, SceneContent
from geomtx.scene.files.json_file import to_plain, write_json

__all__ = ["CAMERA_CONVENTIONS", "write_cameras"]

CAMERA_CONVENTIONS = {
    "cam_from_world": "3x4 [R | t], x_cam = R x_world + t",
    "axes": "OpenCV: x right, y down, z forward",
    "world": FIRST_CAMERA,
    "intrinsics": "3x3, pixels of the original photo, upright (after its EXIF orientation)",
    "pixel_centers": "at integers: the centre of the upper left pixel is (0, 0)",
    "transform": "to model pixels: x_model = (x + 0.5) * scale[0] + offset[0] - 0.5, likewise y; *_hw: (rows, columns)",
}


def write_cameras(path: str | Path, scene: SceneContent) -> None:
    """Write conventions, units, and each view's camera in original pixels.

    Args:
        path: Path of the file, which is overwritten if it exists.
        scene: Scene with cameras.

    Raises:
        ValueError: If the scene has no cameras.
    """
    cameras = scene.cameras
    if cameras is None:
        raise ValueError("scene must have cameras, but the model ran without its camera head")
    views = [
        {
            "name": name,
            "width": transform.original_hw[1],
            "height": transform.original_hw[0],
            "exif_orientation": transform.exif_orientation,
            "cam_from_world": to_plain(cam_from_world),
            "intrinsics": to_plain(intrinsics),
            "transform": transform.to_dict(),
        }
        for name, transform, cam_from_world, intrinsics in zip(scene.names, scene.transforms, *cameras, strict=True)
    ]
    content = {
        "format": "geomtx.cameras",
        "version": 1,
        **({"notice": scene.notice} if scene.notice else {}),
        "conventions": {**CAMERA_CONVENTIONS, "world": scene.world},
        "units": scene.units,
        "views": views,
    }
    write_json(path, content)
