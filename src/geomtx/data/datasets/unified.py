"""Folders in a simple layout for your own data."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from geomtx.data.depth import clean_depth, read_depth
from geomtx.data.files import find_missing, read_image, read_mask
from geomtx.data.frame_geometry import Frame
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

__all__ = ["UnifiedDataset"]


class UnifiedDataset(SceneDataset):
    """One folder per scene, in the layout of VGGT-Omega's training code.

    ```
    ROOT/SCENE/image_names.json      N names of files in images/
    ROOT/SCENE/images/NAME.jpg
    ROOT/SCENE/cam_from_worlds.npy   (N, 3, 4), OpenCV axes
    ROOT/SCENE/intrinsics.npy        (N, 3, 3), pixels
    ROOT/SCENE/depths/NAME.npy       or .exr: (H, W) floats, z-depth in the unit of the cameras, 0 for unknown; optional
    ROOT/SCENE/masks/NAME.png        above 128 of 255, 1 of 0 and 1, or opaque where depth is valid; optional
    ROOT/SCENE/ranking.npy           (N, K), as by `rank_by_pose`; optional
    ```

    Intrinsics, depth and masks refer to pixels as they are stored, so no EXIF orientation is applied.

    Args:
        root: Folder of the scenes.
        min_frames: Scenes with fewer frames are left out; defaults to 2.
        on_error: Whether a scene with incomplete cameras, names or pictures raises ("raise") or is left out ("skip");
            defaults to "raise".
        options: Options by which sequences become scenes.

    Raises:
        SceneError: A ValueError, depending on `on_error`.
        ValueError: If no scene is left.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        min_frames: int = 2,
        on_error: OnError = "raise",
        options: SampleOptions | None = None,
    ) -> None:
        root = user_path(root)
        names = sorted(folder.name for folder in root.glob("*") if folder.is_dir() and folder.name[0] != ".")
        records = collect_records(names, lambda name: _list_scene(root, name), min_frames=min_frames, on_error=on_error)
        super().__init__(root, records, options=options or SampleOptions())

    def read_frame(self, record: SceneRecord, index: int) -> Frame:
        """Decode one frame.

        Raises:
            SceneError: If a file is missing or damaged.
        """
        scene, name = self.root / record.name, record.images[index]
        image = read_image(scene / "images" / name)
        frame = Frame(image, record.cam_from_world[index], record.intrinsics[index])
        stem = Path(name).with_suffix("")
        if (scene / "depths").is_dir():
            paths = [scene / "depths" / f"{stem}{suffix}" for suffix in (".npy", ".exr")]
            depth = read_depth(next((path for path in paths if path.is_file()), paths[0]))
            frame = frame._replace(depth=clean_depth(depth))
        if (scene / "masks").is_dir():
            frame = frame._replace(mask=read_mask(scene / "masks" / f"{stem}.png"))
        return check_extent(frame, f"{record.name}/{name}")


def _list_scene(root: Path, name: str) -> SceneRecord:
    folder = root / name
    path = folder / "image_names.json"
    if not path.is_file():
        raise SceneError(f"'{path}' must be an existing file, got none")
    try:
        names = json.loads(path.read_bytes())  # json detects the encoding and byte order marks
    except ValueError as error:
        raise SceneError(f"'{path}' must be JSON, got another file: {error}") from error
    if not isinstance(names, list) or not all(isinstance(item, str) for item in names):
        raise SceneError(f"'{path}' must be a list of names, got other JSON")
    missing = find_missing(folder / "images", names)
    if missing:
        raise SceneError(f"pictures of '{name}' must exist, got none for {len(missing)}, the first '{missing[0]}'")
    ranking = _load(folder / "ranking.npy") if (folder / "ranking.npy").is_file() else None
    poses, intrinsics = _load(folder / "cam_from_worlds.npy"), _load(folder / "intrinsics.npy")
    return SceneRecord(name, tuple(names), poses.astype(np.float64), intrinsics.astype(np.float64), ranking)


def _load(path: Path) -> np.ndarray:
    if not path.is_file():
        raise SceneError(f"'{path}' must be an existing file, got none")
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SceneError(f"'{path}' must be a whole .npy file, got a damaged one: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise SceneError(f"'{path}' must hold one array of numbers, got another file")
    return array
