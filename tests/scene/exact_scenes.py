"""Scenes with true cameras and depth: photos on disk of any sizes and orientations, of a corner of three planes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

import geomtx
from geomtx.scene.observations import ObservedPoints
from geomtx.types import Cameras, DenseMap, Predictions

# Height and width as they are stored, and EXIF orientation, of the photos of each kind of scene; and the mode of views.
KINDS: dict[str, tuple[list[tuple[int, int, int]], str]] = {
    "landscape": ([(60, 90, 1)] * 4, "fit"),
    "portrait": ([(90, 60, 1)] * 4, "fit"),
    "mixed": ([(60, 90, 1), (90, 60, 1), (150, 120, 1), (60, 64, 1)], "fit"),
    "padded": ([(60, 90, 1)] * 4, "pad"),
    "cropped": ([(90, 60, 1)] * 4, "crop"),
    "rotated": ([(60, 90, 6), (60, 90, 3), (90, 60, 8), (60, 90, 1)], "fit"),
    "large": ([(240, 320, 1)] * 3, "fit"),
}
_PLANES = ((0.0, 0.0, 1.0, 4.0), (0.0, 1.0, 0.0, 1.2), (1.0, 0.0, 0.3, 2.5))  # n · x = d
_SIZE = 70


class Exact(NamedTuple):
    """A scene whose predictions are the truth, and the folder of its photos."""

    scene: geomtx.Scene
    photos: Path


def exact_scene(folder: Path, kind: str = "landscape") -> Exact:
    """Write photos and return their scene."""
    sizes, mode = KINDS[kind]
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    for index, (height, width, orientation) in enumerate(sizes):
        noise = torch.randint(0, 255, (height, width, 3), generator=generator, dtype=torch.uint8)
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(noise.numpy()).save(folder / f"photo_{index}.jpg", exif=exif)
    views = geomtx.load_views(folder, mode=mode, size=_SIZE)
    return Exact(true_scene(views), folder)


def true_scene(views: geomtx.Views) -> geomtx.Scene:
    """The scene of views, whose cameras look at the corner from places on a line."""
    poses = torch.stack([_pose(index, len(views)) for index in range(len(views))])
    intrinsics = torch.stack(
        [
            transform.intrinsics_from_original(_intrinsics(transform.original_hw, index))
            for index, transform in enumerate(views.transforms)
        ]
    )
    poses, intrinsics = poses.float(), intrinsics.float()  # what a scene holds; the depth is exact for that
    depth = torch.stack(
        [_depth(pose, k, views.image_hw) for pose, k in zip(poses.double(), intrinsics.double(), strict=True)]
    )
    return geomtx.Scene(
        names=views.names,
        transforms=views.transforms,
        images=(views.images * 255).round().to(torch.uint8),
        masks=views.masks,
        predictions=Predictions(
            cameras=Cameras(poses, intrinsics), depth=DenseMap(depth.float(), 1 + 1 / depth.float())
        ),
        paths=views.paths,
    )


def misses(observed: ObservedPoints, scene: geomtx.Scene) -> Tensor:
    """Reprojection error of each observation in original pixels, (K,), written anew."""
    assert scene.predictions.cameras is not None
    poses, model_k = (each.double() for each in scene.predictions.cameras)
    pairs = zip(scene.transforms, model_k, strict=True)
    k = torch.stack([transform.intrinsics_to_original(each) for transform, each in pairs])[observed.view]
    pose = poses[observed.view]
    local = (pose[:, :, :3] @ observed.xyz[observed.point, :, None])[..., 0] + pose[:, :, 3]
    assert (local[:, 2] > 0).all()
    pixels = (k @ (local / local[:, 2:])[..., None])[:, :2, 0]
    return (pixels - observed.coords_px).norm(dim=-1)


def _pose(index: int, total: int) -> Tensor:
    angle = 0.1 * (index - (total - 1) / 2)
    cos, sin = math.cos(angle), math.sin(angle)
    rotation = torch.tensor([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]], dtype=torch.float64)
    center = torch.tensor([0.4 * index, -0.1 * index, 0.05 * index], dtype=torch.float64)
    return torch.cat([rotation, -(rotation @ center)[:, None]], dim=-1)


def _intrinsics(hw: Sequence[int], index: int) -> Tensor:
    focal = 0.8 * max(hw)
    center = ((hw[1] - 1) / 2 + 0.3 * index, (hw[0] - 1) / 2 - 0.2 * index)
    return torch.tensor([[focal, 0, center[0]], [0, 1.01 * focal, center[1]], [0, 0, 1]], dtype=torch.float64)


def _depth(pose: Tensor, k: Tensor, hw: tuple[int, int]) -> Tensor:
    y, x = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in hw), indexing="ij")
    rays = torch.stack([x, y, torch.ones_like(x)], dim=-1) @ k.inverse().T
    center = -pose[:, :3].T @ pose[:, 3]
    depths = []
    for *normal, distance in _PLANES:
        n = torch.tensor(normal, dtype=torch.float64)
        depth = (distance - n @ center) / (rays @ pose[:, :3] @ n)
        depths.append(depth.where(depth > 0, torch.inf))
    return torch.stack(depths).amin(0)
