"""What trainers of splats do with a folder before they train, written from what their readers expect."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

# Camera models that these readers know, by number: the name and the number of parameters.
_OLD_MODELS = {0: ("SIMPLE_PINHOLE", 3), 1: ("PINHOLE", 4), 2: ("SIMPLE_RADIAL", 4), 3: ("RADIAL", 5), 4: ("OPENCV", 8)}


class TrainingView(NamedTuple):
    """A photo with its camera, as a trainer sees it: first pixel centre at 0.5, OpenCV axes."""

    name: str
    picture: np.ndarray
    cam_from_world: np.ndarray
    k: np.ndarray


class TrainingScene(NamedTuple):
    views: list[TrainingView]
    points: np.ndarray
    colors: np.ndarray


def read_3dgs(folder: Path) -> TrainingScene:
    """The reference of 3D Gaussian Splatting: PINHOLE alone, fields of view without the principal point, base names."""
    cameras, images, _ = _read_model(folder / "sparse" / "0")
    views = []
    for name, camera, pose in images:
        model, width, height, params = cameras[camera]
        assert model in ("PINHOLE", "SIMPLE_PINHOLE"), "only undistorted datasets are supported"
        picture = np.asarray(Image.open(folder / "images" / Path(name).name).convert("RGB"))
        assert picture.shape[:2] == (height, width)
        k = np.array([[params[0], 0, width / 2], [0, params[1], height / 2], [0, 0, 1]])
        views.append(TrainingView(Path(name).stem, picture, pose, k))
    xyz, normals, colors = _read_3dgs_points(folder / "sparse" / "0" / "points3D.ply")
    assert normals.shape == xyz.shape
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)
    return TrainingScene(sorted(views, key=lambda view: view.name), xyz, colors)


def read_gsplat(folder: Path, factor: int) -> TrainingScene:
    """gsplat's examples: the folders of photos are paired by sorted order, intrinsics scaled to the first picture."""
    cameras, images, points = _read_model(folder / "sparse" / "0")
    assert (folder / "images").is_dir()
    scaled = folder / (f"images_{factor}" if factor > 1 else "images")
    full = sorted(path.relative_to(folder / "images").as_posix() for path in (folder / "images").rglob("*.*"))
    small = sorted(path.relative_to(scaled).as_posix() for path in scaled.rglob("*.*"))
    paired = dict(zip(full, small, strict=True))
    views = []
    for name, camera, pose in sorted(images, key=lambda image: image[0]):
        _, width, _, (fx, fy, cx, cy) = cameras[camera]
        picture = np.asarray(Image.open(scaled / paired[name]))[..., :3]
        scale = picture.shape[1] / width
        views.append(
            TrainingView(
                name, picture, pose, np.array([[fx * scale, 0, cx * scale], [0, fy * scale, cy * scale], [0, 0, 1]])
            )
        )
    xyz, colors = (np.array(values) for values in zip(*points.values(), strict=True))
    return TrainingScene(views, xyz, colors)


def read_nerfstudio(folder: Path) -> TrainingScene:
    """nerfstudio's parser, before it orients and scales; brought back to OpenCV axes and the original world."""
    content = json.loads((folder / "transforms.json").read_text(encoding="utf-8"))
    assert content["camera_model"] in ("PINHOLE", "OPENCV")
    applied = np.eye(4)
    applied[:3] = content["applied_transform"]
    views = []
    for frame in content["frames"]:
        picture = np.asarray(Image.open(folder / frame["file_path"]).convert("RGB"))
        assert picture.shape[:2] == (frame["h"], frame["w"])
        world_from_cam = np.linalg.inv(applied) @ np.array(frame["transform_matrix"])
        world_from_cam[:3, 1:3] *= -1
        k = np.array([[frame["fl_x"], 0, frame["cx"]], [0, frame["fl_y"], frame["cy"]], [0, 0, 1]])
        views.append(TrainingView(Path(frame["file_path"]).name, picture, np.linalg.inv(world_from_cam)[:3], k))
    vertices = _read_ply(folder / content["ply_file_path"])
    saved = np.stack([vertices[name] for name in "xyz"], axis=1)
    colors = np.stack([vertices[name] for name in ("red", "green", "blue")], axis=1)
    assert colors.dtype == np.uint8
    return TrainingScene(views, saved @ applied[:3, :3], colors)


def _read_3dgs_points(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    vertices = _read_ply(path)
    xyz, normals = (
        np.stack([vertices[name] for name in names], axis=1) for names in (("x", "y", "z"), ("nx", "ny", "nz"))
    )
    return xyz, normals, np.stack([vertices[name] for name in ("red", "green", "blue")], axis=1)


def _read_ply(path: Path) -> np.ndarray:
    head, body = path.read_bytes().split(b"end_header\n", 1)
    lines = head.decode().splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    types = {"float": "<f4", "uchar": "u1"}
    fields = [(line.split()[2], types[line.split()[1]]) for line in lines if line.startswith("property")]
    (count,) = (int(line.split()[2]) for line in lines if line.startswith("element vertex"))
    vertices = np.frombuffer(body, np.dtype(fields))
    assert len(vertices) == count > 0
    return vertices


class _File:
    def __init__(self, path: Path) -> None:
        self.data, self.at = path.read_bytes(), 0

    def take(self, layout: str) -> tuple:
        values = struct.unpack_from("<" + layout, self.data, self.at)
        self.at += struct.calcsize("<" + layout)
        return values

    def skip(self, size: int) -> None:
        self.at += size

    def name(self) -> str:
        end = self.data.index(b"\0", self.at)
        text, self.at = self.data[self.at : end].decode(), end + 1
        return text


def _read_model(folder: Path) -> tuple[dict, list, dict]:
    """Cameras, images and points of the three binary files that every version has."""
    file, cameras = _File(folder / "cameras.bin"), {}
    for _ in range(file.take("Q")[0]):
        number, model, width, height = file.take("IiQQ")
        name, count = _OLD_MODELS[model]
        cameras[number] = (name, width, height, file.take(f"{count}d"))
    file, images = _File(folder / "images.bin"), []
    for _ in range(file.take("Q")[0]):
        _, w, x, y, z, *t, camera = file.take("I7dI")
        name, count = file.name(), file.take("Q")[0]
        file.skip(24 * count)
        images.append((name, camera, np.column_stack([_rotation(w, x, y, z), t])))
    file, points = _File(folder / "points3D.bin"), {}
    for _ in range(file.take("Q")[0]):
        number, *values = file.take("Q3d3Bd")
        file.skip(8 * file.take("Q")[0])
        points[number] = (values[:3], values[3:6])
    return cameras, images, points


def _rotation(w: float, x: float, y: float, z: float) -> np.ndarray:
    return np.array(
        [
            [1 - 2 * y * y - 2 * z * z, 2 * x * y - 2 * w * z, 2 * z * x + 2 * w * y],
            [2 * x * y + 2 * w * z, 1 - 2 * x * x - 2 * z * z, 2 * y * z - 2 * w * x],
            [2 * z * x - 2 * w * y, 2 * y * z + 2 * w * x, 1 - 2 * x * x - 2 * y * y],
        ]
    )
