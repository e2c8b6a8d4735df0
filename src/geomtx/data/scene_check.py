"""Checks that a scene is valid: finite values, valid cameras, and depth that agrees between the views."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.checks import check_positive, check_shape
from geomtx.geometry.projection import project, unproject
from geomtx.geometry.scene_frame import known_pixels
from geomtx.types import Cameras, Float, SceneBatch, show_shapes

__all__ = [
    "BatchCheck",
    "SceneError",
    "check_batch",
    "check_cameras",
    "check_values",
]


class SceneError(ValueError):
    """Raised for a scene of a dataset that cannot be used.

    The message is one line that names the scene or the file, the rule and what was found. `SceneMixture` counts these
    errors and draws another scene.
    """


_ROTATION_TOLERANCE = 1e-3
_SKEW_TOLERANCE = 1e-3  # as a share of the focal length
_LAST_ROW_TOLERANCE = 1e-6


@show_shapes
class BatchCheck(NamedTuple):
    """Result of `check_batch`.

    Attributes:
        agreement: Share of agreeing depths among the pixels that project onto a pixel with depth in another view, (B,);
            NaN if there are none. Occluded pixels disagree, so that a valid scene has less than 1; with a wrong
            convention of cameras or depth the share is near 0.
        overlap: Share of the pixels with depth that project onto a pixel with depth in another view, (B,).
    """

    agreement: Float[Tensor, " b"]
    overlap: Float[Tensor, " b"]


def check_batch(batch: SceneBatch, *, tolerance: float = 0.05, stride: int = 4) -> BatchCheck:
    """Check the values of a batch, then compare the depth of each view with that of all other views.

    Args:
        batch: Batch with cameras and depth.
        tolerance: Largest relative difference of depths that agree; defaults to 0.05.
        stride: Distance of the compared pixels in rows and columns; defaults to 4.

    Returns:
        Shares of each scene, float32 or better.

    Raises:
        ValueError: If `check_values` refuses the batch, it lacks depth or cameras, or an option is out of range.
    """
    check_positive("tolerance", tolerance)
    check_positive("stride", stride)
    if batch.cameras is None or batch.depth is None:
        raise ValueError(f"batch must have cameras and depth, got {'no depth' if batch.cameras else 'no cameras'}")
    check_values(batch)
    known = known_pixels(batch)
    known = known if batch.camera_mask is None else known & batch.camera_mask[..., None, None]
    depth = torch.where(known, batch.depth, 0).to(torch.promote_types(batch.depth.dtype, torch.float32))
    cameras = Cameras(*(part.to(depth.dtype) for part in batch.cameras))
    counts = [_compare(depth, known, cameras, view, tolerance, stride) for view in range(depth.shape[1])]
    agree, met, taken = torch.stack(counts).sum(0).unbind(-1)
    return BatchCheck(agree / met, met / taken.clamp(min=1))


def check_values(batch: SceneBatch) -> None:
    """Require values that do not lead to NaN in training.

    Masked values may be anything; without a mask, depth 0 is unknown.

    Raises:
        ValueError: If images are not in [0, 1], `check_cameras` refuses the cameras, known depth or points are not
            finite, known depth is not positive, or a scene has no known pixel.
    """
    check_shape("images", batch.images, ("B", "S", 3, "H", "W"))
    if not ((batch.images >= 0) & (batch.images <= 1)).all():
        raise ValueError("images must be in [0, 1], got values outside or NaN")
    if batch.cameras is not None:
        check_cameras(batch.cameras, batch.camera_mask)
    if batch.depth is not None and batch.mask is None and not (batch.depth.isfinite() & (batch.depth >= 0)).all():
        raise ValueError("depth must be finite and positive, or 0 for not known, got other values and no mask")
    known = known_pixels(batch)
    empty = ~known.flatten(1).any(-1)
    if empty.any():
        name = "depth" if batch.mask is None else "mask"
        raise ValueError(f"{name} must have a known pixel in every scene, got none in scene {int(empty.nonzero()[0])}")
    if batch.depth is not None and not ((batch.depth.isfinite() & (batch.depth > 0)) | ~known).all():
        raise ValueError("depth must be finite and positive where it is known, got other values")
    if batch.points is not None and not (batch.points.isfinite().all(-1) | ~known).all():
        raise ValueError("points must be finite where they are known, got NaN or infinity")


def check_cameras(cameras: Cameras, mask: Tensor | None = None) -> None:
    """Require valid cameras.

    Args:
        cameras: Poses (..., 3, 4) and intrinsics (..., 3, 3).
        mask: (...) bool, True for cameras to check; defaults to all.

    Raises:
        ValueError: If a value is not finite, a matrix differs from a rotation by over 0.001 (or is a reflection), a
            focal length is not positive, the skew exceeds 0.001 focal lengths (fields of view cannot express it), or
            the last row of the intrinsics is not 0, 0, 1.
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
    _check_pinhole(intrinsics.reshape(-1, 3, 3).to(torch.promote_types(intrinsics.dtype, torch.float32)))


def _check_pinhole(intrinsics: Float[Tensor, "n 3 3"]) -> None:
    for number, (row, below, last) in enumerate(intrinsics.tolist()):
        if max(abs(value - wanted) for value, wanted in zip(last, (0.0, 0.0, 1.0), strict=True)) > _LAST_ROW_TOLERANCE:
            got = ", ".join(f"{value:g}" for value in last)
            raise ValueError(f"intrinsics must have the last row 0, 0, 1, got {got} for camera {number}")
        skew = max(row[1], below[0], key=abs)
        if abs(skew) > _SKEW_TOLERANCE * min(row[0], below[1]):
            raise ValueError(f"intrinsics must have no skew, got {skew:g} for camera {number}")


def _compare(
    depth: Tensor, known: Tensor, cameras: Cameras, view: int, tolerance: float, stride: int
) -> Float[Tensor, "b 3"]:
    """Count pixels of one view in all others: those that agree, that meet a pixel with depth, and all."""
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
