"""Bringing a scene into the frame and the unit of another that shows the same views."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import Tensor

from geomtx.checks import check_shape
from geomtx.geometry.camera import invert_rigid
from geomtx.geometry.similarity import Similarity, apply_similarity, fit_similarity
from geomtx.scene.scene import Scene
from geomtx.types import Cameras

__all__ = ["align_scene", "move_scene"]

logger = logging.getLogger(__name__)


def align_scene(scene: Scene, target: Scene) -> Scene:
    """Move, turn and scale a scene so that its points come to lie on those of another.

    The similarity is the one of least squares between the points of all pixels that both masks hold. Where one of the
    two scenes has no points, the cameras give it: the rotation is the mean of those between their axes, and the
    centres, by their spread and their mean, give scale and translation. One view, or centres in one place, leave the
    scale as it is, with a warning in the log.

    Args:
        scene: Scene with points (see `Scene.point_map`) or cameras.
        target: Scene of the same views, in images of the same size.

    Returns:
        `scene` in the frame and the units of `target`, without `pose_encodings`, which hold for the first camera's
        frame alone.

    Raises:
        ValueError: If the views differ, or the scenes have neither points nor cameras in common.
    """
    check_shape("scene.masks", scene.masks, tuple(target.masks.shape))
    similarity = _fit_points(scene, target) or _fit_cameras(scene, target)
    if similarity is None:
        raise ValueError("scene must have points or cameras, as the target has, to be aligned, got neither in common")
    return replace(move_scene(scene, similarity), units=target.units)


def move_scene(scene: Scene, similarity: Similarity) -> Scene:
    """Apply a similarity to the points and cameras of a scene.

    Args:
        scene: Scene with any predictions.
        similarity: Similarity in float64.

    Returns:
        The moved scene, without `pose_encodings`, which hold for the first camera's frame alone; `extra` is unchanged.
    """
    scale, rotation, translation = similarity
    cameras, _, depth, points, *_ = scene.predictions
    if cameras is not None:
        # s (R_c x + t_c) with x = Rᵀ (y - t) / s.
        cam_from_world = cameras.cam_from_world.double()
        turned = cam_from_world[..., :3] @ rotation.mT
        shift = scale * cam_from_world[..., 3:] - turned @ translation[:, None]
        moved = torch.cat([turned, shift], dim=-1)
        cameras = cameras._replace(cam_from_world=moved.to(cameras.cam_from_world.dtype))
    if depth is not None:
        depth = depth._replace(value=(depth.value * scale).to(depth.value.dtype))
    if points is not None:
        value = apply_similarity(similarity, points.value.double().flatten(0, 2)).view_as(points.value)
        points = points._replace(value=value.to(points.value.dtype))
    predictions = scene.predictions._replace(cameras=cameras, pose_encodings=None, depth=depth, points=points)
    return replace(scene, predictions=predictions)


def _fit_points(scene: Scene, target: Scene) -> Similarity | None:
    if not (_has_points(scene) and _has_points(target)):
        return None
    source, wanted = (each.point_map().value.double().flatten(0, 2) for each in (scene, target))
    both = (scene.masks & target.masks).flatten() & source.isfinite().all(-1) & wanted.isfinite().all(-1)
    return fit_similarity(source, wanted, both)


def _fit_cameras(scene: Scene, target: Scene) -> Similarity | None:
    if scene.predictions.cameras is None or target.predictions.cameras is None:
        return None
    source, wanted = (_world_from_cam(each) for each in (scene.predictions.cameras, target.predictions.cameras))
    both = source.isfinite().all(-1).all(-1) & wanted.isfinite().all(-1).all(-1)
    if not both.any():
        return fit_similarity(source[..., 3], wanted[..., 3], both)
    source, wanted = source[both], wanted[both]
    import roma

    # Centres alone would leave the turn open for one view, and the roll for centres on a line.
    rotation = roma.special_procrustes((wanted[..., :3] @ source[..., :3].mT).sum(0))
    (source_center, source_spread), (wanted_center, wanted_spread) = (
        _spread(each[..., 3]) for each in (source, wanted)
    )
    scale = wanted_spread / source_spread
    if not (source_spread > 0 and wanted_spread > 0):
        logger.warning("cameras in one place give no scale between the scenes, it is left as it is")
        scale = torch.ones_like(scale)
    return Similarity(scale, rotation, wanted_center - scale * (rotation @ source_center))


def _has_points(scene: Scene) -> bool:
    has_depth = scene.predictions.depth is not None and scene.predictions.cameras is not None
    return has_depth or scene.predictions.points is not None


def _world_from_cam(cameras: Cameras) -> Tensor:
    return invert_rigid(cameras.cam_from_world.double())


def _spread(centers: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of centres (S, 3), and their root mean square distance from it: 0 within float32's rounding."""
    middle = centers.mean(0)
    spread = (centers - middle).square().sum(-1).mean().sqrt()
    return middle, torch.where(spread > 1e-6 * centers.norm(dim=-1).max(), spread, 0.0)
