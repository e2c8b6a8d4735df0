"""Scenes whose depth is known in closed form, and dataset trees of them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from geomtx.data import Frame
from geomtx.types import Cameras, SceneBatch

PLANE_Z = 4.0


def plane_cameras(translations: list[tuple[float, float, float]], focal: float, image_hw: tuple[int, int]) -> Cameras:
    """Cameras (1, S, …) that look along z, float64."""
    poses = torch.eye(3, 4, dtype=torch.float64).repeat(len(translations), 1, 1)
    poses[:, :, 3] = torch.tensor(translations, dtype=torch.float64)
    intrinsics = torch.tensor(
        [[focal, 0, image_hw[1] / 2], [0, focal, image_hw[0] / 2], [0, 0, 1]], dtype=torch.float64
    )
    return Cameras(poses[None], intrinsics.repeat(1, len(translations), 1, 1))


def plane_depth(cameras: Cameras, image_hw: tuple[int, int]) -> Tensor:
    """Of the plane z = 4 of the world, seen by cameras of any rotation; (…, H, W)."""
    rotation, translation = cameras.cam_from_world[..., :3], cameras.cam_from_world[..., 3:]
    normal = rotation[..., 2:]  # of the plane, in the camera
    offset = PLANE_Z + (normal * translation).sum((-1, -2))
    y, x = torch.meshgrid(*(torch.arange(size, dtype=normal.dtype) for size in image_hw), indexing="ij")
    pixels = torch.stack([x, y, torch.ones_like(x)], dim=-1)
    rays = pixels.flatten(0, 1) @ cameras.intrinsics.inverse().transpose(-1, -2)
    return (offset[..., None] / (rays @ normal)[..., 0]).unflatten(-1, image_hw)


def plane_scene(num_views: int = 3, image_hw: tuple[int, int] = (32, 40)) -> SceneBatch:
    translations = [(-0.25 * view, 0.1 * view, 0.0) for view in range(num_views)]
    cameras = plane_cameras(translations, 40.0, image_hw)
    depth = plane_depth(cameras, image_hw)
    images = torch.rand(1, num_views, 3, *image_hw, dtype=torch.float64)
    return SceneBatch(images, cameras, None, depth, None, torch.ones_like(depth, dtype=torch.bool))


def plane_frame(
    rng: np.random.Generator,
    image_hw: tuple[int, int] = (60, 80),
    *,
    center: tuple[float, float] | None = None,
) -> Frame:
    """A frame of the plane from a camera turned and moved at random, with tracks that lie on pixels."""
    axis = torch.from_numpy(rng.uniform(-0.2, 0.2, 3))
    x, y, z = axis.tolist()
    rotation = torch.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64))
    pose = torch.cat([rotation, torch.from_numpy(rng.uniform(-0.3, 0.3, (3, 1)))], dim=-1)
    c_x, c_y = center or (image_hw[1] / 2 + rng.uniform(-6, 6), image_hw[0] / 2 + rng.uniform(-6, 6))
    intrinsics = torch.tensor([[70.0, 0, c_x], [0, 75.0, c_y], [0, 0, 1]], dtype=torch.float64)
    depth = plane_depth(Cameras(pose, intrinsics), image_hw).float().numpy()
    image = rng.integers(0, 256, (*image_hw, 3), dtype=np.uint8)
    mask = rng.random(image_hw) < 0.9
    tracks = np.stack([rng.integers(0, image_hw[1], 30), rng.integers(0, image_hw[0], 30)], axis=-1).astype(float)
    return Frame(image, pose.numpy(), intrinsics.numpy(), depth, mask, tracks)


# Trees. Every one has a plane photographed by cameras that move along it.


def _views(num_views: int, image_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    cameras = plane_cameras([(-0.05 * view, 0.02 * view, 0.0) for view in range(num_views)], 60.0, image_hw)
    return cameras.cam_from_world[0].numpy(), cameras.intrinsics[0].numpy(), plane_depth(cameras, image_hw)[0].numpy()


def save_image(path: Path, image_hw: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[: image_hw[0], : image_hw[1]]
    Image.fromarray(np.stack([x * 3, y * 3, x + y], axis=-1).astype(np.uint8)).save(path)


def save_png16(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint16)).save(path)


def write_unified(root: Path, name: str, *, num_views: int = 4, image_hw: tuple[int, int] = (48, 60)) -> Path:
    poses, intrinsics, depth = _views(num_views, image_hw)
    folder = root / name
    (folder / "depths").mkdir(parents=True)
    names = [f"{view:03d}.png" for view in range(num_views)]
    for view, image_name in enumerate(names):
        save_image(folder / "images" / image_name, image_hw)
        np.save(folder / "depths" / f"{view:03d}.npy", depth[view].astype(np.float32))
    (folder / "image_names.json").write_text(json.dumps(names))
    np.save(folder / "cam_from_worlds.npy", poses)
    np.save(folder / "intrinsics.npy", intrinsics)
    return folder


def write_co3d(root: Path, category: str, *, num_views: int = 4, image_hw: tuple[int, int] = (48, 60)) -> None:
    """Sequences "one" with `num_views` frames and "short" with one; the left 10 columns are masked."""
    sequences = {}
    for sequence, count in (("one", num_views), ("short", 1)):
        poses, intrinsics, depth = _views(count, image_hw)
        sequences[sequence] = []
        for view in range(count):
            name = f"{category}/{sequence}/images/frame{view:06d}.jpg"
            save_image(root / name, image_hw)
            bits = depth[view].astype(np.float16)
            bits[0, 20] = np.inf
            save_png16(root / f"{category}/{sequence}/depths/frame{view:06d}.jpg.geometric.png", bits.view(np.uint16))
            mask = np.full(image_hw, 255, dtype=np.uint8)
            mask[:, :10] = 0
            path = root / f"{category}/{sequence}/depth_masks/frame{view:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)
            frame = {"filepath": name, "extri": poses[view].tolist(), "intri": intrinsics[view].tolist()}
            sequences[sequence].append(frame)
    write_annotations(root / f"{category}_train.jgz", sequences)


def write_annotations(path: Path, sequences: object) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        json.dump(sequences, file)


def write_virtual_kitti(root: Path, *, num_views: int = 4, image_hw: tuple[int, int] = (48, 60)) -> Path:
    """Two cameras; the first frame has a pixel of 90 m."""
    poses, intrinsics, depth = _views(num_views, image_hw)
    folder = root / "Scene01" / "fog"
    extrinsic = ["frame cameraID r1,1 …"]
    intrinsic = ["frame cameraID K[0,0] K[1,1] K[0,2] K[1,2]"]
    for view in range(num_views):
        for camera in (0, 1):
            save_image(folder / f"frames/rgb/Camera_{camera}/rgb_{view:05d}.jpg", image_hw)
            centimetres = np.round(depth[view] * 100)
            if view == 0:
                centimetres[30, 30] = 9000
            save_png16(folder / f"frames/depth/Camera_{camera}/depth_{view:05d}.png", centimetres)
            pose = np.vstack([poses[view], [0, 0, 0, 1]])
            pose[0, 3] -= 0.5 * camera
            extrinsic.append(" ".join(map(str, [view, camera, *pose.flatten()])))
            k = intrinsics[view]
            intrinsic.append(" ".join(map(str, [view, camera, k[0, 0], k[1, 1], k[0, 2], k[1, 2]])))
    (folder / "extrinsic.txt").write_text("\n".join(extrinsic))
    (folder / "intrinsic.txt").write_text("\n".join(intrinsic) + "\n")
    return folder
