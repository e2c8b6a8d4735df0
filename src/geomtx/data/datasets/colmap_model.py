"""Sparse models of COLMAP (Schönberger & Frahm, 2016), text or binary, and the lens distortion of their cameras."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from geomtx.data.files import read_text
from geomtx.data.scene_check import SceneError

__all__ = [
    "ColmapCamera",
    "ColmapImage",
    "ColmapModel",
    "camera_intrinsics",
    "check_distortion",
    "distort_points",
    "find_colmap_model",
    "read_colmap_model",
    "undistort_image",
]

# Name and number of parameters of each camera model, by its number in binary files.
_MODELS = (
    ("SIMPLE_PINHOLE", 3), ("PINHOLE", 4), ("SIMPLE_RADIAL", 4), ("RADIAL", 5), ("OPENCV", 8), ("OPENCV_FISHEYE", 8),
    ("FULL_OPENCV", 12), ("FOV", 5), ("SIMPLE_RADIAL_FISHEYE", 4), ("RADIAL_FISHEYE", 5), ("THIN_PRISM_FISHEYE", 12),
)  # fmt: skip
_NUM_PARAMS = dict(_MODELS)
_OBSERVATION = np.dtype([("xy", "<f8", 2), ("point", "<i8")])


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
        quat_xyzw: Rotation from the world to the camera, (4,) float64.
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
        SceneError: If none of them holds a model.
    """
    for place in (folder / "sparse" / "0", folder / "sparse", folder):
        if any((place / f"cameras{suffix}").is_file() for suffix in (".bin", ".txt")):
            return place
    raise SceneError(f"'{folder}' must hold a COLMAP model in sparse/0, sparse or itself, got no cameras.bin or .txt")


def read_colmap_model(folder: Path) -> ColmapModel:
    """Read a model from cameras, images and points3D, each .bin if it exists, else .txt.

    Raises:
        SceneError: If a file is missing, damaged or truncated, or the files are not of one model.
    """
    cameras = dict(_read(folder, "cameras", _cameras_of_bytes, _cameras_of_text))
    entries = _read(folder, "points3D", _points_of_bytes, _points_of_text)
    ids = np.array([number for number, _ in entries], dtype=np.int64)
    order = np.argsort(ids)
    ids = ids[order]
    points = np.array([place for _, place in entries], dtype=np.float64).reshape(-1, 3)[order]
    images = []
    for image, seen in _read(folder, "images", _images_of_bytes, _images_of_text):
        if image.camera not in cameras:
            raise SceneError(f"camera of '{image.name}' must be one of the model's, got number {image.camera}")
        kept = seen >= 0
        rows = np.searchsorted(ids, seen[kept])
        if (rows == len(ids)).any() or (ids[rows] != seen[kept]).any():
            raise SceneError(f"points of '{image.name}' must be among the model's, got others in '{folder}'")
        images.append(image._replace(keypoints_px=image.keypoints_px[kept], points=rows))
    _check_numbers(folder, cameras, images, points)
    return ColmapModel(cameras, tuple(sorted(images, key=lambda image: image.name)), points)


def _check_numbers(
    folder: Path, cameras: dict[int, ColmapCamera], images: list[ColmapImage], points: NDArray[np.float64]
) -> None:
    numbers = [np.array(camera.params) for camera in cameras.values()] + [points]
    numbers += [np.concatenate([image.quat_xyzw, image.translation, image.keypoints_px.ravel()]) for image in images]
    if not all(np.isfinite(part).all() for part in numbers):
        raise SceneError(f"numbers of the model '{folder}' must be finite, got others")
    for number, camera in cameras.items():
        if min(camera.image_hw) < 1:
            raise SceneError(f"size of camera {number} of '{folder}' must be positive, got {camera.image_hw}")
    for image in images:
        if np.linalg.norm(image.quat_xyzw) < 1e-6:
            raise SceneError(f"rotation of '{image.name}' must be a quaternion other than 0, got 0")


def _read(
    folder: Path, name: str, of_bytes: Callable[[_Bytes], Iterator[Any]], of_text: Callable[[_Lines], Iterator[Any]]
) -> list[Any]:
    binary, text = folder / f"{name}.bin", folder / f"{name}.txt"
    path = binary if binary.is_file() else text
    if not path.is_file():
        raise SceneError(f"'{folder}' must hold {name}.bin or {name}.txt, got neither")
    try:
        if path == text:
            return list(of_text(_Lines(read_text(path, errors="surrogateescape"))))
        content = _Bytes(path.read_bytes())
        entries = list(of_bytes(content))
        content.finish()
        return entries
    except OSError as error:
        raise SceneError(f"'{path}' must be a file that can be read, got {error}") from error
    except (ValueError, OverflowError, struct.error) as error:
        raise SceneError(f"'{path}' must be a whole file of COLMAP, got another: {error}") from error


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
        self.lines = [line for line in content.splitlines() if not line.startswith("#")]

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


def _images_of_bytes(content: _Bytes) -> Iterator[tuple[ColmapImage, NDArray[np.int64]]]:
    for _ in range(content.count()):
        _, *pose, camera = content.take("I7dI")
        name, amount = content.text(), content.count()
        start = content.skip(amount * _OBSERVATION.itemsize)
        seen = np.frombuffer(content.content, _OBSERVATION, amount, start)
        yield _place_image(name, camera, pose, seen["xy"], seen["point"])


def _images_of_text(content: _Lines) -> Iterator[tuple[ColmapImage, NDArray[np.int64]]]:
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
        yield _place_image(fields[9], int(fields[8]), pose, seen[:, :2], seen[:, 2].astype(np.int64))


def _place_image(
    name: str, camera: int, pose: list[float], xy: NDArray[np.float64], seen: NDArray[np.int64]
) -> tuple[ColmapImage, NDArray[np.int64]]:
    w, x, y, z, *translation = pose
    nothing = np.empty(0, dtype=np.int64)
    return ColmapImage(name, camera, np.array([x, y, z, w]), np.array(translation), xy.copy(), nothing), seen


_KINDS = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")


def camera_intrinsics(camera: ColmapCamera) -> NDArray[np.float64]:
    """Return the intrinsics (3, 3) without distortion; the first pixel's centre is at (0, 0).

    Raises:
        SceneError: For a model other than SIMPLE_PINHOLE, PINHOLE, SIMPLE_RADIAL, RADIAL and OPENCV.
    """
    if camera.model not in _KINDS:
        raise SceneError(f"camera model must be one of {', '.join(_KINDS)}, got {camera.model}; undistort with COLMAP")
    if camera.model in ("PINHOLE", "OPENCV"):
        f_x, f_y, c_x, c_y = camera.params[:4]
    else:
        f_x, c_x, c_y = camera.params[:3]
        f_y = f_x
    return np.array([[f_x, 0.0, c_x - 0.5], [0.0, f_y, c_y - 0.5], [0.0, 0.0, 1.0]])


def check_distortion(camera: ColmapCamera) -> None:
    """Require that the distortion is invertible over the whole picture.

    Raises:
        SceneError: If the distorted radius does not increase with the radius; then points would appear twice.
    """
    k1, k2, p1, p2 = _coefficients(camera)
    k, (height, width) = camera_intrinsics(camera), camera.image_hw
    far_x, far_y = (max(c, size - 1 - c) / f for c, size, f in ((k[0, 2], width, k[0, 0]), (k[1, 2], height, k[1, 1])))
    r = np.hypot(far_x, far_y) * np.linspace(0, 1, 65)
    if (1 + 3 * k1 * r**2 + 5 * k2 * r**4 - 8 * (abs(p1) + abs(p2)) * r <= 0).any():
        raise SceneError(f"distortion must be invertible over the picture, got {camera.model} {camera.params}")


def distort_points(camera: ColmapCamera, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Project directions with the distortion of the lens.

    Args:
        camera: Camera of a model that `camera_intrinsics` supports.
        points: Normalised coordinates x/z and y/z, (..., 2).

    Returns:
        Pixels (..., 2) of the distorted picture, with the first pixel's centre at (0, 0).
    """
    from kornia.geometry import calibration

    flat, k = torch.from_numpy(points.reshape(-1, 2)), torch.from_numpy(camera_intrinsics(camera))
    # The last argument maps points to normalised coordinates, which they are already.
    pixels = calibration.distort_points(flat, k, flat.new_tensor(_coefficients(camera)), torch.eye(3).to(flat))
    return pixels.numpy().reshape(points.shape)


def undistort_image(camera: ColmapCamera, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Undistort a picture (H, W, 3) to the camera `camera_intrinsics`; black outside of the original picture."""
    if not any(_coefficients(camera)):
        return image
    from kornia.geometry import calibration

    # In float64, because float32 misplaces the pixels of large pictures by thousandths.
    pixels = torch.tensor(image, dtype=torch.float64).permute(2, 0, 1)[None]
    k, coefficients = torch.from_numpy(camera_intrinsics(camera)), pixels.new_tensor(_coefficients(camera))
    undistorted = calibration.undistort_image(pixels, k[None], coefficients[None])[0]
    return undistorted.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def _coefficients(camera: ColmapCamera) -> tuple[float, float, float, float]:
    """Return the radial coefficients k1 and k2 and the tangential ones p1 and p2."""
    if camera.model == "SIMPLE_RADIAL":
        return camera.params[3], 0.0, 0.0, 0.0
    if camera.model == "RADIAL":
        return camera.params[3], camera.params[4], 0.0, 0.0
    if camera.model == "OPENCV":
        k1, k2, p1, p2 = camera.params[4:]
        return k1, k2, p1, p2
    return 0.0, 0.0, 0.0, 0.0
