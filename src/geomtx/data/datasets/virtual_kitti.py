"""Virtual KITTI 2: rendered drives with exact depth and cameras."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geomtx.data.depth import clean_depth, read_integer_png
from geomtx.data.files import find_missing, read_image, read_text
from geomtx.data.frame_geometry import Frame
from geomtx.data.sampling import FrameChoice
from geomtx.data.scene_check import SceneError
from geomtx.data.scene_dataset import (
    OnError,
    SampleOptions,
    SceneDataset,
    SceneRecord,
    check_extent,
    collect_records,
)
from geomtx.files import user_path

__all__ = ["VirtualKittiDataset"]

_MAX_DEPTH_M = 80.0


class VirtualKittiDataset(SceneDataset):
    """Virtual KITTI 2.0.3: `Scene*/VARIATION/frames/rgb/Camera_k/rgb_00000.jpg` and depth likewise, in centimetres.

    Lengths are in metres; depth over 80 m is unknown. Views are drawn within 8 times their number of frames.

    Args:
        root: Folder of the scenes; nothing is written into it.
        min_frames: Sequences with fewer frames are left out; defaults to 24.
        on_error: Whether a sequence with incomplete cameras or pictures raises ("raise") or is left out ("skip");
            defaults to "raise".
        options: Options by which sequences become scenes.

    Raises:
        SceneError: A ValueError, depending on `on_error`.
        ValueError: If no sequence is left.
    """

    usual_choice = FrameChoice(expand_ratio=8)

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        min_frames: int = 24,
        on_error: OnError = "raise",
        options: SampleOptions | None = None,
    ) -> None:
        root = user_path(root)
        folders = sorted(folder for folder in root.glob("Scene*/*/frames/rgb/Camera_*") if folder.is_dir())
        names = [folder.relative_to(root).as_posix() for folder in folders]
        records = collect_records(
            names, lambda name: _list_sequence(root, name), min_frames=min_frames, on_error=on_error
        )
        super().__init__(root, records, options=options or SampleOptions())

    def read_frame(self, record: SceneRecord, index: int) -> Frame:
        """Decode one frame.

        Raises:
            SceneError: If a file is missing or damaged.
        """
        name = record.images[index]
        depth_name = name.replace("/frames/rgb/", "/frames/depth/").replace("/rgb_", "/depth_")
        depth_path = (self.root / depth_name).with_suffix(".png")
        depth = clean_depth(read_integer_png(depth_path, unit=0.01), max_depth=_MAX_DEPTH_M)
        image = read_image(self.root / name)
        return check_extent(Frame(image, record.cam_from_world[index], record.intrinsics[index], depth), name)


def _list_sequence(root: Path, name: str) -> SceneRecord:
    folder = root / name
    camera = int(folder.name.removeprefix("Camera_")) if re.fullmatch(r"Camera_\d+", folder.name) else -1
    variation = folder.parents[2]
    extrinsics = _read_table(variation / "extrinsic.txt", camera, 16)
    intrinsics = _read_table(variation / "intrinsic.txt", camera, 4)
    images, poses, matrices = [], [], []
    for path in sorted(folder.glob("rgb_*.jpg")):
        if not re.fullmatch(r"rgb_\d+", path.stem):
            raise SceneError(f"pictures of '{name}' must be named rgb_NUMBER.jpg, got '{path.name}'")
        frame = int(path.stem.removeprefix("rgb_"))
        if frame not in extrinsics or frame not in intrinsics:
            raise SceneError(f"cameras of '{name}' must have a row for every picture, got none for frame {frame}")
        f_x, f_y, c_x, c_y = intrinsics[frame]
        images.append(f"{name}/{path.name}")
        poses.append(extrinsics[frame].reshape(4, 4)[:3])
        matrices.append([[f_x, 0.0, c_x], [0.0, f_y, c_y], [0.0, 0.0, 1.0]])
    missing = find_missing(root, images)
    if missing:
        raise SceneError(f"pictures of '{name}' must exist, got none for {len(missing)}, the first '{missing[0]}'")
    return SceneRecord(
        name,
        tuple(images),
        np.array(poses, dtype=np.float64).reshape(-1, 3, 4),
        np.array(matrices, dtype=np.float64).reshape(-1, 3, 3),
    )


def _read_table(path: Path, camera: int, num_values: int) -> dict[int, NDArray[np.float64]]:
    """Read the numbers of one camera by frame; rows are frame, camera, numbers, after a line of titles."""
    if not path.is_file():
        raise SceneError(f"cameras '{path}' must be an existing file, got none")
    try:
        lines = read_text(path).splitlines()
    except UnicodeDecodeError as error:
        where = path.read_bytes()[: error.start].count(b"\n") + 1
        raise SceneError(f"cameras '{path}' must be text, got bytes that are none in line {where}") from error
    except OSError as error:
        raise SceneError(f"cameras '{path}' must be a file that can be read, got {error}") from error
    rows = {}
    for number, line in enumerate(lines[1:], start=2):
        fields = line.split()
        if not fields:
            continue
        try:
            values = np.array([float(field) for field in fields])
        except ValueError:
            values = np.empty(0)
        if len(values) != num_values + 2:
            raise SceneError(f"cameras '{path}' must have {num_values + 2} numbers a line, got other in line {number}")
        # Values of other cameras are not checked here, so that a broken camera affects its own pictures only.
        if not (np.isfinite(values[:2]) & (values[:2] == np.floor(values[:2]))).all():
            got = f"'{line.strip()}' in line {number}"
            raise SceneError(f"cameras '{path}' must have whole numbers of frame and camera, got {got}")
        if int(values[1]) == camera:
            rows[int(values[0])] = values[2:]
    return rows
