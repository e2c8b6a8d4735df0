"""Bringing a scene into the frame and the unit of what is known of it: cameras, depth, distances, or another scene of
the same views.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geomtx.checks import check_finite_positive, check_shape, enumerate_names
from geomtx.geometry.camera import invert_rigid
from geomtx.geometry.similarity import Similarity, apply_similarity, fit_camera_similarity, fit_similarity
from geomtx.scene.files.cameras import read_cameras
from geomtx.scene.known.agreement import Agreement, agree_on_cameras, agree_on_positions, agree_on_scale
from geomtx.scene.known.cameras import KnownCameras, check_poses, match_views, named_poses
from geomtx.scene.known.lengths import Distance, KnownDepth, depth_pairs, distance_pairs
from geomtx.scene.scene import Scene
from geomtx.types import Cameras

__all__ = ["align", "align_scene", "move_scene"]

logger = logging.getLogger(__name__)

_POOR_ANGLE = 10.0  # degrees
_RESOLUTION = 0.01  # of the threshold up to which a camera agrees
_ROUNDING = 1e-6  # of that threshold


Places = Cameras | Tensor | KnownCameras | Mapping[str, Any] | str | os.PathLike[str]
"""Known places of cameras: poses or positions of the views in their order, or by the names of the photos; or a file."""


def align(
    scene: Scene,
    *,
    poses: Places | None = None,
    depth: KnownDepth | None = None,
    distance: Distance | Sequence[Distance] | None = None,
    units: str | None = None,
    threshold: float | None = None,
) -> Scene:
    """Bring a scene into the world and the unit of what is known of it: cameras, depth or distances.

    Depth, points and cameras move together, so that projections stay where they are. Outliers don't sway the result,
    which is the same every time: with poses it is the similarity that most cameras agree on (RANSAC, see
    `geomtx.scene.known.agreement`), with depth or distances the scale that most of them agree on. A line in the log
    and the scene's provenance, "alignment", say how well it fits.

    Args:
        scene: Scene with cameras for `poses` and distances between cameras, with depth for `depth`.
        poses: Known poses `cam_from_world` with OpenCV axes, (S, 3, 4), or positions of the cameras, (S, 3), with NaN
            for views that none is known of; the same as `Cameras`, or as a mapping of the photos' names to (3, 4) or
            (3,); a file that `geomtx.scene.read_cameras` reads, or the `KnownCameras` that it gives. Two poses suffice,
            on a line too; positions must be three that are not on a line.
        depth: Known z-depth of the S views, each (h, w) in pixels of the photo or (H, W) in those of the model's image,
            as from a sensor, or a `DenseMap`, as of another scene: values that are not finite and positive are unknown.
            None for a view without; or a mapping of the photos' names to maps.
        distance: Known distance (a, b, length) or several. `a` and `b` are cameras, as the index or the name of a view,
            or points on the surface, as (view, x, y) in pixels of the original photo.
        units: Name of the unit of what is known; defaults to that of `KnownCameras`, for others to "metres".
        threshold: Distance up to which a camera agrees with its known place, in units of `poses`; defaults to a
            twentieth of the median distance of the known cameras from their middle, or up to eight times as much where
            many more agree then.

    Returns:
        The scene, for `poses` in their world and without `pose_encodings`, which hold for the first camera's frame
        alone.

    Raises:
        ValueError: Unless exactly one of the three is given; for poses that are no rotations, cameras in one place,
            positions on a line, names that are none of the scene's, depth or distances that are nowhere finite and
            positive, and where the scene lacks what they are compared with.
    """
    given = [name for name, value in (("poses", poses), ("depth", depth), ("distance", distance)) if value is not None]
    if len(given) != 1:
        raise ValueError(f"align must get one of poses, depth and distance, got {', '.join(given) or 'none'}")
    if poses is not None:
        return _align_to_poses(scene, poses, units, threshold)
    if depth is not None:
        source, known = depth_pairs(scene, depth)
        what = "depth"
    else:
        source, known = distance_pairs(scene, distance)
        what = "distance"
    scale, agrees = agree_on_scale(source, known)
    off = float((scale * source / known).log().abs()[agrees].median().expm1())
    report = f"{what}: {int(agrees.sum())} of {len(agrees)} values agree, to {round(100 * off, 5):.2g} % (median)"
    return _noted(scene.rescale(float(scale), units="metres" if units is None else units), report)


def _align_to_poses(scene: Scene, poses: Places, units: str | None, threshold: float | None) -> Scene:
    cameras = scene.predictions.cameras
    if cameras is None:
        raise ValueError("scene must have cameras to be aligned to poses, but the model ran without its camera head")
    if threshold is not None:
        check_finite_positive("threshold", threshold)
    if isinstance(poses, str | os.PathLike):
        poses = read_cameras(poses)
    if isinstance(poses, KnownCameras):
        units = poses.units if units is None else units
        poses = named_poses(poses)
    known = _known_places(scene, poses)
    source = _world_from_cam(cameras.cam_from_world)
    usable = known.isfinite().flatten(1).all(1) & source.isfinite().flatten(1).all(1)
    if known.ndim == 3:
        check_poses("poses", known, scene.names)
        found = agree_on_cameras(source[usable], _world_from_cam(known)[usable], threshold=threshold)
    else:
        places = _without_rounding(known.double(), known.dtype)
        found = agree_on_positions(source[usable][..., 3], places[usable], threshold=threshold)
    _warn_of_distance(known, found)
    _warn_of_disagreement(found)
    units = "metres" if units is None else units
    moved = replace(move_scene(scene, found.similarity), units=units)
    world = "that of the known poses" if known.ndim == 3 else "that of the known positions"
    moved = replace(moved, provenance={**moved.provenance, "world": world})
    names = [name for name, is_known in zip(scene.names, usable.tolist(), strict=True) if is_known]
    return _noted(moved, _describe(found, units, names))


def _warn_of_distance(known: Tensor, found: Agreement) -> None:
    """Log a warning where float32, in which scenes are, would round away what the threshold can tell apart."""
    centers = invert_rigid(known.double())[..., 3] if known.ndim == 3 else known.double()
    farthest = centers.nan_to_num().norm(dim=-1).max()
    if farthest * torch.finfo(torch.float32).eps > _RESOLUTION * found.threshold:
        logger.warning(
            "known cameras are up to %.3g from the origin, where float32 rounds to %.2g: subtract an offset from them",
            farthest, farthest * torch.finfo(torch.float32).eps,
        )  # fmt: skip


def _warn_of_disagreement(found: Agreement) -> None:
    """Log a warning where the fit says little: most cameras don't agree, or those that do look elsewhere."""
    angle = 0.0 if found.angle is None else float(found.angle[found.agrees].median().rad2deg())
    agree, number = int(found.agrees.sum()), len(found.agrees)
    if 2 * agree < number or angle > _POOR_ANGLE:
        logger.warning(
            "known cameras and the scene's hardly agree (%d of %d, to %.2g degrees): its world and unit are doubtful",
            agree,
            number,
            angle,
        )


def _describe(found: Agreement, units: str, names: Sequence[str]) -> str:
    """Return how many of the cameras agree and how well, and which ones don't."""
    off = float(found.distance[found.agrees].median())
    # What is left by rounding is nothing.
    distance = (
        f"{off if off > _ROUNDING * found.threshold else 0:.3g} {'' if units == 'up to scale' else units}".strip()
    )
    angle = ""
    if found.angle is not None:
        angle = f" and {round(float(found.angle[found.agrees].median().rad2deg()), 4):.2g} degrees"
    others = [name for name, agrees in zip(names, found.agrees.tolist(), strict=True) if not agrees]
    return (
        f"{len(names) - len(others)} of {len(names)} cameras agree, to {distance}{angle} (median), "
        f"scale {found.similarity.scale:.5g}{f'; not those of {enumerate_names(others)}' if others else ''}"
    )


def _noted(scene: Scene, report: str) -> Scene:
    logger.info("aligned: %s", report)
    return replace(scene, provenance={**scene.provenance, "alignment": report})


def _known_places(scene: Scene, poses: Any) -> Tensor:
    """Return poses (S, 3, 4) or positions (S, 3) of the views, floating point, NaN where none is known."""
    if isinstance(poses, Cameras):
        poses = poses.cam_from_world
    if isinstance(poses, Mapping):
        order = match_views(list(poses), scene.names, "poses")
        values = [_to_tensor(value) for value in poses.values()]
        check_shape("poses", values[0], (3, 4), (3,))
        for value in values:
            check_shape("poses", value, tuple(values[0].shape))
        unknown = torch.full_like(values[0], torch.nan)
        return torch.stack([unknown if index is None else values[index] for index in order])
    places = _to_tensor(poses)
    check_shape("poses", places, (len(scene), 3, 4), (len(scene), 3))
    return places


def _to_tensor(values: Any) -> Tensor:
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(np.asarray(values, dtype=np.float64))
    return (tensor if tensor.is_floating_point() else tensor.double()).detach().cpu()


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
    moved = replace(move_scene(scene, similarity), units=target.units)
    return replace(moved, provenance={**moved.provenance, "world": target.world})


def move_scene(scene: Scene, similarity: Similarity) -> Scene:
    """Apply a similarity to the points and cameras of a scene.

    Args:
        scene: Scene with any predictions.
        similarity: Similarity in float64.

    Returns:
        The moved scene, without `pose_encodings`, which hold for the first camera's frame alone; `extra` is unchanged.
    """
    scale = similarity.scale
    cameras, _, depth, points, *_ = scene.predictions
    cameras, first_cameras = (
        None if each is None else _move_cameras(each, similarity) for each in (cameras, scene.first_cameras)
    )
    if depth is not None:
        depth = depth._replace(value=(depth.value * scale).to(depth.value.dtype))
    if points is not None:
        value = apply_similarity(similarity, points.value.double().flatten(0, 2)).view_as(points.value)
        points = points._replace(value=value.to(points.value.dtype))
    predictions = scene.predictions._replace(cameras=cameras, pose_encodings=None, depth=depth, points=points)
    return replace(scene, predictions=predictions, first_cameras=first_cameras)


def _move_cameras(cameras: Cameras, similarity: Similarity) -> Cameras:
    scale, rotation, translation = similarity
    # s (R_c x + t_c) with x = Rᵀ (y - t) / s.
    cam_from_world = cameras.cam_from_world.double()
    turned = cam_from_world[..., :3] @ rotation.mT
    shift = scale * cam_from_world[..., 3:] - turned @ translation[:, None]
    moved = torch.cat([turned, shift], dim=-1)
    return cameras._replace(cam_from_world=moved.to(cameras.cam_from_world.dtype))


def _fit_points(scene: Scene, target: Scene) -> Similarity | None:
    if not (_has_points(scene) and _has_points(target)):
        return None
    source, wanted = (each.point_map().value.double().flatten(0, 2) for each in (scene, target))
    both = (scene.masks & target.masks).flatten() & source.isfinite().all(-1) & wanted.isfinite().all(-1)
    return fit_similarity(source, wanted, both)


def _fit_cameras(scene: Scene, target: Scene) -> Similarity | None:
    own, others = scene.predictions.cameras, target.predictions.cameras
    if own is None or others is None:
        return None
    source, wanted = (_world_from_cam(each.cam_from_world) for each in (own, others))
    both = source.isfinite().all(-1).all(-1) & wanted.isfinite().all(-1).all(-1)
    if not both.any():
        return fit_similarity(source[..., 3], wanted[..., 3], both)
    if any((each[both][1:, :, 3] == each[both][:1, :, 3]).all() for each in (source, wanted)):
        logger.warning("cameras in one place give no scale between the scenes, it is left as it is")
    # Centres alone would leave the turn open for one view, and the roll for centres on a line.
    return fit_camera_similarity(source[both], wanted[both])


def _has_points(scene: Scene) -> bool:
    has_depth = scene.predictions.depth is not None and scene.predictions.cameras is not None
    return has_depth or scene.predictions.points is not None


def _world_from_cam(cam_from_world: Tensor) -> Tensor:
    """Return the inverse poses (S, 3, 4) in float64; centres that differ by rounding alone are the same."""
    poses = invert_rigid(cam_from_world.double())
    return torch.cat([poses[..., :3], _without_rounding(poses[..., 3], cam_from_world.dtype)[..., None]], dim=-1)


def _without_rounding(centers: Tensor, dtype: torch.dtype) -> Tensor:
    finite = centers.isfinite().all(-1)
    middle = centers[finite].mean(0)
    spread = (centers[finite] - middle).square().sum(-1).mean().sqrt()
    # Numbers in files have nine digits.
    rounding = max(8 * torch.finfo(dtype).eps, 1e-8) * centers[finite].norm(dim=-1).max() if finite.any() else spread
    return torch.where(finite[:, None] & (spread <= rounding), middle, centers)
