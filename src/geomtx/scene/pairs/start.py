"""The start of global alignment: images placed pair by pair along the best tree (DUSt3R, section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.geometry.camera import invert_rigid, transform_points
from geomtx.geometry.camera_fit import fit_focal, fit_pose
from geomtx.geometry.rotation import matrix_to_quat, quat_to_matrix
from geomtx.geometry.similarity import Similarity, apply_similarity, fit_camera_similarity, fit_similarity
from geomtx.inference.pair_maps import PairMaps
from geomtx.scene.pairs.objective import (
    BASE_SCALE,
    AlignmentState,
    camera_parameters,
    focal_parameters,
    pair_transforms,
    pose_parameters,
)
from geomtx.scene.pairs.pair_graph import growth_order, spanning_tree
from geomtx.types import Float, show_shapes

__all__ = [
    "PlacedImages",
    "best_pairs",
    "focal_of_pair",
    "place_images",
    "start_alignment",
    "start_from_cameras",
    "start_of_tree",
]

_SAMPLES, _TOLERANCE_PX = 10, 5.0
_LEAST_POINTS = 4
_FOCALS, _SHORTEST, _LONGEST = 21, 0.5, 3.0  # of the longer side, tried where no pair starts at an image
_SAME_PLACE = 1e-6  # of the distance of the farthest known camera from the first
_SHIFT = 0.01  # of the distance of two cameras: the end of the axis that tells where they look


@show_shapes
class PlacedImages(NamedTuple):
    """Images placed along the tree.

    Attributes:
        points: Points of each image in the world, S tensors (H, W, 3).
        world_from_cam: Cameras in the world, (S, 3, 4); the scale of each image's points left out.
        focals: Focal lengths in pixels, (S,).
        from_tree: Whether a camera comes of the tree; the others come of points and pixels.
    """

    points: tuple[Tensor, ...]
    world_from_cam: Float[Tensor, "s 3 4"]
    focals: Float[Tensor, " s"]
    from_tree: tuple[bool, ...]


def focal_of_pair(maps: PairMaps, index: int) -> Tensor:
    """Return the focal length in pixels of the first image of a pair, from its confident pixels, () float64.

    Args:
        maps: Point maps of the pairs.
        index: Index of the pair.
    """
    points, confidence = (_read(each) for each in maps.side(index, 0))
    # A point at the origin has no influence.
    found = fit_focal(torch.where((confidence > 0)[..., None], points, 0.0))
    # Points that no camera sees so, mirrored ones for instance, give none above 0: the start is then a usual one.
    return torch.where(found > 0, found, float(max(points.shape[:2])))


def best_pairs(maps: PairMaps, scores: Sequence[float]) -> dict[int, int]:
    """Return the pair with the best score that starts at each image; images at which none starts are left out."""
    best: dict[int, int] = {}
    for index, (first, _) in enumerate(maps.pairs.tolist()):
        if first not in best or scores[index] > scores[best[first]]:
            best[first] = index
    return best


def start_of_tree(maps: PairMaps, scores: Sequence[float]) -> list[int]:
    """Return the pairs of the tree in the order of growth."""
    pairs = maps.pairs.tolist()
    return growth_order(pairs, spanning_tree(pairs, scores))


def place_images(
    maps: PairMaps, scores: Sequence[float], confidence: Sequence[Tensor], focals: Tensor, min_confidence: float
) -> PlacedImages:
    """Place all images along the tree of the best pairs.

    The world is the first camera of the best pair. Each next pair is brought to the image that is placed already by the
    similarity of all its pixels, weighted by their confidence; the pose of that similarity is the camera of the pair's
    first image. Cameras that no similarity gives come from the points and pixels of their image.

    Args:
        maps: Point maps of the pairs.
        scores: Score of each pair.
        confidence: Largest confidence of each pixel of each image.
        focals: Known focal lengths in pixels, (S,) float64; NaN where they aren't known: they then come of the best
            pair that starts at the image.
        min_confidence: Confidence above which a pixel's point helps to find a camera.
    """
    pairs, best, order = maps.pairs.tolist(), best_pairs(maps, scores), start_of_tree(maps, scores)
    focals = focals.clone()
    for image, index in best.items():
        if focals[image].isnan():
            focals[image] = focal_of_pair(maps, index)
    points: dict[int, Tensor] = {pairs[order[0]][0]: _read(maps.points1[order[0]])}
    cameras: dict[int, Tensor] = {pairs[order[0]][0]: torch.eye(3, 4, dtype=torch.float64)}
    from_tree = [False] * len(focals)
    for index in order:
        first = pairs[index][0]
        done = 0 if first in points else 1
        own = [_read(maps.points1[index]), _read(maps.points2[index])]
        weights = _read(maps.side(index, done)[1])
        source, target = own[done].flatten(0, 1), points[pairs[index][done]].flatten(0, 1)
        found = fit_similarity(source, target, weights.flatten())
        points[pairs[index][1 - done]] = _move(found, own[1 - done])
        if first not in cameras:
            cameras[first] = torch.cat([found.rotation, found.translation[:, None]], dim=1)
        from_tree[first] = True
    for image in range(len(focals)):
        if image not in cameras:
            sure = confidence[image] > min_confidence
            cameras[image], focals[image] = find_camera(points[image], sure, focals[image])
    count = range(len(focals))
    return PlacedImages(
        tuple(points[i] for i in count), torch.stack([cameras[i] for i in count]), focals, tuple(from_tree)
    )


def start_alignment(maps: PairMaps, placed: PlacedImages) -> AlignmentState:
    """Return the parameters of placed images, with the mean scale of pairs that the loss holds, in float64.

    Args:
        maps: Point maps of the pairs.
        placed: Images placed along the tree.
    """
    pair_poses, log_scales = [], []
    for index, (first, _) in enumerate(maps.pairs.tolist()):
        own, sure = (_read(each) for each in maps.side(index, 0))
        found = fit_similarity(own.flatten(0, 1), placed.points[first].flatten(0, 1), sure.flatten())
        pair_poses.append(_pair_pose(found))
        log_scales.append(found.scale.log())
    factor = BASE_SCALE * (-torch.stack(log_scales).mean()).exp()
    world_from_cam = placed.world_from_cam.clone()
    world_from_cam[..., 3] *= factor
    depths = [
        transform_points(invert_rigid(pose), factor * points.flatten(0, 1))[:, 2].unflatten(0, points.shape[:2])
        for pose, points in zip(world_from_cam, placed.points, strict=True)
    ]
    return _state(world_from_cam, placed.focals, depths, torch.stack(pair_poses))


def start_from_cameras(
    maps: PairMaps, scores: Sequence[float], world_from_cam: Tensor, focals: Tensor
) -> AlignmentState:
    """Return the parameters of images whose cameras are all known, in float64.

    The second camera of each pair, from its points and pixels, and the first one are brought to the known ones by a
    similarity of their centres and of points close to these on their axes. Where the two are in one place, the pair has
    the median scale of the others.

    Args:
        maps: Point maps of the pairs.
        scores: Score of each pair.
        world_from_cam: Known cameras, (S, 3, 4) float64.
        focals: Focal lengths in pixels, (S,) float64; NaN where they aren't known.
    """
    best = best_pairs(maps, scores)
    focals = focals.clone()
    for image, index in best.items():
        if focals[image].isnan():
            focals[image] = focal_of_pair(maps, index)
    centers = world_from_cam[..., 3]
    apart = _SAME_PLACE * torch.linalg.vector_norm(centers - centers[:1], dim=-1).max()
    similarities: list[Similarity | None] = []
    for index, (first, second) in enumerate(maps.pairs.tolist()):
        points, confidence = maps.side(index, 1)
        focal = focals[second] if focals[first].isnan() else focals[first]
        pose, focal = find_camera(_read(points), confidence.cpu() > 0, focal)
        if focals[second].isnan():
            focals[second] = focal
        own = torch.stack([torch.eye(3, 4, dtype=torch.float64), pose])
        known = world_from_cam[[first, second]]
        found = fit_similarity(_centers_and_axes(own), _centers_and_axes(known))
        alone = torch.linalg.vector_norm(known[0, :, 3] - known[1, :, 3]) <= apart
        similarities.append(None if alone or not found.scale > 0 else found)
    usual = torch.stack([each.scale for each in similarities if each is not None]).median()
    whole = [
        Similarity(usual, world_from_cam[first, :, :3], centers[first]) if each is None else each
        for each, (first, _) in zip(similarities, maps.pairs.tolist(), strict=True)
    ]
    pair_poses, scales = [_pair_pose(each) for each in whole], [each.scale for each in whole]
    surest = best_pairs(maps, [float(each.float().mean()) for each in maps.confidence1])
    depths = []
    for image in range(len(focals)):
        if image in surest:
            depths.append(scales[surest[image]] * _read(maps.points1[surest[image]])[..., 2])
            continue
        index = max((e for e, pair in enumerate(maps.pairs.tolist()) if pair[1] == image), key=lambda e: scores[e])
        found = _pair_similarity(pair_poses[index])
        moved = _move(found, _read(maps.points2[index]))
        local = transform_points(invert_rigid(world_from_cam[image]), moved.flatten(0, 1))
        depths.append(local[:, 2].unflatten(0, moved.shape[:2]))
    return _state(world_from_cam, focals, depths, torch.stack(pair_poses))


def move_to_known(state: AlignmentState, world_from_cam: Tensor, known: Tensor) -> AlignmentState:
    """Return a start moved so that it comes close to those cameras that are known, which are put in their places.

    Args:
        state: Start, in a world of its own.
        world_from_cam: Known cameras, (S, 3, 4) float64; those of other images may be anything.
        known: Mask of the images with known poses, (S,) bool, at least two.
    """
    poses, _, _ = camera_parameters(state)
    scale, rotation, translation = fit_camera_similarity(poses[known], world_from_cam[known])
    moved = torch.cat(
        [rotation @ poses[..., :3], (scale * poses[..., 3] @ rotation.mT + translation)[..., None]], dim=-1
    )
    moved[known] = world_from_cam[known]
    pairs = pair_transforms(state._replace(adaptors=torch.zeros_like(state.adaptors)))
    sizes = torch.linalg.det(pairs[..., :3]).pow(1 / 3)
    poses_of_pairs = [
        _pair_pose(Similarity(scale * size, rotation @ each[:, :3] / size, scale * rotation @ each[:, 3] + translation))
        for each, size in zip(pairs, sizes, strict=True)
    ]
    return state._replace(
        poses=pose_parameters(matrix_to_quat(moved[..., :3]), moved[..., 3]),
        log_depth=tuple(each + scale.log() for each in state.log_depth),
        pair_poses=torch.stack(poses_of_pairs),
    )


def find_camera(points: Tensor, sure: Tensor, focal: Tensor, *, num_samples: int = _SAMPLES) -> tuple[Tensor, Tensor]:
    """Return the camera (3, 4) in the world of an image's points (H, W, 3), and its focal length.

    Args:
        points: Point of each pixel in the world.
        sure: Pixels whose points count, (H, W) bool; with fewer than four, the camera is the identity.
        focal: Focal length in pixels, (); NaN to try 21 of them, from half to three times the longer side.
        num_samples: Number of samples, see `fit_pose`.
    """
    height, width = points.shape[:2]
    if focal.isnan():
        steps = torch.linspace(0, 1, _FOCALS, dtype=torch.float64)
        focals = max(height, width) * _SHORTEST * (_LONGEST / _SHORTEST) ** steps
    else:
        focals = focal[None]
    y, x = sure.nonzero().unbind(1)
    if len(y) < _LEAST_POINTS:
        return torch.eye(3, 4, dtype=torch.float64), focals[len(focals) // 2]
    coords = torch.stack([x - width / 2, y - height / 2], dim=1).to(points.dtype)
    found = fit_pose(points[y, x], coords, focals, num_samples=num_samples, tolerance_px=_TOLERANCE_PX)
    return invert_rigid(found.cam_from_world), found.focal


def _read(values: Tensor) -> Tensor:
    """Return one map in float64 on the host: the start is the same on every device then."""
    return values.cpu().double()


def _move(found: Similarity, points: Tensor) -> Tensor:
    return apply_similarity(found, points.flatten(0, 1)).unflatten(0, points.shape[:2])


def _pair_pose(found: Similarity) -> Tensor:
    pose = pose_parameters(matrix_to_quat(found.rotation), found.translation / found.scale)
    return torch.cat([pose, found.scale.log()[None]])


def _pair_similarity(pose: Tensor) -> Similarity:
    scale, tau = pose[7].exp(), pose[4:7]
    return Similarity(scale, quat_to_matrix(pose[:4]), scale * tau.sign() * tau.abs().expm1())


def _centers_and_axes(world_from_cam: Tensor) -> Tensor:
    """Return the centres of two cameras and points close to them on their axes, (4, 3)."""
    centers = world_from_cam[..., 3]
    shift = _SHIFT * (centers[0] - centers[1]).norm()
    return torch.cat([centers, centers + shift * world_from_cam[..., 2]])


def _state(world_from_cam: Tensor, focals: Tensor, depths: Sequence[Tensor], pair_poses: Tensor) -> AlignmentState:
    poses = pose_parameters(matrix_to_quat(world_from_cam[..., :3]), world_from_cam[..., 3])
    # A point behind its camera has no logarithm.
    log_depth = tuple(torch.where(depth > 0, depth, 1.0).log() for depth in depths)
    num_pairs = len(pair_poses)
    return AlignmentState(
        poses,
        focal_parameters(focals),
        poses.new_zeros(len(poses), 2),
        log_depth,
        pair_poses,
        poses.new_zeros(num_pairs, 2),
    )
