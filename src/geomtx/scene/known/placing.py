"""Putting known cameras into a scene in place of predicted ones."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from geomtx.geometry.camera import invert_rigid
from geomtx.scene.known.cameras import KnownCameras, check_poses, select_views
from geomtx.scene.scene import Scene
from geomtx.types import Cameras
from geomtx.views import ViewTransform

__all__ = ["check_can_align", "intrinsics_of_views", "place_cameras", "use_intrinsics"]

logger = logging.getLogger(__name__)

_SHAPE_TOLERANCE = 0.01
_FOCAL_RATIO = 1.2


def use_intrinsics(scene: Scene, known: KnownCameras) -> Scene:
    """Return the scene with known intrinsics in place of the predicted ones, for its points and all that is written.

    Depth stays as it is: it belongs to the predicted focal length, so points are stretched along the viewing direction
    where the two differ much; a warning in the log says so from a fifth on.

    Args:
        scene: Scene with cameras.
        known: Known cameras, see `match_views`. Those of photos of another size, but the same shape, are scaled.

    Raises:
        ValueError: If the scene has no cameras, the intrinsics are none, or photos have another shape.
    """
    cameras = scene.predictions.cameras
    if cameras is None:
        raise ValueError("scene must have cameras to get known intrinsics, but the model ran without its camera head")
    mapped = intrinsics_of_views(select_views(known, scene.names), scene.transforms)
    if mapped is None:
        return scene
    is_known = mapped.isfinite().flatten(1).all(1)
    intrinsics = torch.where(is_known[:, None, None], mapped.to(cameras.intrinsics.dtype), cameras.intrinsics)
    ratios = (mapped[:, 0, 0] / cameras.intrinsics[:, 0, 0])[is_known].tolist()
    ratio = sorted(ratios)[len(ratios) // 2] if ratios else 1.0
    if not 1 / _FOCAL_RATIO < ratio < _FOCAL_RATIO:
        logger.warning(
            "known focal lengths are %.3g times as long as predicted ones, which depth was predicted with: points are "
            "stretched along the viewing direction",
            ratio,
        )
    return _with_cameras(scene, cameras._replace(intrinsics=intrinsics), "known_intrinsics", is_known)


def intrinsics_of_views(known: KnownCameras, transforms: Sequence[ViewTransform]) -> Tensor | None:
    """Return known intrinsics in pixels of the model's images, (S, 3, 3), NaN where none are known; None without any.

    Args:
        known: Known cameras of the views, see `select_views`. Those of photos of another size are scaled.
        transforms: Transforms of the views.

    Raises:
        ValueError: If a known camera is of a photo of another shape.
    """
    if known.intrinsics is None:
        return None
    mapped = torch.full_like(known.intrinsics, torch.nan)
    for view, transform in enumerate(transforms):
        if known.intrinsics[view].isfinite().all():
            matrix = _to_size(known.intrinsics[view], known.image_hw[view], transform.original_hw, known.names[view])
            mapped[view] = transform.intrinsics_from_original(matrix)
    return mapped


def check_can_align(known: KnownCameras) -> None:
    """Require poses to be none, or at least two that are not all in one place.

    Args:
        known: Known cameras of the views, see `select_views`.

    Raises:
        ValueError: Otherwise.
    """
    if known.cam_from_world is None:
        return
    poses = known.cam_from_world[known.cam_from_world.isfinite().flatten(1).all(1)]
    if len(poses) < 2:
        raise ValueError(f"known cameras must have poses of at least 2 of the photos to align to, got {len(poses)}")
    centers = invert_rigid(poses)[..., 3]
    if not (centers - centers[:1]).norm(dim=-1).max() > 1e-8 * centers.norm(dim=-1).max():
        raise ValueError("known cameras must not all be in one place, which says nothing of the scale")


def place_cameras(scene: Scene, known: KnownCameras) -> Scene:
    """Return the scene with known poses in place of those of the same views.

    The scene must be in the world of the known poses, see `align`; its depth stays as it is.

    Args:
        scene: Scene with cameras.
        known: Known cameras, see `match_views`.

    Raises:
        ValueError: If the scene has no cameras, or poses are no rotations.
    """
    cameras = scene.predictions.cameras
    chosen = select_views(known, scene.names)
    if cameras is None or chosen.cam_from_world is None:
        raise ValueError("scene and known cameras must have poses to put them in place, got none")
    check_poses("known poses", chosen.cam_from_world, scene.names)
    is_known = chosen.cam_from_world.isfinite().flatten(1).all(1)
    poses = torch.where(
        is_known[:, None, None], chosen.cam_from_world.to(cameras.cam_from_world.dtype), cameras.cam_from_world
    )
    return _with_cameras(scene, cameras._replace(cam_from_world=poses), "known_poses", is_known)


def _with_cameras(scene: Scene, cameras: Cameras, what: str, is_known: Tensor) -> Scene:
    """Return the scene with other cameras, and with a note of how many views (S,) something is known of."""
    return replace(
        scene,
        predictions=scene.predictions._replace(cameras=cameras, pose_encodings=None),
        provenance={**scene.provenance, what: f"of {int(is_known.sum())} of {len(scene)} photos"},
    )


def _to_size(intrinsics: Tensor, known_hw: tuple[int, int] | None, photo_hw: tuple[int, int], name: str) -> Tensor:
    """Return the intrinsics in pixels of the photo, which may be an enlarged or reduced copy of the known one."""
    if known_hw is None or known_hw == photo_hw:
        return intrinsics
    scale_y, scale_x = (own / other for own, other in zip(photo_hw, known_hw, strict=True))
    if abs(scale_x / scale_y - 1) > _SHAPE_TOLERANCE:
        known, own = (f"{width}x{height}" for height, width in (known_hw, photo_hw))
        raise ValueError(f"known camera of '{name}' must be of a photo of its shape, {own} pixels upright, got {known}")
    return ViewTransform(known_hw, photo_hw, (scale_x, scale_y)).intrinsics_from_original(intrinsics)
