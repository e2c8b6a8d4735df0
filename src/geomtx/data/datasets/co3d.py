"""Co3Dv2: turntable videos of objects with cameras and depth from structure from motion."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from geomtx.checks import check_option
from geomtx.data.depth import clean_depth, read_half_png
from geomtx.data.files import read_image, read_mask
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
from geomtx.types import Float

__all__ = ["CO3D_SEEN", "Co3dDataset", "convert_pytorch3d"]

CO3D_SEEN = (
    *("apple", "backpack", "banana", "baseballbat", "baseballglove", "bench", "bicycle", "bottle", "bowl", "broccoli"),
    *("cake", "car", "carrot", "cellphone", "chair", "cup", "donut", "hairdryer", "handbag", "hydrant", "keyboard"),
    *("laptop", "microwave", "motorcycle", "mouse", "orange", "parkingmeter", "pizza", "plant", "stopsign"),
    *("teddybear", "toaster", "toilet", "toybus", "toyplane", "toytrain", "toytruck", "tv", "umbrella", "vase"),
    "wineglass",
)
"""The 41 categories that published models are trained on; the other 10 are used for testing."""


class Co3dDataset(SceneDataset):
    """Co3Dv2 with the annotations that VGGT's authors converted.

    An annotation file `CATEGORY_SPLIT.jgz` is gzipped JSON: sequence → frames with `filepath` (below `root`), `extri`
    (3x4, camera from world, OpenCV axes) and `intri` (3x3, pixels). Depth is in the folder `depths`, as
    half floats in the bits of a 16-bit PNG, and the mask of its valid pixels in `depth_masks`. The farthest 2 % of the
    valid depth are removed as outliers.

    Args:
        root: Folder of the categories.
        annotations: Folder of the annotation files.
        split: Split, "train" or "test"; defaults to "train".
        categories: Names of the categories; defaults to `CO3D_SEEN`.
        min_frames: Sequences with fewer frames are left out; defaults to 24 for training and 2 for testing.
        on_error: Whether a sequence with invalid cameras raises ("raise") or is left out ("skip"); defaults to "raise".
        options: Options by which sequences become scenes.

    Raises:
        SceneError: A ValueError, if an annotation file is missing or damaged, or depending on `on_error`.
        ValueError: For an unknown option, or if no sequence is left.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        annotations: str | os.PathLike[str],
        *,
        split: Literal["train", "test"] = "train",
        categories: Sequence[str] = CO3D_SEEN,
        min_frames: int | None = None,
        on_error: OnError = "raise",
        options: SampleOptions | None = None,
    ) -> None:
        check_option("split", split, ("train", "test"))
        if isinstance(categories, str) or not isinstance(categories, Sequence):
            raise ValueError(f"categories must be a list of names, got {categories!r}")
        if min_frames is None:
            min_frames = 24 if split == "train" else 2
        records: list[SceneRecord] = []
        for category in categories:
            path = user_path(annotations) / f"{category}_{split}.jgz"
            sequences = _read_annotations(path)

            def load(name: str, sequences: dict[str, Any] = sequences, category: str = category) -> SceneRecord:
                return _parse_sequence(f"{category}/{name}", sequences[name])

            records += collect_records(sorted(sequences), load, min_frames=min_frames, on_error=on_error)
        super().__init__(user_path(root), records, options=options or SampleOptions())

    def read_frame(self, record: SceneRecord, index: int) -> Frame:
        """Decode one frame.

        Raises:
            SceneError: If a file is missing or damaged.
        """
        name = record.images[index]
        path = self.root / name
        depth_path = self.root / f"{name.replace('/images', '/depths')}.geometric.png"
        mask_path = (self.root / name.replace("/images", "/depth_masks")).with_suffix(".png")
        depth, mask = read_half_png(depth_path), read_mask(mask_path)
        frame = Frame(read_image(path), record.cam_from_world[index], record.intrinsics[index], depth, mask)
        check_extent(frame, name)
        return frame._replace(depth=clean_depth(np.where(mask, depth, 0), max_percentile=98), mask=None)


def convert_pytorch3d(
    rotation: Float[Tensor, "*batch 3 3"], translation: Float[Tensor, "*batch 3"]
) -> Float[Tensor, "*batch 3 4"]:
    """Convert cameras of Co3D's raw annotations to `cam_from_world` (..., 3, 4).

    PyTorch3D multiplies row vectors (x_cam = x_world R + T), and its axes are x left, y up, z forward.

    Args:
        rotation: R of PyTorch3D, (..., 3, 3).
        translation: T of PyTorch3D, (..., 3).
    """
    flip = torch.tensor([-1.0, -1.0, 1.0]).to(rotation)
    return torch.cat([(rotation * flip).transpose(-1, -2), (translation * flip)[..., None]], dim=-1)


def _read_annotations(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise SceneError(f"annotations '{path}' must be an existing file, got none")
    try:
        with gzip.open(path) as file:
            sequences = json.load(file)  # from bytes: json detects the encoding and byte order marks
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise SceneError(f"annotations '{path}' must be gzipped JSON, got another file: {error}") from error
    if not isinstance(sequences, dict):
        raise SceneError(f"annotations '{path}' must map sequences to frames, got {type(sequences).__name__}")
    return sequences


def _parse_sequence(name: str, frames: list[dict[str, Any]]) -> SceneRecord:
    try:
        return SceneRecord(
            name,
            tuple(str(frame["filepath"]) for frame in frames),
            np.array([frame["extri"] for frame in frames], dtype=np.float64).reshape(-1, 3, 4),
            np.array([frame["intri"] for frame in frames], dtype=np.float64).reshape(-1, 3, 3),
        )
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise SceneError(f"sequence '{name}' must have filepath, extri and intri a frame, got {reason}") from error
