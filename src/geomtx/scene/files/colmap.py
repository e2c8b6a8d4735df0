"""Sparse models for COLMAP (Schönberger & Frahm, 2016), binary and text, of version 4 (five files) and 3 (three)."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geomtx.geometry.rotation import matrix_to_quat
from geomtx.scene.files.sparse_model import SparseModel

__all__ = ["ColmapLayout", "check_text_names", "write_colmap_model"]

_PINHOLE, _CAMERA = 1, 0  # number of the camera model, kind of a sensor
_POINT = np.dtype([("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("length", "<u8")])
_KEYPOINT = np.dtype([("xy", "<f8", 2), ("point", "<u8")])
_TRACK = np.dtype([("image", "<u4"), ("index", "<u4")])


class ColmapLayout(NamedTuple):
    """Files that a model is written to.

    Attributes:
        text: Whether they are text (.txt) and not binary (.bin).
        num_files: 5 for cameras, images, points3D, rigs and frames, as COLMAP 4 writes them; 3 for the first three, as
            COLMAP 3 does. All of COLMAP's versions read the three files, and ignore the other two where they don't
            know them.
        shared_camera: Whether all images have one camera, that of the first, and not one each.
    """

    text: bool = False
    num_files: Literal[3, 5] = 5
    shared_camera: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the files."""
        stems = ("cameras", "images", "points3D", "rigs", "frames")[: self.num_files]
        return tuple(f"{stem}.{'txt' if self.text else 'bin'}" for stem in stems)


class _Image(NamedTuple):
    """A view as the files have it, with numbers that count from 1."""

    number: int
    camera: int
    name: str
    pose: NDArray[np.float64]  # quaternion w, x, y, z and translation, (7,)
    rows: NDArray[np.int64]  # its observations


def write_colmap_model(folder: Path, model: SparseModel, names: Sequence[str], layout: ColmapLayout) -> None:
    """Write the files of a model; images, cameras and points have numbers from 1 in the order of the model.

    Cameras are PINHOLE in pixels of the upright photo, whose first pixel has its centre at (0.5, 0.5). Key points of an
    image are its observations and no others. The error of a point is its mean reprojection error in pixels.

    Args:
        folder: Folder, which exists.
        model: Views and points.
        names: Names of the model's images, with bytes that are not UTF-8 as `os.fsdecode` gives them.
        layout: Files to write.

    Raises:
        ValueError: If names have a space, a line break or no character in a text file, which COLMAP could not read.
    """
    if layout.text:
        check_text_names(names)
    images = list(_images(model, names, layout))
    contents = (_text if layout.text else _binary)(model, images, layout)
    for name, content in zip(layout.names, contents, strict=False):
        (folder / name).write_bytes(content)


def check_text_names(names: Sequence[str]) -> None:
    """Require names that COLMAP reads from a text file whole.

    Raises:
        ValueError: Naming the first that has a space or a line break.
    """
    for name in names:
        if name.split() != [name]:
            raise ValueError(
                f"names of photos must have no spaces in text files of COLMAP, got {name!r}; write binary files instead"
            )


def _images(model: SparseModel, names: Sequence[str], layout: ColmapLayout) -> Iterator[_Image]:
    quats = matrix_to_quat(model.cam_from_world[:, :, :3]).roll(1, -1)
    poses = np.concatenate([quats.numpy(), model.cam_from_world[:, :, 3].numpy()], axis=1)
    view = model.points.view.numpy()
    order = np.argsort(view, kind="stable")
    ends = np.searchsorted(view[order], np.arange(len(names) + 1))
    for index, name in enumerate(names):
        camera = 1 if layout.shared_camera else index + 1
        yield _Image(index + 1, camera, name, poses[index], order[ends[index] : ends[index + 1]])


def _cameras(model: SparseModel, images: Sequence[_Image]) -> dict[int, tuple[int, int, tuple[float, ...]]]:
    """Number of a camera → width, height, and fx, fy, cx, cy."""
    cameras: dict[int, tuple[int, int, tuple[float, ...]]] = {}
    for image, (height, width), k in zip(images, model.sizes, model.intrinsics.tolist(), strict=True):
        params = (k[0][0], k[1][1], k[0][2] + 0.5, k[1][2] + 0.5)
        cameras.setdefault(image.camera, (width, height, params))
    return cameras


def _tracks(model: SparseModel, images: Sequence[_Image]) -> NDArray[np.void]:
    """The image and the index of its key point of each observation, in the order of the points."""
    tracks = np.empty(len(model.points.view), _TRACK)
    for image in images:
        tracks["image"][image.rows] = image.number
        tracks["index"][image.rows] = np.arange(len(image.rows))
    return tracks


def _binary(model: SparseModel, images: Sequence[_Image], layout: ColmapLayout) -> Iterator[bytes]:
    cameras = _cameras(model, images)
    coords, point = model.points.coords_px.numpy() + 0.5, model.points.point.numpy()
    yield struct.pack("<Q", len(cameras)) + b"".join(
        struct.pack("<IiQQ4d", number, _PINHOLE, width, height, *params)
        for number, (width, height, params) in cameras.items()
    )
    parts = [struct.pack("<Q", len(images))]
    for image in images:
        keypoints = np.empty(len(image.rows), _KEYPOINT)
        keypoints["xy"], keypoints["point"] = coords[image.rows], point[image.rows] + 1
        parts.append(struct.pack("<I7dI", image.number, *image.pose, image.camera))
        parts.append(
            image.name.encode("utf-8", "surrogateescape")
            + b"\0"
            + struct.pack("<Q", len(keypoints))
            + keypoints.tobytes()
        )
    yield b"".join(parts)
    yield _binary_points(model, _tracks(model, images))
    if layout.num_files == 3:
        return
    yield struct.pack("<Q", len(cameras)) + b"".join(
        struct.pack("<IIiI", number, 1, _CAMERA, number) for number in cameras
    )
    yield struct.pack("<Q", len(images)) + b"".join(
        struct.pack("<II7dI", image.number, image.camera, *image.pose, 1)
        + struct.pack("<iIQ", _CAMERA, image.camera, image.number)
        for image in images
    )


def _binary_points(model: SparseModel, tracks: NDArray[np.void]) -> bytes:
    """Each point, followed by its track: records of different lengths, placed all at once."""
    points, point = model.points, model.points.point.numpy()
    length = np.bincount(point, minlength=len(points.xyz))
    head = np.empty(len(points.xyz), _POINT)
    head["id"], head["xyz"], head["rgb"] = np.arange(len(head)) + 1, points.xyz.numpy(), points.rgb.numpy()
    head["error"], head["length"] = model.errors.numpy(), length
    first = np.cumsum(length) - length  # observations before each point
    start = np.arange(len(head)) * _POINT.itemsize + first * _TRACK.itemsize
    content = np.empty(len(head) * _POINT.itemsize + len(tracks) * _TRACK.itemsize, np.uint8)
    content[start[:, None] + np.arange(_POINT.itemsize)] = head.view(np.uint8).reshape(len(head), -1)
    place = (point + 1) * _POINT.itemsize + np.arange(len(tracks)) * _TRACK.itemsize
    content[place[:, None] + np.arange(_TRACK.itemsize)] = tracks.view(np.uint8).reshape(len(tracks), -1)
    return struct.pack("<Q", len(head)) + content.tobytes()


def _text(model: SparseModel, images: Sequence[_Image], layout: ColmapLayout) -> Iterator[bytes]:
    cameras = _cameras(model, images)
    yield _lines(
        "Cameras: CAMERA_ID MODEL WIDTH HEIGHT PARAMS[]",
        (f"{number} PINHOLE {width} {height} {_join(params)}" for number, (width, height, params) in cameras.items()),
    )
    coords, point = (model.points.coords_px + 0.5).tolist(), model.points.point.tolist()
    yield _lines(
        "Images, two lines each: IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME; (X Y POINT3D_ID)[]",
        (line for image in images for line in _image_lines(image, coords, point)),
    )
    yield _lines(
        "Points: POINT3D_ID X Y Z R G B ERROR (IMAGE_ID POINT2D_IDX)[]", _point_lines(model, _tracks(model, images))
    )
    if layout.num_files == 3:
        return
    yield _lines(
        "Rigs: RIG_ID NUM_SENSORS REF_SENSOR_TYPE REF_SENSOR_ID", (f"{number} 1 CAMERA {number}" for number in cameras)
    )
    yield _lines(
        "Frames: FRAME_ID RIG_ID QW QX QY QZ TX TY TZ NUM_DATA_IDS (SENSOR_TYPE SENSOR_ID DATA_ID)[]",
        (
            f"{image.number} {image.camera} {_join(image.pose.tolist())} 1 CAMERA {image.camera} {image.number}"
            for image in images
        ),
    )


def _image_lines(image: _Image, coords: list[list[float]], point: list[int]) -> Iterator[str]:
    yield f"{image.number} {_join(image.pose.tolist())} {image.camera} {image.name}"
    yield " ".join(f"{_join(coords[row])} {point[row] + 1}" for row in image.rows.tolist())


def _point_lines(model: SparseModel, tracks: NDArray[np.void]) -> Iterator[str]:
    points = model.points
    ends = np.cumsum(np.bincount(points.point.numpy(), minlength=len(points.xyz)))
    values = zip(
        points.xyz.tolist(), points.rgb.tolist(), model.errors.tolist(), np.split(tracks, ends[:-1]), strict=True
    )
    for number, (xyz, rgb, error, track) in enumerate(values, start=1):
        seen = " ".join(f"{image} {index}" for image, index in track.tolist())
        yield f"{number} {_join(xyz)} {' '.join(map(str, rgb))} {error!r} {seen}"


def _join(numbers: Sequence[float]) -> str:
    """Numbers with as many digits as bring them back."""
    return " ".join(map(repr, numbers))


def _lines(comment: str, lines: Iterator[str]) -> bytes:
    return "".join(f"{line}\n" for line in (f"# {comment}", *lines)).encode("utf-8", "surrogateescape")
