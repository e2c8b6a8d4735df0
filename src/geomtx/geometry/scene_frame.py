"""Scenes and target cameras in the coordinate frame and the unit of length that a model predicts in (VGGT, section
3.3).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.checks import check_mask, check_shape
from geomtx.geometry.camera import compose_rigid, invert_rigid, transform_points
from geomtx.geometry.projection import unproject
from geomtx.layers.precision import float32_island
from geomtx.types import Bool, Cameras, Float, SceneBatch, show_shapes

__all__ = [
    "RelativeCameras",
    "known_pixels",
    "normalize_scene",
    "relate_cameras",
]

COUNT_MARGIN = 1e-3
"""Number that is added to the count of points by which the sum of their distances is divided, as in VGGT's training."""
SCALE_RANGE = (1e-6, 1e6)
"""Smallest and largest scale of a scene."""
REACH = 1.35
"""Scale without depth, divided by the largest distance of an input camera from the first one."""


def normalize_scene(batch: SceneBatch, *, by_points: bool = True) -> tuple[SceneBatch, Tensor]:
    """Express scenes in the frame of their first camera, with the points' mean distance from it as the unit of length.

    Depth, points and translations are divided by the scale; rotations, intrinsics, images and tracks stay as they are.
    Predictions are never normalised: the model learns this frame and this unit.

    - Where points are None, they are computed from depth and cameras.
    - A scene without a known pixel is scaled by the mean distance of its other cameras from the first; by 1 if that is
      zero too. Depth without cameras is scaled by its own mean.
    - A scene whose first camera is unknown has no frame: all its cameras and, where there are cameras, its pixels are
      masked. So are the pixels of other views of unknown camera, if points were computed from their depth.
    - Without a mask, a pixel whose depth is not finite and positive is unknown, see `known_pixels`; the returned batch
      has that mask.
    - Masked values may be NaN or infinite, influence nothing and become 0. Known values must be finite: a NaN among
      them makes its whole scene NaN.

    Args:
        batch: Scenes in any world frame and unit.
        by_points: Whether to change the unit of length too, not only the frame; defaults to True.

    Returns:
        The batch, and the scale of each scene in units of the input, (B,), within 1e-6 … 1e6; in float32 or better.
        Coordinates far from the world's origin need float64. The first camera is exactly the identity, and so is every
        masked camera.

    Raises:
        ValueError: If a shape is not that of `SceneBatch`, or a mask isn't bool.

    Source: VGGT (arXiv 2503.11651), section 3.3; the released training code.
    """
    _check_shapes(batch)
    with torch.autocast(batch.images.device.type, enabled=False):
        batch = _first_camera_as_world(_with_points(_with_mask(_at_least_float32(batch))))
        scale = _scene_scale(batch) if by_points else _ones(batch)
        return _divide(batch, scale), scale


def _check_shapes(batch: SceneBatch) -> None:
    check_shape("images", batch.images, ("B", "S", 3, "H", "W"))
    b, s, _, h, w = batch.images.shape
    if batch.cameras is not None:
        check_shape("cam_from_world", batch.cameras.cam_from_world, (b, s, 3, 4))
        check_shape("intrinsics", batch.cameras.intrinsics, (b, s, 3, 3))
    if batch.depth is not None:
        check_shape("depth", batch.depth, (b, s, h, w))
    if batch.points is not None:
        check_shape("points", batch.points, (b, s, h, w, 3))
    if batch.camera_mask is not None:
        check_mask("camera_mask", batch.camera_mask, (b, s))
    if batch.mask is not None:
        check_mask("mask", batch.mask, (b, s, h, w))


def _at_least_float32(batch: SceneBatch) -> SceneBatch:
    def widen(x: Tensor) -> Tensor:
        return x.to(torch.promote_types(x.dtype, torch.float32))

    return batch._replace(
        cameras=None if batch.cameras is None else Cameras(*map(widen, batch.cameras)),
        depth=None if batch.depth is None else widen(batch.depth),
        points=None if batch.points is None else widen(batch.points),
    )


def _camera_mask(batch: SceneBatch) -> Bool[Tensor, "b s"]:
    """Return which cameras are known, as is the first camera of their scene, (B, S) bool."""
    if batch.camera_mask is None:
        return torch.ones(batch.images.shape[:2], dtype=torch.bool, device=batch.images.device)
    return batch.camera_mask & batch.camera_mask[:, :1]


def known_pixels(batch: SceneBatch) -> Bool[Tensor, "b s h w"]:
    """Return which pixels' depth and points are known, (B, S, H, W) bool.

    They are the batch's mask; without one, the pixels whose depth is finite and positive; without depth, all pixels.

    Args:
        batch: Scenes.
    """
    if batch.mask is not None:
        return batch.mask
    if batch.depth is not None:
        return batch.depth.isfinite() & (batch.depth > 0)
    shape = (*batch.images.shape[:2], *batch.images.shape[-2:])
    return torch.ones(shape, dtype=torch.bool, device=batch.images.device)


def _with_mask(batch: SceneBatch) -> SceneBatch:
    """Return the batch with its mask of known pixels, which can't be computed after the depth is divided."""
    return batch if batch.depth is None else batch._replace(mask=known_pixels(batch))


def _with_points(batch: SceneBatch) -> SceneBatch:
    """Return the batch with the points of its depth, in the cameras' world; those of unknown cameras are masked."""
    if batch.points is not None or batch.depth is None or batch.cameras is None:
        return batch
    points = unproject(batch.depth, batch.cameras.intrinsics, batch.cameras.cam_from_world)
    if batch.camera_mask is None:
        return batch._replace(points=points)
    return batch._replace(points=points, mask=known_pixels(batch) & batch.camera_mask[..., None, None])


def _first_camera_as_world(batch: SceneBatch) -> SceneBatch:
    if batch.cameras is None:
        return batch
    known = _camera_mask(batch)
    cameras = batch.cameras.cam_from_world
    identity = torch.eye(3, 4, dtype=cameras.dtype, device=cameras.device)
    # Masked cameras are replaced before the arithmetic; the first camera is replaced after it, as R Rᵀ is the identity
    # only up to rounding.
    cameras = torch.where(known[..., None, None], cameras, identity)
    first = cameras[:, :1]
    relative = compose_rigid(cameras, invert_rigid(first).expand_as(cameras))
    moved = known & (torch.arange(known.shape[1], device=known.device) > 0)
    relative = torch.where(moved[..., None, None], relative, identity)
    points, mask = batch.points, batch.mask
    if points is not None:
        points = transform_points(first[:, 0], points.flatten(1, 3)).view_as(points)
    if batch.camera_mask is not None and (batch.depth is not None or points is not None):
        mask = known_pixels(batch) & batch.camera_mask[:, :1, None, None]
    camera_mask = None if batch.camera_mask is None else known
    cameras_now = Cameras(relative, batch.cameras.intrinsics)
    return batch._replace(cameras=cameras_now, camera_mask=camera_mask, points=points, mask=mask)


def _ones(batch: SceneBatch) -> Tensor:
    like = next((x for x in (batch.points, batch.depth) if x is not None), None)
    if like is None:
        like = batch.images if batch.cameras is None else batch.cameras.cam_from_world
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.ones(len(batch.images), dtype=dtype, device=batch.images.device)


def _scene_scale(batch: SceneBatch) -> Tensor:
    """Return the mean distance of the points from the first camera, or its substitute without points, (B,)."""
    scale = _ones(batch)
    if batch.cameras is not None:
        # As the first camera is the identity and the others are rigid, |t| is the distance of a camera from it.
        known = _camera_mask(batch)[:, 1:]
        distance = torch.linalg.vector_norm(batch.cameras.cam_from_world[:, 1:, :, 3], dim=-1)
        mean = distance.sum(-1) / known.sum(-1).clamp(min=1)
        scale = torch.where(mean > SCALE_RANGE[0], mean, scale)
    mask = known_pixels(batch)
    if batch.points is not None:
        distance = torch.linalg.vector_norm(torch.where(mask[..., None], batch.points, 0.0), dim=-1)
    elif batch.depth is not None:
        distance = torch.where(mask, batch.depth, 0.0)
    else:
        return scale.clamp(*SCALE_RANGE)
    count = mask.sum((1, 2, 3))
    # The count is converted to the distances' type: an integer tensor plus a Python number would be float32.
    mean = distance.sum((1, 2, 3)) / (count.to(distance.dtype) + COUNT_MARGIN)
    return torch.where(count > 0, mean, scale).clamp(*SCALE_RANGE)


def _divide(batch: SceneBatch, scale: Tensor) -> SceneBatch:
    cameras = batch.cameras
    if cameras is not None:
        rotation, translation = cameras.cam_from_world.split([3, 1], dim=-1)
        translation = translation / scale[:, None, None, None]
        cameras = cameras._replace(cam_from_world=torch.cat([rotation, translation], dim=-1))
    depth, points, mask = batch.depth, batch.points, known_pixels(batch)
    if depth is not None:
        depth = _finite_where_hidden(depth / scale[:, None, None, None], mask)
    if points is not None:
        points = _finite_where_hidden(points / scale[:, None, None, None, None], mask[..., None])
    return batch._replace(cameras=cameras, depth=depth, points=points)


def _finite_where_hidden(x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask | x.isfinite(), x, 0.0)


@show_shapes
class RelativeCameras(NamedTuple):
    """Result of `relate_cameras`.

    Attributes:
        inputs: Input cameras, (B, S, 3, 4) and (B, S, 3, 3); the first pose is exactly the identity.
        targets: Target cameras, (B, T, 3, 4) and (B, T, 3, 3).
        scale: New unit of length in the old unit, (B,).
    """

    inputs: Cameras
    targets: Cameras
    scale: Float[Tensor, " b"]


@float32_island
def relate_cameras(inputs: Cameras, targets: Cameras, *, scale: Float[Tensor, " b"] | None = None) -> RelativeCameras:
    """Express cameras in the frame of the first input camera, in a unit that depends on the inputs alone.

    Args:
        inputs: Input cameras, (B, S, 3, 4) and (B, S, 3, 3), in any world frame and unit.
        targets: Target cameras, (B, T, 3, 4) and (B, T, 3, 3), in the same frame and unit.
        scale: New unit of length, (B,), for instance the second result of `normalize_scene` for the input views, whose
            depth gives the unit that VGGT predicts in. Defaults to 1.35 times the largest distance of an input camera's
            centre from the first one's, or to 1 if there is no other camera or all are in one place.

    Returns:
        Cameras in the new frame and unit, in float32 or better.

    Raises:
        ValueError: If a shape is another one.

    Source: LagerNVS's rule for inputs without depth, as docs/recipes/nvs.md describes it.
    """
    check_shape("inputs.cam_from_world", inputs.cam_from_world, ("B", "S", 3, 4))
    batch = inputs.cam_from_world.shape[0]
    check_shape("inputs.intrinsics", inputs.intrinsics, (*inputs.cam_from_world.shape[:2], 3, 3))
    check_shape("targets.cam_from_world", targets.cam_from_world, (batch, "T", 3, 4))
    check_shape("targets.intrinsics", targets.intrinsics, (*targets.cam_from_world.shape[:2], 3, 3))
    if scale is not None:
        check_shape("scale", scale, (batch,))
    world_from_first = invert_rigid(inputs.cam_from_world[:, :1])
    others = compose_rigid(inputs.cam_from_world[:, 1:], world_from_first)
    made = compose_rigid(targets.cam_from_world, world_from_first)
    if scale is None:
        scale = _farthest(others)
    identity = torch.eye(3, 4, dtype=others.dtype, device=others.device).expand(batch, 1, 3, 4)
    relative = torch.cat([identity, _shrink(others, scale)], dim=1)
    return RelativeCameras(
        inputs._replace(cam_from_world=relative), targets._replace(cam_from_world=_shrink(made, scale)), scale
    )


def _farthest(others: Tensor) -> Tensor:
    """Return `REACH` times the largest distance of cameras (B, S - 1, 3, 4) from the origin, or 1 where it is 0."""
    # Rotations preserve lengths, so |t| is the distance of a camera's centre.
    distance = torch.linalg.vector_norm(others[..., 3], dim=-1)
    farthest = torch.cat([distance.new_zeros(len(distance), 1), distance], dim=1).amax(1)
    return torch.where(farthest > 0, REACH * farthest, 1.0)


def _shrink(cam_from_world: Tensor, scale: Tensor) -> Tensor:
    rotation, translation = cam_from_world.split([3, 1], dim=-1)
    return torch.cat([rotation, translation / scale[:, None, None, None]], dim=-1)
