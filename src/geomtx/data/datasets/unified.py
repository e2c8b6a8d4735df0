"""Folders in one simple layout, for data of your own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from geomtx.data.dataset import (
    OnError,
    SampleOptions,
    SceneDataset,
    SceneRecord,
    check_extent,
    collect_records,
)
from geomtx.data.depth import clean_depth, read_depth
from geomtx.data.files import find_missing, read_image, read_mask
from geomtx.data.frames import Frame
from geomtx.data.scene_check import SceneError
from geomtx.files import user_path

__all__ = ["UnifiedDataset"]


class UnifiedDataset(SceneDataset):
    """A folder a scene, that of VGGT-Omega's training code.

    ```
    ROOT/SCENE/image_names.json      N names of files in images/
    ROOT/SCENE/images/NAME.jpg
    ROOT/SCENE/cam_from_worlds.npy   (N, 3, 4), OpenCV axes
    ROOT/SCENE/intrinsics.npy        (N, 3, 3), pixels
    ROOT/SCENE/depths/NAME.npy       or .exr: (H, W) floats, z-depth in the unit of the cameras, 0 = unknown; optional
    ROOT/SCENE/masks/NAME.png        over 128 of 255, 1 of 0 and 1, or opaque = depth counts; optional
    ROOT/SCENE/ranking.npy           (N, K), of `rank_by_pose`; optional
    ```

    Pixels are those that are stored: intrinsics, depth and masks refer to them, and no EXIF orientation is applied.

    Args:
        root: Folder of the scenes.
        min_frames: Scenes with fewer are left out.
        on_error: A scene whose cameras, names or pictures are incomplete stops the construction, or is left out.
        options: How they become scenes of a batch.

    Raises:
        SceneError: A ValueError, by `on_error`.
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
        """Decode one frame. SceneError for a file that is missing or broken."""
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
        names = json.loads(path.read_bytes())  # finds out the encoding, and knows byte order marks
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
