"""Models of COLMAP, written as its documentation describes them, and a rendered room as a folder of it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from geomtx.data import render_scenes
from geomtx.geometry import matrix_to_quat, project
from geomtx.types import SceneBatch

MODEL_IDS = {"SIMPLE_PINHOLE": 0, "PINHOLE": 1, "SIMPLE_RADIAL": 2, "RADIAL": 3, "OPENCV": 4, "OPENCV_FISHEYE": 5}


class Picture(NamedTuple):
    name: str
    camera: int
    quat_wxyz: list[float]
    translation: list[float]
    keypoints: list[tuple[float, float, int]]  # x, y, number of the point or -1


class Model(NamedTuple):
    cameras: dict[int, tuple[str, int, int, list[float]]]  # model, width, height, parameters
    pictures: list[Picture]
    points: dict[int, list[float]]


def write_text(folder: Path, model: Model) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["# Camera list", "# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]"]
    rows += [f"{i} {kind} {w} {h} {join(params)}" for i, (kind, w, h, params) in model.cameras.items()]
    (folder / "cameras.txt").write_text("\n".join(rows) + "\n")
    rows = ["# Image list with two lines of data per image:"]
    for index, picture in enumerate(model.pictures):
        pose = join([*picture.quat_wxyz, *picture.translation])
        rows.append(f"{index + 1} {pose} {picture.camera} {picture.name}")
        rows.append(" ".join(f"{x!r} {y!r} {point}" for x, y, point in picture.keypoints))
    (folder / "images.txt").write_text("\n".join(rows) + "\n")
    rows = ["# 3D point list"]
    for index, place in model.points.items():
        track = " ".join(f"{i + 1} {k}" for i, k in track_of(model, index))
        rows.append(f"{index} {join(place)} 10 20 30 0.5 {track}")
    (folder / "points3D.txt").write_text("\n".join(rows) + "\n")


def write_binary(folder: Path, model: Model) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    data = struct.pack("<Q", len(model.cameras))
    for index, (kind, width, height, params) in model.cameras.items():
        data += struct.pack(f"<IiQQ{len(params)}d", index, MODEL_IDS[kind], width, height, *params)
    (folder / "cameras.bin").write_bytes(data)
    data = struct.pack("<Q", len(model.pictures))
    for index, picture in enumerate(model.pictures):
        data += struct.pack("<I7dI", index + 1, *picture.quat_wxyz, *picture.translation, picture.camera)
        data += picture.name.encode() + b"\0" + struct.pack("<Q", len(picture.keypoints))
        data += b"".join(struct.pack("<ddq", *keypoint) for keypoint in picture.keypoints)
    (folder / "images.bin").write_bytes(data)
    data = struct.pack("<Q", len(model.points))
    for index, place in model.points.items():
        track = track_of(model, index)
        data += struct.pack("<Q3d3BdQ", index, *place, 10, 20, 30, 0.5, len(track))
        data += b"".join(struct.pack("<II", i + 1, k) for i, k in track)
    (folder / "points3D.bin").write_bytes(data)


def join(values: list[float]) -> str:
    return " ".join(repr(float(value)) for value in values)


def track_of(model: Model, point: int) -> list[tuple[int, int]]:
    pairs = [(i, k) for i, picture in enumerate(model.pictures) for k in range(len(picture.keypoints))]
    return [(i, k) for i, k in pairs if model.pictures[i].keypoints[k][2] == point]


def room_model(
    num_views: int = 5, image_hw: tuple[int, int] = (48, 64), per_view: int = 40
) -> tuple[SceneBatch, Model, np.ndarray]:
    """A rendered room, its model of points at pixels of each view, and the pixels (views, per_view, 2)."""
    batch = render_scenes([7], num_views, image_hw, dtype=torch.float64)
    height, width = image_hw
    rng = np.random.default_rng(3)
    # Apart from each other: no two of a view at one pixel.
    flat = np.stack([rng.choice(height * width, per_view, replace=False) for _ in range(num_views)])
    pixels = np.stack([flat % width, flat // width], axis=-1)
    points, keypoints = {}, [[(1.0, 1.0, -1)] for _ in range(num_views)]
    for view in range(num_views):
        world = batch.points[0, view].flatten(0, 1)[flat[view]]
        coords, depth = project(
            world.expand(num_views, -1, -1), batch.cameras.intrinsics[0], batch.cameras.cam_from_world[0]
        )
        for k in range(per_view):
            number = 1000 + 7 * (view * per_view + k)
            points[number] = world[k].tolist()
            for other in range(num_views):
                x, y = coords[other, k].tolist()
                column, row = round(x), round(y)
                if not (0 <= column < width and 0 <= row < height and depth[other, k] > 0):
                    continue
                if other == view or abs(batch.depth[0, other, row, column] / depth[other, k] - 1) < 0.01:
                    keypoints[other].append((x + 0.5, y + 0.5, number))
    k = batch.cameras.intrinsics[0, 0]
    params = [k[0, 0].item(), k[1, 1].item(), k[0, 2].item() + 0.5, k[1, 2].item() + 0.5]
    quats = matrix_to_quat(batch.cameras.cam_from_world[0, :, :, :3]).roll(1, -1).tolist()
    shifts = batch.cameras.cam_from_world[0, :, :, 3].tolist()
    pictures = [Picture(f"{i}.png", 4, quats[i], shifts[i], keypoints[i]) for i in range(num_views)]
    return batch, Model({4: ("PINHOLE", width, height, params)}, pictures, points), pixels


def save_images(folder: Path, batch: SceneBatch) -> None:
    (folder / "images").mkdir(parents=True)
    for index, image in enumerate(batch.images[0]):
        pixels = (image.movedim(0, -1) * 255).round().byte().numpy()
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
