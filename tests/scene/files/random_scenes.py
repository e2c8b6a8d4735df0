"""Scenes drawn at random, sound and broken ones, for whatever writes scenes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import geomtx
from geomtx.types import Cameras, DenseMap, Predictions, Tracks
from scene.exact_scenes import true_scene

_NAMES = (
    "a b.png", "b.png", "c.png", "Bäume.jpg", "写真.png", "IMG_1.JPG", "IMG_10.JPG", "x#%.png", "it's (2).jpg",
)  # fmt: skip
_TEXTS = ("", "metres", "Fuß", "two\nlines")


def random_scene(seed: int, folder: Path) -> geomtx.Scene:
    """Write photos into a folder and return a scene of them; the same for the same seed.

    Cameras and depth begin as true ones. Then parts of them may be NaN, infinite, negative or missing, masks empty,
    photos gone; there may be tracks and points of a head.
    """
    rng = np.random.default_rng(seed)
    views = _load_views(rng, folder)
    scene = true_scene(views)
    cameras, _, depth, *_ = scene.predictions
    assert cameras is not None
    assert depth is not None
    points, tracks, queries = None, None, None
    if rng.random() < 0.3:
        points = _break_map(rng, scene.point_map())
    if rng.random() < 0.3:
        queries, tracks = _draw_tracks(rng, scene)
    depth = None if rng.random() < 0.1 else _break_map(rng, depth)
    cameras = None if rng.random() < 0.1 else _break_cameras(rng, cameras)
    masks = scene.masks
    if rng.random() < 0.3:
        masks = masks & torch.from_numpy(rng.random(masks.shape) < rng.choice([0.0, 0.05, 0.9]))
    if rng.random() < 0.1:
        for path in list(scene.paths)[: int(rng.integers(1, len(scene) + 1))]:
            assert path is not None
            path.unlink()
    return dataclasses.replace(
        scene,
        masks=masks,
        predictions=Predictions(cameras, None, depth, points, tracks),
        query_points=queries,
        units=str(rng.choice(_TEXTS)) or "up to scale",
        notice=str(rng.choice(_TEXTS)),
        paths=() if rng.random() < 0.05 else scene.paths,
    )


def _load_views(rng: np.random.Generator, folder: Path) -> geomtx.Views:
    folder.mkdir(parents=True)
    paths = []
    for name in rng.choice(_NAMES, int(rng.integers(1, 5)), replace=False):
        height, width = rng.integers(20, 40, 2)
        exif = Image.Exif()
        exif[0x0112] = int(rng.choice([1, 1, 1, 3, 6, 8]))
        colors = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(colors).save(folder / str(name), exif=exif)
        paths.append(folder / str(name))
    mode = str(rng.choice(["fit", "crop", "pad", "square"]))
    return geomtx.load_views(paths, mode=mode, size=14 * int(rng.integers(1, 4)))


def _break_map(rng: np.random.Generator, maps: DenseMap) -> DenseMap:
    value, confidence = maps.value.float().clone(), maps.confidence.float().clone()
    if rng.random() < 0.4:
        broken = torch.from_numpy(rng.random(confidence.shape) < rng.choice([0.02, 0.5, 1.0]))
        value[broken] = float(rng.choice([np.nan, np.inf, 0.0, -1.0, 1e30]))
    if rng.random() < 0.3:
        broken = torch.from_numpy(rng.random(confidence.shape) < rng.choice([0.1, 1.0]))
        confidence[broken] = float(rng.choice([np.nan, np.inf, 0.0]))
    return DenseMap(value, confidence)


def _break_cameras(rng: np.random.Generator, cameras: Cameras) -> Cameras:
    poses, intrinsics = (part.clone() for part in cameras)
    if rng.random() < 0.15:
        poses[int(rng.integers(len(poses)))] = float(rng.choice([np.nan, np.inf]))
    if rng.random() < 0.1:
        intrinsics[int(rng.integers(len(intrinsics)))] = np.nan
    if rng.random() < 0.1:
        poses[..., 3] = 0
    return Cameras(poses, intrinsics)


def _draw_tracks(rng: np.random.Generator, scene: geomtx.Scene) -> tuple[Tensor, Tracks]:
    num_views, num_tracks = len(scene), int(rng.integers(1, 20))
    views = rng.integers(0, num_views, num_tracks)
    sizes = np.array([scene.transforms[view].original_hw for view in views])
    xy = rng.random((num_tracks, 2)) * (sizes[:, ::-1] - 1)
    height, width = scene.images.shape[-2:]
    coords = torch.from_numpy(rng.random((num_views, num_tracks, 2)) * (width, height)).float()
    if rng.random() < 0.2:
        coords[int(rng.integers(num_views))] = torch.nan
    visibility, confidence = torch.from_numpy(rng.random((2, num_views, num_tracks))).float()
    queries = torch.from_numpy(np.concatenate([views[:, None], xy], axis=1)).float()
    return queries, Tracks(coords, visibility, confidence)
