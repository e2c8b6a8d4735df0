"""Rendered scenes as photo files, and their ground truth in pixels of the model's images."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from geomtx.checks import check_shape
from geomtx.files import save_picture, staged_folder, user_path
from geomtx.types import Cameras, SceneBatch, TrackLabels
from geomtx.views import Views
from geomtx.views.transform import lies_inside

__all__ = ["save_photos", "truth_in_views"]


def save_photos(images: Tensor, folder: str | os.PathLike[str], *, overwrite: bool = False) -> list[Path]:
    """Write pictures as `view_0.png`, `view_1.png`, …, either all or none.

    Args:
        images: Pictures (S, 3, H, W) in [0, 1].
        folder: Folder, which is created if it does not exist.
        overwrite: Whether files of these names that geomtx did not write may be replaced; defaults to False.

    Returns:
        The paths, in order.

    Raises:
        ValueError: For another shape.
        FileExistsError: If there are such files and `overwrite` is False.
        OSError: If the folder cannot be written.
    """
    check_shape("images", images, ("S", 3, "H", "W"))
    folder = user_path(folder)
    pixels = (images.clamp(0, 1) * 255).round().to("cpu", torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    names = [f"view_{index}.png" for index in range(len(pixels))]
    with staged_folder(folder, names, overwrite=overwrite) as stage:
        for name, picture in zip(names, pixels, strict=True):
            save_picture(Image.fromarray(picture), stage / name, "photo")
    return [folder / name for name in names]


def truth_in_views(truth: SceneBatch, views: Views) -> SceneBatch:
    """Map the ground truth of photos to the pixels of the model's images.

    Intrinsics and tracks are mapped exactly. Depth is that of the photo's pixel nearest to the centre of the model's
    pixel, because a mean between two surfaces is not a depth; it is exact if photos are larger by an odd factor.

    Args:
        truth: One scene in pixels of the photos, B = 1, with pictures of the photos' size.
        views: Views of the same photos in the same order, loaded in any mode and size.

    Returns:
        `SceneBatch` on the CPU with the images of `views`, in the world frame and unit of `truth`. Padding and masked
        pixels are unknown, points are None, and tracks are visible only inside of the model's image.

    Raises:
        ValueError: For more than one scene, another number of views, or photos of another size.
    """
    sizes = {transform.original_hw for transform in views.transforms}
    for height, width in sizes:
        check_shape("truth.images", truth.images, (1, len(views), 3, height, width))

    def sample(maps: Tensor) -> Tensor:
        pairs = zip(views.transforms, maps[0].cpu(), strict=True)
        return torch.stack([transform.depth_from_original(each, mode="nearest") for transform, each in pairs])[None]

    mask = views.masks[None].cpu()
    if truth.mask is not None:
        mask = mask & sample(truth.mask)
    cameras, tracks = truth.cameras, truth.tracks
    if cameras is not None:
        cameras = Cameras(cameras.cam_from_world.cpu(), views.intrinsics_from_original(cameras.intrinsics.cpu()))
    if tracks is not None:
        coords = views.tracks_from_original(tracks.coords_px.cpu())
        tracks = TrackLabels(coords, tracks.visible.cpu() & lies_inside(coords, views.image_hw), tracks.valid.cpu())
    depth = None if truth.depth is None else sample(truth.depth)
    camera_mask = None if truth.camera_mask is None else truth.camera_mask.cpu()
    return SceneBatch(views.images[None].cpu(), cameras, camera_mask, depth, None, mask, tracks)
