"""The cameras of a scene as a JSON file, which is an input too, and other files that cameras are read from."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geomtx.checks import check_shape
from geomtx.files import user_path
from geomtx.geometry.conventions import from_colmap, from_nerfstudio
from geomtx.scene.content import FIRST_CAMERA, SceneContent
from geomtx.scene.files.colmap_model import find_colmap_model, read_colmap_model
from geomtx.scene.files.json_file import to_plain, write_json
from geomtx.scene.known.cameras import KnownCameras, check_poses

__all__ = ["CAMERA_CONVENTIONS", "TIME_CONVENTION", "read_cameras", "write_cameras"]

FORMAT, VERSION = "geomtx.cameras", 1
logger = logging.getLogger(__name__)

_TWO_FOCAL_LENGTHS = ("PINHOLE", "OPENCV", "OPENCV_FISHEYE", "FULL_OPENCV", "FOV", "THIN_PRISM_FISHEYE")  # of COLMAP
CAMERA_CONVENTIONS = {
    "cam_from_world": "3x4 [R | t], x_cam = R x_world + t",
    "axes": "OpenCV: x right, y down, z forward",
    "world": FIRST_CAMERA,
    "intrinsics": "3x3, pixels of the original photo, upright (after its EXIF orientation)",
    "pixel_centers": "at integers: the centre of the upper left pixel is (0, 0)",
    "transform": "to model pixels: x_model = (x + 0.5) * scale[0] + offset[0] - 0.5, likewise y; *_hw: (rows, columns)",
}

TIME_CONVENTION = "seconds from the first frame of the video"


def write_cameras(path: str | Path, scene: SceneContent) -> None:
    """Write conventions, units, and each view's camera in original pixels; as "first", that before a refinement.

    Views that are frames of a video have their "time", in seconds from its first frame.

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
            **time,
            **first,
            "transform": transform.to_dict(),
        }
        for name, transform, cam_from_world, intrinsics, time, first in zip(
            scene.names, scene.transforms, *cameras, _times(scene), _first_cameras(scene), strict=True
        )
    ]
    content = {
        "format": FORMAT,
        "version": VERSION,
        **({"notice": scene.notice} if scene.notice else {}),
        "conventions": {
            **CAMERA_CONVENTIONS,
            "world": scene.world,
            **({"time": TIME_CONVENTION} if scene.times else {}),
        },
        "units": scene.units,
        "views": views,
    }
    write_json(path, content)


def _times(scene: SceneContent) -> list[dict[str, Any]]:
    """Return each view's time, where it is a frame of a video."""
    return [{"time": round(time, 9)} for time in scene.times] or [{} for _ in scene.names]


def _first_cameras(scene: SceneContent) -> list[dict[str, Any]]:
    """Return each view's camera before a refinement, where there was one."""
    if scene.first_cameras is None:
        return [{} for _ in scene.names]
    return [
        {
            "first": {
                "cam_from_world": to_plain(cam_from_world),
                "intrinsics": to_plain(transform.intrinsics_to_original(intrinsics)),
            }
        }
        for transform, cam_from_world, intrinsics in zip(scene.transforms, *scene.first_cameras, strict=True)
    ]


class _Camera(NamedTuple):
    """A camera as a file has it; what it lacks is None."""

    name: str
    cam_from_world: Tensor | None
    intrinsics: Tensor | None
    image_hw: tuple[int, int] | None
    time: float | None = None


def read_cameras(source: str | os.PathLike[str]) -> KnownCameras:
    """Read the cameras of photos, for `geomtx.align` and `geomtx reconstruct --cameras`.

    What is read, by its content:

    - cameras.json, as `write_cameras` writes it. Of each view, `name` is needed, and `cam_from_world` or `intrinsics`;
      `width` and `height` are those of the photo that the intrinsics belong to, and default to its own. `time`, seconds
      from the first frame of a video, is read where all views have it;
    - a transforms.json of nerfstudio, whose poses are brought back to the world before its `applied_transform`;
    - a folder with a model of COLMAP, in `sparse/0`, `sparse` or itself. Distortion is ignored.

    Args:
        source: The file or the folder.

    Returns:
        The cameras in OpenCV axes, with intrinsics in pixels whose centres are at integers.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it isn't one of these, is damaged, holds no camera, or poses are no rotations.
    """
    path = user_path(source)
    if path.is_dir():
        cameras, units = list(_of_colmap(path)), "up to scale"
    else:
        content = _read_json(path)
        try:
            cameras, units = _of_json(path, content)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"cameras of '{path}' must be whole, got a damaged entry: {error!r}") from error
    if not cameras:
        raise ValueError(f"'{path}' must hold at least one camera, got none")
    times = [camera.time for camera in cameras]
    known = KnownCameras(
        names=tuple(camera.name for camera in cameras),
        cam_from_world=_stack([camera.cam_from_world for camera in cameras], (3, 4)),
        intrinsics=_stack([camera.intrinsics for camera in cameras], (3, 3)),
        image_hw=tuple(camera.image_hw for camera in cameras),
        units=units,
        times=() if None in times else tuple(time for time in times if time is not None),
    )
    _check_known(known, path)
    return known


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"cameras must be a file or a folder with a model of COLMAP, got '{path}'")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"cameras '{path}' must be JSON, got: {error}") from error


def _of_json(path: Path, content: Any) -> tuple[list[_Camera], str]:
    if not isinstance(content, dict):
        raise ValueError(f"cameras '{path}' must be a JSON object, got a {type(content).__name__}")
    if "frames" in content:
        return [_of_frame(content, frame) for frame in content["frames"]], "up to scale"
    if content.get("format") != FORMAT or content.get("version") != VERSION:
        found = f"format {content.get('format')!r}, version {content.get('version')!r}"
        raise ValueError(f"cameras '{path}' must be of format {FORMAT} {VERSION} or of nerfstudio, got {found}")
    return [_of_view(view) for view in content["views"]], str(content.get("units", "up to scale"))


def _of_view(view: dict[str, Any]) -> _Camera:
    name = str(view["name"])
    size = (int(view["height"]), int(view["width"])) if {"height", "width"} <= view.keys() else None
    pose = _to_matrix(view.get("cam_from_world"), f"cam_from_world of '{name}'", (3, 4))
    time = float(view["time"]) if "time" in view else None
    return _Camera(name, pose, _to_matrix(view.get("intrinsics"), f"intrinsics of '{name}'", (3, 3)), size, time)


def _of_frame(content: dict[str, Any], frame: dict[str, Any]) -> _Camera:
    """Read a frame of nerfstudio: camera-to-world, OpenGL axes; numbers of the lens in the frame or for all."""
    numbers = {**content, **frame}
    name = str(frame["file_path"])
    saved_from_cam = _to_matrix(frame["transform_matrix"], f"transform_matrix of '{name}'", (4, 4), (3, 4))
    assert saved_from_cam is not None
    applied = _to_matrix(content.get("applied_transform"), "applied_transform", (3, 4), (4, 4))
    cameras = from_nerfstudio(saved_from_cam, None if applied is None else applied[:3])
    intrinsics = size = None
    if "fl_x" in numbers:
        f_x, f_y = float(numbers["fl_x"]), float(numbers.get("fl_y", numbers["fl_x"]))
        intrinsics = _pinhole(f_x, f_y, float(numbers["cx"]) - 0.5, float(numbers["cy"]) - 0.5)
    if {"w", "h"} <= numbers.keys():
        size = (int(numbers["h"]), int(numbers["w"]))
    return _Camera(name, cameras, intrinsics, size)


def _of_colmap(folder: Path) -> Iterator[_Camera]:
    model = read_colmap_model(find_colmap_model(folder))
    bent = False
    for image in model.images:
        camera = model.cameras[image.camera]
        # The first parameters of every perspective model: one focal length or two, then the principal point.
        f_x, *others = camera.params
        f_y = others.pop(0) if camera.model in _TWO_FOCAL_LENGTHS else f_x
        lens = _pinhole(f_x, f_y, others[0], others[1])
        bent |= any(others[2:])
        pose, intrinsics = from_colmap(
            torch.from_numpy(image.quat_xyzw).roll(1), torch.from_numpy(image.translation), lens
        )
        yield _Camera(image.name, pose, intrinsics, camera.image_hw)
    if bent:
        logger.warning("lenses of the model '%s' are distorted, which is ignored: undistort the photos first", folder)


def _pinhole(f_x: float, f_y: float, c_x: float, c_y: float) -> Tensor:
    return torch.tensor([[f_x, 0, c_x], [0, f_y, c_y], [0, 0, 1]], dtype=torch.float64)


def _to_matrix(values: Any, name: str, *shapes: tuple[int, int]) -> Tensor | None:
    """Return a matrix in float64, NaN in place of null; None for no matrix."""
    if values is None:
        return None
    try:
        rows = [[float("nan") if value is None else float(value) for value in row] for row in values]
        matrix = torch.tensor(rows, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a matrix of numbers, got {values!r:.60}") from error
    check_shape(name, matrix, *shapes)
    return matrix


def _stack(matrices: Sequence[Tensor | None], shape: tuple[int, int]) -> Tensor | None:
    """Stack matrices with NaN in place of those that aren't known; None where none is."""
    if all(matrix is None for matrix in matrices):
        return None
    unknown = torch.full(shape, torch.nan, dtype=torch.float64)
    return torch.stack([unknown if matrix is None else matrix for matrix in matrices])


def _check_known(known: KnownCameras, path: Path) -> None:
    """Require rotations, and intrinsics with positive focal lengths."""
    if known.cam_from_world is None and known.intrinsics is None:
        raise ValueError(f"cameras of '{path}' must have cam_from_world or intrinsics, got neither")
    if known.cam_from_world is not None:
        check_poses(f"poses of '{path}'", known.cam_from_world, known.names)
    for name, matrix in zip(known.names, () if known.intrinsics is None else known.intrinsics, strict=False):
        last, focal = matrix[2].tolist(), matrix.diagonal()[:2]
        if matrix.isfinite().all() and not (last == [0, 0, 1] and (focal > 0).all()):
            raise ValueError(
                f"intrinsics of '{name}' in '{path}' must have positive focal lengths and a last row 0, 0, 1, "
                f"got {matrix.tolist()}"
            )
