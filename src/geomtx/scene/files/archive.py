"""Writing a whole scene to one .safetensors file, and reading it."""

from __future__ import annotations

import functools
import json
import math
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geomtx.checkpoint.tensor_file import open_tensor_file
from geomtx.checks import check_mask, check_option, check_shape
from geomtx.files import user_path
from geomtx.scene.content import MatchedPixels, SceneContent
from geomtx.scene.files.cameras import CAMERA_CONVENTIONS
from geomtx.types import Cameras, DenseMap, Predictions, Tracks
from geomtx.views import ViewTransform

__all__ = ["ARCHIVE", "load_fields", "write_archive"]

ARCHIVE = "scene.safetensors"
FORMAT, VERSION = "geomtx.scene", "1"
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int64: "I64",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class _Entry(NamedTuple):
    """A tensor of the file, computed when it is written, as maps in original pixels can be larger than memory."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]


def write_archive(
    path: str | Path, scene: SceneContent, *, maps: str = "network", home: str | Path | None = None
) -> None:
    """Write everything that a scene holds.

    Tensors, where the scene has them (S views, H and W the model's images, N tracks):

    - `images` (S, 3, H, W) uint8, `mask` (S, H, W) bool, `transforms` (S, 3, 3) from original to model pixels;
    - `cam_from_world` (S, 3, 4), `intrinsics` (S, 3, 3) in original pixels, `intrinsics_model` in model pixels,
      `pose_encodings` (I, S, 9);
    - `first_cam_from_world`, `first_intrinsics_model`, the cameras before a refinement;
    - `depth`, `depth_confidence` (S, H, W), `points` (S, H, W, 3), `points_confidence` (S, H, W);
    - `sky` (S, H, W), the score of being sky;
    - `extra/NAME` (S, H, W) or (S, H, W, C) and `extra_confidence/NAME` (S, H, W) of heads that were added;
    - `query_points` (N, 3) as (view, x, y) and `track_coords_px` (S, N, 2) in original pixels,
      `track_coords_px_model`, `track_visibility`, `track_confidence` (S, N);
    - `moving` (S, H, W) bool, the pixels that move by themselves;
    - `matched_view`, `matched_point` (K,) int64 and `matched_coords_px` (K, 2) in original pixels, see `MatchedPixels`;
    - with maps="original", `original/NAME/depth` and `original/NAME/depth_confidence` in original pixels, 0 where the
      model saw nothing.

    Metadata: format, version, units, notice; as JSON how the scene was made (`provenance`), the conventions, the names
    and transforms of the views, their times in a video (`times`, seconds from its first frame), and the files of the
    photos, relative to the folder (`photos`, null without a file).

    Args:
        path: Path of the file, which is overwritten if it exists.
        scene: Scene to write.
        maps: "network" writes maps in the pixels of the model's images alone; `Scene` brings them to original pixels
            when they are read. "original" adds depth and confidence in original pixels, for readers other than geomtx:
            about 98 MB for a photo of 12 megapixels.
        home: Folder that the file will be in, from which the photos are named; defaults to that of `path`.

    Raises:
        ValueError: If `maps` is neither.
    """
    check_option("maps", maps, ("original", "network"))
    tensors = {name: _storable(tensor) for name, tensor in _tensors_of(scene)}
    entries = {name: _Entry(tuple(t.shape), t.dtype, lambda t=t: t) for name, t in tensors.items()}  # type: ignore[misc]
    if maps == "original" and scene.predictions.depth is not None:
        entries |= _original_maps(scene)
    views = [
        {"name": name, **transform.to_dict()} for name, transform in zip(scene.names, scene.transforms, strict=True)
    ]
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "units": scene.units,
        "notice": scene.notice,
        "provenance": json.dumps(dict(scene.provenance)),
        **({"refined": "true"} if scene.refined else {}),
        **({"times": json.dumps(scene.times)} if scene.times else {}),
        "conventions": json.dumps({**CAMERA_CONVENTIONS, "world": scene.world}),
        "views": json.dumps(views),
    }
    if any(scene.paths):
        here = user_path(path).parent
        there = here if home is None else user_path(home)
        # Photos beside the file are moved with it.
        metadata["photos"] = json.dumps(
            [
                None if each is None else _relative(each, here if each.is_relative_to(here) else there)
                for each in scene.paths
            ]
        )
    _write_safetensors(user_path(path), entries, metadata)


def load_fields(source: str | Path) -> dict[str, Any]:
    """Read the attributes of a `Scene` from a folder that `Scene.save` wrote, or from its scene.safetensors.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, isn't a scene, or has a newer format.
    """
    path = user_path(source)
    path = path / ARCHIVE if path.is_dir() else path
    if not path.is_file() or path.suffix != ".safetensors":
        raise FileNotFoundError(f"a scene must be a folder with {ARCHIVE} or such a file, got '{source}'")
    file = open_tensor_file(path)
    if (file.metadata.get("format"), file.metadata.get("version")) != (FORMAT, VERSION):
        found = f"{file.metadata.get('format')} {file.metadata.get('version')}"
        raise ValueError(f"{path} must hold a scene of format {FORMAT} {VERSION}, got {found}")
    names = [name for name in file.shapes if not name.startswith("original/")]
    tensors = {name: tensor.clone() for name, tensor in file.read(names)}
    try:
        return _fields_from(tensors, file.metadata, path.parent)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} must hold a whole scene, got a damaged one: {reason}") from error


def _relative(path: Path, folder: Path) -> str | None:
    """Name a file from a folder, with "/"; None where no such name leads to it."""
    try:
        return Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix()
    except ValueError:  # on another drive
        return None


def _paths_from(metadata: dict[str, str], folder: Path, num_views: int) -> tuple[Path | None, ...]:
    """Files of the photos that an archive in a folder names; () where it names none."""
    names = json.loads(metadata.get("photos", "[]"))
    if names and len(names) != num_views:
        raise ValueError(f"photos must be one a view ({num_views}), got {len(names)}")
    return tuple(None if name is None else Path(os.path.normpath(folder / str(name))) for name in names)


def _times_from(metadata: dict[str, str], num_views: int) -> tuple[float, ...]:
    times = tuple(float(time) for time in json.loads(metadata.get("times", "[]")))
    if times and len(times) != num_views:
        raise ValueError(f"times must be one a view ({num_views}), got {len(times)}")
    return times


def _matched_from(tensors: dict[str, Tensor], num_views: int) -> MatchedPixels | None:
    if "matched_view" not in tensors:
        return None
    matched = MatchedPixels(*(tensors[f"matched_{name}"] for name in MatchedPixels._fields))
    count = len(matched.view)
    check_shape("matched_point", matched.point, (count,))
    check_shape("matched_coords_px", matched.coords_px, (count, 2))
    if count and not 0 <= int(matched.view.min()) <= int(matched.view.max()) < num_views:
        raise ValueError(f"matched_view must be views from 0 to {num_views - 1}, got {int(matched.view.max())}")
    return matched


def _fields_from(tensors: dict[str, Tensor], metadata: dict[str, str], folder: Path) -> dict[str, Any]:
    views = json.loads(metadata["views"])
    check_shape("images", tensors["images"], (len(views), 3, "H", "W"))
    check_shape("mask", tensors["mask"], (len(views), *tensors["images"].shape[2:]))
    if "moving" in tensors:
        check_mask("moving", tensors["moving"], tuple(tensors["mask"].shape))
    provenance = json.loads(metadata.get("provenance", "{}"))
    first_cameras = None
    if "first_cam_from_world" in tensors:
        first_cameras = Cameras(tensors["first_cam_from_world"], tensors["first_intrinsics_model"])
    return {
        "names": tuple(view.pop("name") for view in views),
        "transforms": tuple(ViewTransform.from_dict(view) for view in views),
        "images": tensors["images"],
        "masks": tensors["mask"],
        "predictions": _predictions_from(tensors),
        "query_points": tensors.get("query_points"),
        "units": metadata["units"],
        "notice": metadata["notice"],
        "paths": _paths_from(metadata, folder, len(views)),
        "provenance": {str(name): str(value) for name, value in provenance.items()},
        "refined": metadata.get("refined") == "true",
        "first_cameras": first_cameras,
        "times": _times_from(metadata, len(views)),
        "matched": _matched_from(tensors, len(views)),
        "moving": tensors.get("moving"),
    }


def _tensors_of(scene: SceneContent) -> Iterator[tuple[str, Tensor]]:
    model, original = scene.predictions, scene.cameras
    yield "images", scene.images
    yield "mask", scene.masks
    if scene.moving is not None:
        yield "moving", scene.moving
    yield "transforms", torch.stack([transform.matrix for transform in scene.transforms])
    if model.cameras is not None and original is not None:
        yield "cam_from_world", model.cameras.cam_from_world
        yield "intrinsics", original.intrinsics
        yield "intrinsics_model", model.cameras.intrinsics
    if scene.first_cameras is not None:
        yield "first_cam_from_world", scene.first_cameras.cam_from_world
        yield "first_intrinsics_model", scene.first_cameras.intrinsics
    if model.pose_encodings is not None:
        yield "pose_encodings", model.pose_encodings
    for name, dense in (("depth", model.depth), ("points", model.points)):
        if dense is not None:
            yield name, dense.value
            yield f"{name}_confidence", dense.confidence
    if model.sky is not None:
        yield "sky", model.sky
    for name, dense in (model.extra or {}).items():
        yield f"extra/{name}", dense.value
        yield f"extra_confidence/{name}", dense.confidence
    if scene.query_points is not None:
        yield "query_points", scene.query_points
    for name, tensor in ({} if scene.matched is None else scene.matched._asdict()).items():
        yield f"matched_{name}", tensor
    tracks = scene.tracks
    if tracks is not None and model.tracks is not None:
        yield "track_coords_px", tracks.coords_px
        yield "track_coords_px_model", model.tracks.coords_px
        yield "track_visibility", tracks.visibility
        yield "track_confidence", tracks.confidence


def _predictions_from(tensors: dict[str, Tensor]) -> Predictions:
    def dense(name: str) -> DenseMap | None:
        return DenseMap(tensors[name], tensors[f"{name}_confidence"]) if name in tensors else None

    cameras = tracks = None
    if "cam_from_world" in tensors:
        cameras = Cameras(tensors["cam_from_world"], tensors["intrinsics_model"])
    if "track_coords_px_model" in tensors:
        tracks = Tracks(*(tensors[f"track_{part}"] for part in ("coords_px_model", "visibility", "confidence")))
    names = [name.removeprefix("extra/") for name in tensors if name.startswith("extra/")]
    extra = {name: DenseMap(tensors[f"extra/{name}"], tensors[f"extra_confidence/{name}"]) for name in names}
    encodings = tensors.get("pose_encodings")
    return Predictions(
        cameras, encodings, dense("depth"), dense("points"), tracks, extra=extra or None, sky=tensors.get("sky")
    )


def _original_maps(scene: SceneContent) -> dict[str, _Entry]:
    depth = scene.predictions.depth
    assert depth is not None
    entries = {}
    for index, (name, transform) in enumerate(zip(scene.names, scene.transforms, strict=True)):
        for maps, suffix in ((depth.value, "depth"), (depth.confidence, "depth_confidence")):
            map_ = _storable(maps[index])
            make = functools.partial(transform.depth_to_original, map_)
            entries[f"original/{name}/{suffix}"] = _Entry(transform.original_hw, map_.dtype, make)
    return entries


def _storable(tensor: Tensor) -> Tensor:
    """Return float32 in place of half precision, which a scene's file doesn't hold."""
    return tensor if tensor.dtype in _DTYPES else tensor.float()


def _write_safetensors(path: Path, entries: dict[str, _Entry], metadata: dict[str, str]) -> None:
    """Write the safetensors format with one tensor in memory at a time.

    The safetensors package needs all tensors at once, and orders the metadata at random.
    """
    # Wide dtypes first, as the format's readers expect of aligned tensors.
    names = sorted(entries, key=lambda name: (-entries[name].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name in names:
        shape, dtype, _ = entries[name]
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            tensor = entries[name].make()
            assert (tuple(tensor.shape), tensor.dtype) == entries[name][:2], name
            file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
