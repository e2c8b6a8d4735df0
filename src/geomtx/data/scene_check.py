"""Whether what a dataset gave is one rigid scene: finite, with real cameras, depth that agrees between the views."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.checks import check_positive, check_shape
from geomtx.geometry.projection import project, unproject
from geomtx.types import Cameras, Float, SceneBatch

__all__ = ["BatchCheck", "check_batch", "check_cameras", "check_values"]

_ROTATION_TOLERANCE = 1e-3


class BatchCheck(NamedTuple):
    """What `check_batch` found.

    Attributes:
        agreement: (B,), of the pixels that fall onto a pixel with depth in another view, the share whose depths agree;
            NaN if there are none. What is hidden in the other view disagrees, so a good scene has less than 1; a wrong
            convention of cameras or depth has next to none.
        overlap: (B,), share of the pixels with depth that fall onto a pixel with depth in another view.
    """

    agreement: Float[Tensor, " b"]
    overlap: Float[Tensor, " b"]


def check_batch(batch: SceneBatch, *, tolerance: float = 0.05, stride: int = 4) -> BatchCheck:
    """Check a batch, then take each view's depth into all others and compare.

    Args:
        batch: With cameras and depth.
        tolerance: Relative difference of depth that still agrees.
        stride: Every how many rows and columns a pixel is taken.

    Returns:
        Shares a scene, float32 or better.

    Raises:
        ValueError: For what `check_values` refuses, a batch without depth or cameras, or options out of range.
    """
    check_positive("tolerance", tolerance)
    check_positive("stride", stride)
    if batch.cameras is None or batch.depth is None:
        raise ValueError(f"batch must have cameras and depth, got {'no depth' if batch.cameras else 'no cameras'}")
    check_values(batch)
    known = batch.depth > 0 if batch.mask is None else batch.mask
    known = known if batch.camera_mask is None else known & batch.camera_mask[..., None, None]
    depth = torch.where(known, batch.depth, 0).to(torch.promote_types(batch.depth.dtype, torch.float32))
    cameras = Cameras(*(part.to(depth.dtype) for part in batch.cameras))
    counts = [_compare(depth, known, cameras, view, tolerance, stride) for view in range(depth.shape[1])]
    agree, met, taken = torch.stack(counts).sum(0).unbind(-1)
    return BatchCheck(agree / met, met / taken.clamp(min=1))


def check_values(batch: SceneBatch) -> None:
    """Refuse what would turn into a NaN in training.

    Values that masks hide may be anything.

    Raises:
        ValueError: For images outside [0, 1] or NaN, what `check_cameras` refuses, depth or points that are not finite
            or depth that is not positive where known, or a scene without a known pixel.
    """
    check_shape("images", batch.images, ("B", "S", 3, "H", "W"))
    if not ((batch.images >= 0) & (batch.images <= 1)).all():
        raise ValueError("images must be in [0, 1], got values outside or NaN")
    if batch.cameras is not None:
        check_cameras(batch.cameras, batch.camera_mask)
    known = batch.images.new_ones(1, dtype=torch.bool) if batch.mask is None else batch.mask
    if batch.mask is not None and not batch.mask.flatten(1).any(-1).all():
        empty = (~batch.mask.flatten(1).any(-1)).nonzero()[0, 0]
        raise ValueError(f"mask must have a known pixel in every scene, got none in scene {int(empty)}")
    # A pixel without depth is 0 where no mask says so.
    depth_ok = None if batch.depth is None else (batch.depth > 0 if batch.mask is not None else batch.depth >= 0)
    if depth_ok is not None and batch.depth is not None and not ((depth_ok & batch.depth.isfinite()) | ~known).all():
        raise ValueError("depth must be finite and positive where it is known, got other values")
    if batch.points is not None and not (batch.points.isfinite().all(-1) | ~known).all():
        raise ValueError("points must be finite where they are known, got NaN or infinity")


def check_cameras(cameras: Cameras, mask: Tensor | None = None) -> None:
    """Refuse what is no camera.

    Args:
        cameras: (..., 3, 4) and (..., 3, 3).
        mask: (...) bool, True = the camera counts; None = all do.

    Raises:
        ValueError: For values that are not finite, a matrix that is over 0.001 away from a rotation, reflections
            included, or a focal length that is not positive.
    """
    cam_from_world, intrinsics = cameras
    if mask is not None:
        cam_from_world, intrinsics = cam_from_world[mask], intrinsics[mask]
    if not cam_from_world.isfinite().all():
        raise ValueError("cam_from_world must be finite, got NaN or infinity")
    if not intrinsics.isfinite().all():
        raise ValueError("intrinsics must be finite, got NaN or infinity")
    rotation = cam_from_world[..., :3].to(torch.promote_types(cam_from_world.dtype, torch.float32))
    error = (rotation @ rotation.transpose(-1, -2) - torch.eye(3).to(rotation)).abs().amax((-1, -2))
    error = torch.where(torch.linalg.det(rotation) > 0, error, torch.inf)
    if not (error <= _ROTATION_TOLERANCE).all():
        number = int(error.flatten().argmax())
        raise ValueError(f"cam_from_world must have rotations, got another matrix for camera {number}")
    if not ((intrinsics[..., 0, 0] > 0) & (intrinsics[..., 1, 1] > 0)).all():
        raise ValueError("intrinsics must have positive focal lengths, got others")


def _compare(
    depth: Tensor, known: Tensor, cameras: Cameras, view: int, tolerance: float, stride: int
) -> Float[Tensor, "b 3"]:
    """Of the pixels of one view, in all others: how many agree, meet a pixel with depth, and were taken."""
    height, width = depth.shape[-2:]
    points = unproject(depth[:, view], cameras.intrinsics[:, view], cameras.cam_from_world[:, view])
    taken = known[:, view, ::stride, ::stride].flatten(1)
    points = points[:, ::stride, ::stride].flatten(1, 2)
    coords_px, z = project(points[:, None], cameras.intrinsics, cameras.cam_from_world)
    x, y = coords_px.round().unbind(-1)
    inside = (z > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height) & taken[:, None]
    index = torch.where(inside, y * width + x, 0).long()
    there = depth.flatten(2).gather(-1, index)
    met = inside & known.flatten(2).gather(-1, index)
    met[:, view] = False
    agree = met & ((z - there).abs() < tolerance * there)
    others = depth.shape[1] - 1
    return torch.stack([agree.sum((1, 2)), met.sum((1, 2)), taken.sum(1) * others], dim=-1).to(depth.dtype)
