"""Reading sparse models of COLMAP (Schönberger & Frahm, 2016): text or binary, with rigs and frames or without."""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ColmapCamera",
    "ColmapError",
    "ColmapImage",
    "ColmapModel",
    "find_colmap_model",
    "read_colmap_model",
]

# Name and number of parameters of each camera model, by its number in binary files.
_MODELS = (
    ("SIMPLE_PINHOLE", 3), ("PINHOLE", 4), ("SIMPLE_RADIAL", 4), ("RADIAL", 5), ("OPENCV", 8), ("OPENCV_FISHEYE", 8),
    ("FULL_OPENCV", 12), ("FOV", 5), ("SIMPLE_RADIAL_FISHEYE", 4), ("RADIAL_FISHEYE", 5), ("THIN_PRISM_FISHEYE", 12),
)  # fmt: skip
_NUM_PARAMS = dict(_MODELS)
_FILES = ("cameras", "images", "points3D")
_CAMERA, _IMU = 0, 1  # kinds of sensors
_SENSORS = {"CAMERA": _CAMERA, "IMU": _IMU}
_OBSERVATION = np.dtype([("xy", "<f8", 2), ("point", "<i8")])


_Pose = tuple[NDArray[np.float64], NDArray[np.float64]]  # quaternion xyzw (4,) and translation (3,)


class ColmapError(ValueError):
    """An error that says why files are no model of COLMAP."""


class ColmapCamera(NamedTuple):
    """A camera of a COLMAP model.

    Attributes:
        model: Name of the camera model, such as "PINHOLE".
        image_hw: Height and width of its pictures in pixels.
        params: Parameters of the camera model; the first pixel's centre is at (0.5, 0.5).
    """

    model: str
    image_hw: tuple[int, int]
    params: tuple[float, ...]


class ColmapImage(NamedTuple):
    """A registered picture of a COLMAP model.

    Attributes:
        name: Path below the folder of the pictures; bytes that are not UTF-8 are decoded as by `os.fsdecode`.
        camera: Number of its camera.
        quat_xyzw: Rotation from the world to the camera, (4,) float64, of the length that the file has, which need not
            be 1: `geomtx.geometry.quat_to_matrix` normalises it.
        translation: Translation of the camera pose, (3,) float64.
        keypoints_px: Key points that observe a point, (M, 2) float64; the first pixel's centre is at (0.5, 0.5).
        points: Indices of the observed points, (M,) int64.
    """

    name: str
    camera: int
    quat_xyzw: NDArray[np.float64]
    translation: NDArray[np.float64]
    keypoints_px: NDArray[np.float64]
    points: NDArray[np.int64]


class ColmapModel(NamedTuple):
    """A sparse model of COLMAP.

    Attributes:
        cameras: Cameras by their numbers.
        images: Registered pictures, sorted by name.
        points: World points, (P, 3) float64.
    """

    cameras: dict[int, ColmapCamera]
    images: tuple[ColmapImage, ...]
    points: NDArray[np.float64]


def find_colmap_model(folder: Path) -> Path:
    """Find the folder of a scene's model: `sparse/0`, `sparse` or the folder itself.

    Raises:
        ColmapError: If none of them holds a model.
    """
    for place in (folder / "sparse" / "0", folder / "sparse", folder):
        if any((place / f"cameras{suffix}").is_file() for suffix in (".bin", ".txt")):
            return place
    raise ColmapError(f"'{folder}' must hold a COLMAP model in sparse/0, sparse or itself, got no cameras.bin or .txt")


def read_colmap_model(folder: Path) -> ColmapModel:
    """Read a model of COLMAP 3 (cameras, images, points3D) or of COLMAP 4 (rigs and frames, too).

    Of a model that is there as binary and as text, the binary files are read, as by COLMAP. Where there are rigs and
    frames, the pose of an image is that of its frame and of its sensor in the rig.

    Raises:
        ColmapError: If a file is missing, damaged or truncated, or the files are not of one model.
    """
    binary = all((folder / f"{name}.bin").is_file() for name in _FILES)
    text = all((folder / f"{name}.txt").is_file() for name in _FILES)
    kinds = (".bin",) if binary else (".txt",) if text else (".bin", ".txt")
    cameras = dict(_read(folder, "cameras", kinds, _cameras_of_bytes, _cameras_of_text))
    entries = _read(folder, "points3D", kinds, _points_of_bytes, _points_of_text)
    ids = np.array([number for number, _ in entries], dtype=np.int64)
    order = np.argsort(ids)
    ids = ids[order]
    points = np.array([place for _, place in entries], dtype=np.float64).reshape(-1, 3)[order]
    poses = _frame_poses(folder, kinds)
    images = []
    for number, image, seen in _read(folder, "images", kinds, _images_of_bytes, _images_of_text):
        if image.camera not in cameras:
            raise ColmapError(f"camera of '{image.name}' must be one of the model's, got number {image.camera}")
        kept = seen >= 0
        rows = np.searchsorted(ids, seen[kept])
        if (rows == len(ids)).any() or (ids[rows] != seen[kept]).any():
            raise ColmapError(f"points of '{image.name}' must be among the model's, got others in '{folder}'")
        quat, translation = poses.get(number, (image.quat_xyzw, image.translation))
        _normalize(quat, f"rotation of '{image.name}'")
        images.append(
            image._replace(
                quat_xyzw=quat,
                translation=translation,
                keypoints_px=image.keypoints_px[kept],
                points=rows,
            )
        )
    _check_numbers(folder, cameras, images, points)
    return ColmapModel(cameras, tuple(sorted(images, key=lambda image: image.name)), points)


def _frame_poses(folder: Path, kinds: Sequence[str]) -> dict[int, _Pose]:
    """Read the pose of each image that is in a frame, by its number; none where there are neither rigs nor frames."""
    there = [name for name in ("rigs", "frames") if any((folder / f"{name}{kind}").is_file() for kind in kinds)]
    if not there:
        return {}
    if len(there) == 1:
        raise ColmapError(f"'{folder}' must hold both rigs and frames or neither, got {there[0]} alone")
    rigs = dict(_read(folder, "rigs", kinds, _rigs_of_bytes, _rigs_of_text))
    poses = {}
    for number, rig, (quat, translation), images in _read(folder, "frames", kinds, _frames_of_bytes, _frames_of_text):
        if rig not in rigs:
            raise ColmapError(f"rig of frame {number} must be one of the model's, got number {rig} in '{folder}'")
        quat = _normalize(quat, f"rotation of frame {number}")
        for sensor, image in images:
            if sensor[0] != _CAMERA:
                continue
            if rigs[rig].get(sensor) is None:
                raise ColmapError(
                    f"pose of sensor {sensor[1]} in rig {rig} must be known, got none for image {image} in '{folder}'"
                )
            turn, shift = rigs[rig][sensor]
            turn = _normalize(turn, f"rotation of sensor {sensor[1]} in rig {rig}")
            poses[image] = (_multiply(turn, quat), _rotate(turn, translation) + shift)
    return poses


def _normalize(quat_xyzw: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    length = np.linalg.norm(quat_xyzw)
    if length < 1e-6:
        raise ColmapError(f"{name} must be a quaternion other than 0, got 0")
    return quat_xyzw if length == 1 else quat_xyzw / length


def _multiply(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the quaternion xyzw of the rotation b, followed by a."""
    vector = a[3] * b[:3] + b[3] * a[:3] + np.cross(a[:3], b[:3])
    return np.append(vector, a[3] * b[3] - a[:3] @ b[:3])


def _rotate(quat_xyzw: NDArray[np.float64], vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotate a vector (3,) by a unit quaternion."""
    half = np.cross(quat_xyzw[:3], vector)
    return vector + 2 * (quat_xyzw[3] * half + np.cross(quat_xyzw[:3], half))


def _check_numbers(
    folder: Path, cameras: dict[int, ColmapCamera], images: list[ColmapImage], points: NDArray[np.float64]
) -> None:
    numbers = [np.array(camera.params) for camera in cameras.values()] + [points]
    numbers += [np.concatenate([image.quat_xyzw, image.translation, image.keypoints_px.ravel()]) for image in images]
    if not all(np.isfinite(part).all() for part in numbers):
        raise ColmapError(f"numbers of the model '{folder}' must be finite, got others")
    for number, camera in cameras.items():
        if min(camera.image_hw) < 1:
            raise ColmapError(f"size of camera {number} of '{folder}' must be positive, got {camera.image_hw}")


def _read(
    folder: Path,
    name: str,
    kinds: Sequence[str],
    of_bytes: Callable[[_Bytes], Iterator[Any]],
    of_text: Callable[[_Lines], Iterator[Any]],
) -> list[Any]:
    """Read the entries of one file, of the first of `kinds` that there is."""
    path = next((found for kind in kinds if (found := folder / f"{name}{kind}").is_file()), None)
    if path is None:
        raise ColmapError(f"'{folder}' must hold {name}.bin or {name}.txt, got neither")
    try:
        if path.suffix == ".txt":
            return list(of_text(_Lines(_decode(path.read_bytes()))))
        content = _Bytes(path.read_bytes())
        entries = list(of_bytes(content))
        content.finish()
        return entries
    except OSError as error:
        raise ColmapError(f"'{path}' must be a file that can be read, got {error}") from error
    except (ValueError, OverflowError, struct.error) as error:
        raise ColmapError(f"'{path}' must be a whole file of COLMAP, got another: {error}") from error


def _decode(content: bytes) -> str:
    """Text in UTF-8, or in UTF-16 with the mark that editors on Windows write first."""
    is_utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if is_utf_16 else "utf-8-sig", "surrogateescape")


class _Bytes:
    """Cursor over the content of a binary file."""

    def __init__(self, content: bytes) -> None:
        self.content, self.place = content, 0

    def take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + layout, self.content, self.place)
        self.place += struct.calcsize("<" + layout)
        return values

    def skip(self, size: int) -> int:
        """Move by `size` bytes and return the position before."""
        before = self.place
        if size > len(self.content) - before:
            raise ValueError(f"it ends after {len(self.content)} bytes")
        self.place += size
        return before

    def count(self) -> int:
        """Read a number of entries, each of which takes at least one byte."""
        (number,) = self.take("Q")
        if number > len(self.content):
            raise ValueError(f"{number} entries in {len(self.content)} bytes")
        return int(number)

    def text(self) -> str:
        end = self.content.index(b"\0", self.place)
        return self.content[self.skip(end + 1 - self.place) : end].decode("utf-8", "surrogateescape")

    def finish(self) -> None:
        if self.place != len(self.content):
            raise ValueError(f"{len(self.content) - self.place} bytes after its end")


class _Lines:
    """Lines of a text file without comments."""

    def __init__(self, content: str) -> None:
        lines = content.replace("\r\n", "\n").split("\n")
        self.lines = [line for line in lines if not line.lstrip().startswith("#")]

    def fields(self, least: int) -> Iterator[list[str]]:
        for line in self.lines:
            if line.strip():
                yield _split(line, least)


def _split(line: str, least: int, most: int = -1) -> list[str]:
    fields = line.strip().split(maxsplit=most)
    if len(fields) < least:
        raise ValueError(f"{len(fields)} of {least} values in the line '{line.strip()[:60]}'")
    return fields


def _cameras_of_bytes(content: _Bytes) -> Iterator[tuple[int, ColmapCamera]]:
    for _ in range(content.count()):
        number, model, width, height = content.take("IiQQ")
        if not 0 <= model < len(_MODELS):
            raise ValueError(f"camera model number {model}")
        name, num_params = _MODELS[model]
        yield number, ColmapCamera(name, (height, width), content.take(f"{num_params}d"))


def _cameras_of_text(content: _Lines) -> Iterator[tuple[int, ColmapCamera]]:
    for fields in content.fields(4):
        model, params = fields[1], tuple(float(field) for field in fields[4:])
        if _NUM_PARAMS.get(model) != len(params):
            raise ValueError(f"camera model {model} with {len(params)} numbers")
        yield int(fields[0]), ColmapCamera(model, (int(fields[3]), int(fields[2])), params)


def _points_of_bytes(content: _Bytes) -> Iterator[tuple[int, tuple[float, ...]]]:
    for _ in range(content.count()):
        number, x, y, z, *_, length = content.take("q3d3BdQ")
        content.skip(8 * length)
        yield number, (x, y, z)


def _points_of_text(content: _Lines) -> Iterator[tuple[int, tuple[float, ...]]]:
    for fields in content.fields(8):
        yield int(np.int64(fields[0])), tuple(float(field) for field in fields[1:4])


def _images_of_bytes(content: _Bytes) -> Iterator[tuple[int, ColmapImage, NDArray[np.int64]]]:
    for _ in range(content.count()):
        number, *pose, camera = content.take("I7dI")
        name, amount = content.text(), content.count()
        start = content.skip(amount * _OBSERVATION.itemsize)
        seen = np.frombuffer(content.content, _OBSERVATION, amount, start)
        yield number, _place_image(name, camera, pose, seen["xy"]), seen["point"]


def _images_of_text(content: _Lines) -> Iterator[tuple[int, ColmapImage, NDArray[np.int64]]]:
    # Each picture has two lines, the second of which may be empty; empty lines may also follow the last picture.
    lines = iter(content.lines)
    for line in lines:
        if not line.strip():
            continue
        fields = _split(line, 10, most=9)
        values = np.array(next(lines, "").split(), dtype=np.float64)
        if len(values) % 3:
            raise ValueError(f"{len(values)} values of key points of '{fields[9]}'")
        seen = values.reshape(-1, 3)
        pose = [float(field) for field in fields[1:8]]
        yield int(fields[0]), _place_image(fields[9], int(fields[8]), pose, seen[:, :2]), seen[:, 2].astype(np.int64)


def _place_image(name: str, camera: int, pose: list[float], xy: NDArray[np.float64]) -> ColmapImage:
    nothing = np.empty(0, dtype=np.int64)
    return ColmapImage(name, camera, *_to_pose(pose), xy.copy(), nothing)


def _to_pose(values: Sequence[float]) -> _Pose:
    """Return the quaternion xyzw and the translation of seven numbers w, x, y, z, t."""
    w, x, y, z, *translation = values
    return np.array([x, y, z, w]), np.array(translation)


_Rig = dict[tuple[int, int], _Pose | None]  # kind and number of a sensor → its pose in the rig, None where unknown
_IDENTITY = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def _rigs_of_bytes(content: _Bytes) -> Iterator[tuple[int, _Rig]]:
    for _ in range(content.count()):
        number, num_sensors = content.take("II")
        rig: _Rig = {}
        for index in range(num_sensors):
            kind, sensor = content.take("iI")
            known = index == 0 or content.take("B")[0]
            pose = _IDENTITY if index == 0 else content.take("7d") if known else None
            rig[kind, sensor] = None if pose is None else _to_pose(pose)
        yield number, rig


def _rigs_of_text(content: _Lines) -> Iterator[tuple[int, _Rig]]:
    for fields in content.fields(2):
        rest = iter(fields[2:])
        rig: _Rig = {}
        for index in range(int(fields[1])):
            kind, sensor = _take_sensor(rest)
            known = index == 0 or int(_take(rest)) != 0
            pose = _IDENTITY if index == 0 else [float(_take(rest)) for _ in range(7)] if known else None
            rig[kind, sensor] = None if pose is None else _to_pose(pose)
        yield int(fields[0]), rig


_Frame = tuple[int, int, _Pose, list[tuple[tuple[int, int], int]]]  # number, rig, pose, (sensor, number of its image)


def _frames_of_bytes(content: _Bytes) -> Iterator[_Frame]:
    for _ in range(content.count()):
        number, rig, *pose = content.take("II7d")
        images = [content.take("iIQ") for _ in range(content.take("I")[0])]
        yield number, rig, _to_pose(pose), [((kind, sensor), image) for kind, sensor, image in images]


def _frames_of_text(content: _Lines) -> Iterator[_Frame]:
    for fields in content.fields(10):
        rest = iter(fields[10:])
        images = [(_take_sensor(rest), int(_take(rest))) for _ in range(int(fields[9]))]
        yield int(fields[0]), int(fields[1]), _to_pose([float(field) for field in fields[2:9]]), images


def _take_sensor(fields: Iterator[str]) -> tuple[int, int]:
    kind = _take(fields)
    if kind not in _SENSORS:
        raise ValueError(f"sensor '{kind}'")
    return _SENSORS[kind], int(_take(fields))


def _take(fields: Iterator[str]) -> str:
    found = next(fields, None)
    if found is None:
        raise ValueError("a line that ends too early")
    return found
