"""What sparse global alignment minimises: distances of matched points in space, then in pixels (MASt3R-SfM).

Each image has a pose along a tree, a size, a focal length, a principal point and a depth for each block of pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from geomtx.geometry.camera import invert_rigid
from geomtx.geometry.rotation import quat_to_matrix
from geomtx.scene.pairs.matches.camera_tree import CameraTree
from geomtx.types import Cameras, Float, Int, show_shapes

__all__ = [
    "Anchors",
    "SparseProblem",
    "SparseState",
    "block_depth",
    "coarse_loss",
    "fine_loss",
    "sparse_cameras",
    "sparse_points",
    "start_state",
]

_SHORTEST, _LONGEST = 0.25, 10.0  # focal lengths, of the image's diagonal
_LEAST_DEPTH, _LEAST_PX, _MOST_PX = 1e-3, -1000.0, 2000.0
_COARSE, _FINE, _WEAK = 1.5, 0.5, 1.1
_WEAK_SHARE = 0.01


@show_shapes
class SparseState(NamedTuple):
    """Parameters of S images.

    Attributes:
        quat_xyzw: Rotation of each image from its parent in the tree, (S, 4).
        translation: Translation likewise, (S, 3).
        log_size: Logarithm of the size of each image's scene, (S,).
        log_focal: Logarithm of the focal length in pixels, (S,).
        principal: Principal point as a share of width and height, (S, 2).
        core: Depth of each block relative to the image's median, S tensors.
    """

    quat_xyzw: Float[Tensor, "s 4"]
    translation: Float[Tensor, "s 3"]
    log_size: Float[Tensor, " s"]
    log_focal: Float[Tensor, " s"]
    principal: Float[Tensor, "s 2"]
    core: tuple[Tensor, ...]

    def map(self, function: Callable[[Tensor], Tensor]) -> SparseState:
        """Return the parameters with a function applied to each tensor."""
        return tree_map_only(Tensor, function, self)


@show_shapes
class Anchors(NamedTuple):
    """K pixels of images, whose depth hangs on that of a block.

    Attributes:
        image: Image of each pixel, (K,) int64.
        block: Block among those of all images, (K,) int64.
        ratio: Depth of the pixel relative to the block's, (K,).
        coords_px: Pixels (x, y), (K, 2).
    """

    image: Int[Tensor, " k"]
    block: Int[Tensor, " k"]
    ratio: Float[Tensor, " k"]
    coords_px: Float[Tensor, "k 2"]


@show_shapes
class SparseProblem(NamedTuple):
    """What the parameters are compared with.

    Attributes:
        tree: Tree of the images.
        image_hw: Height and width of each image, (S, 2).
        focal: Focal length that each image's own points have, (S,).
        median: Median depth of its blocks, (S,).
        first: Pixels of the first images of all matches.
        second: Pixels of the second images.
        confidence: Confidence of the matches, (K,).
        strong: Matches of pairs whose best match is sure, (K,) bool; the others don't count.
        weak: Pixels of each image of the other pairs, among `first` and among `second` (as indices of them), the
            image whose camera the points are in, points of the pixels' blocks, and their confidences.
    """

    tree: CameraTree
    image_hw: Tensor
    focal: Tensor
    median: Tensor
    first: Anchors
    second: Anchors
    confidence: Tensor
    strong: Tensor
    weak: tuple[tuple[Tensor, Tensor, int, Tensor, Tensor], ...]


def start_state(problem: SparseProblem, core_depth: Sequence[Tensor]) -> SparseState:
    """Return the parameters at the start.

    Args:
        problem: The problem.
        core_depth: Depth of each image's blocks, S tensors (rows, columns).
    """
    num, like = len(problem.focal), problem.focal
    identity = torch.eye(4, dtype=like.dtype, device=like.device)[3].repeat(num, 1)
    zero = like.new_zeros(num, 3)
    core = tuple(each.flatten() / median for each, median in zip(core_depth, problem.median, strict=True))
    return SparseState(identity, zero, zero[:, 0], like.log(), torch.full_like(zero[:, :2], 0.5), core)


def _focals(problem: SparseProblem, state: SparseState) -> Tensor:
    diagonal = torch.linalg.vector_norm(problem.image_hw, dim=1)
    focal = state.log_focal.exp().expand(len(diagonal))
    return torch.minimum(torch.maximum(focal, _SHORTEST * diagonal), _LONGEST * diagonal)


def _extent(problem: SparseProblem, state: SparseState) -> tuple[Tensor, Tensor, Tensor]:
    """Return focal lengths, the unit of the scene, and the distance z of each image's scene, (S,), before the unit."""
    focal, size = _focals(problem, state), state.log_size.exp()
    return focal, 1 / size.min(), size * problem.median * focal / problem.focal


def sparse_cameras(problem: SparseProblem, state: SparseState) -> Cameras:
    """Return the cameras of all images.

    Args:
        problem: The problem.
        state: Parameters.
    """
    focal, unit, distance = _extent(problem, state)
    own = quat_to_matrix(state.quat_xyzw)
    chained = {problem.tree.root: (own[problem.tree.root], state.translation[problem.tree.root])}
    for parent, child in problem.tree.edges:
        turn, place = chained[parent]
        chained[child] = (turn @ own[child], turn @ state.translation[child] + place)
    turns, places = (torch.stack([chained[image][part] for image in range(len(focal))]) for part in range(2))
    wide = problem.image_hw.flip(1)
    ahead = torch.cat([wide / focal[:, None] * (0.5 - state.principal), torch.ones_like(focal[:, None])], dim=1)
    center = unit * (places - (turns @ (distance[:, None] * ahead)[..., None]).squeeze(-1))
    zero, one = torch.zeros_like(focal), torch.ones_like(focal)
    x, y = (state.principal * wide).unbind(1)
    intrinsics = torch.stack([focal, zero, x, zero, focal, y, zero, zero, one], dim=1).unflatten(1, (3, 3))
    return Cameras(invert_rigid(torch.cat([turns, center[..., None]], dim=2)), intrinsics)


def block_depth(problem: SparseProblem, state: SparseState) -> tuple[Tensor, ...]:
    """Return the depth of the blocks of each image, S tensors.

    Args:
        problem: The problem.
        state: Parameters.
    """
    _, unit, distance = _extent(problem, state)
    size = problem.median * state.log_size.exp()
    return tuple(unit * (distance[i] + (core - 1) * size[i]) for i, core in enumerate(state.core))


def sparse_points(problem: SparseProblem, state: SparseState) -> tuple[Tensor, Tensor]:
    """Return the points of the first and of the second pixels of all matches in the world, (K, 3) each.

    Args:
        problem: The problem.
        state: Parameters.
    """
    cameras = sparse_cameras(problem, state)
    return _points(problem, state, cameras, problem.first), _points(problem, state, cameras, problem.second)


def _points(problem: SparseProblem, state: SparseState, cameras: Cameras, anchors: Anchors) -> Tensor:
    """Return the points of anchored pixels in the world, (K, 3)."""
    image, focal = anchors.image, _focals(problem, state)
    flat = torch.cat(block_depth(problem, state))
    depth = flat[anchors.block] * (1 + (anchors.ratio - 1) * (problem.focal / focal)[image])
    principal = cameras.intrinsics[:, :2, 2]
    rays = (anchors.coords_px - principal[image]) / focal[image, None]
    local = torch.cat([rays, torch.ones_like(rays[:, :1])], dim=1) * depth[:, None]
    world_from_cam = invert_rigid(cameras.cam_from_world)[image]
    return (world_from_cam[..., :3] @ local[..., None]).squeeze(-1) + world_from_cam[..., 3]


def _penalty(difference: Tensor, power: float) -> Tensor:
    """Return (‖difference‖ + o)^γ - o^γ, whose derivative is 1 at 0."""
    offset = (1 / power) ** (1 / (power - 1))
    return (torch.linalg.vector_norm(difference, dim=-1) + offset) ** power - offset**power


def coarse_loss(problem: SparseProblem, state: SparseState) -> Float[Tensor, ""]:
    """Return the loss of distances between matched points in space, ().

    Args:
        problem: The problem.
        state: Parameters.
    """
    cameras = sparse_cameras(problem, state)
    first, second = (_points(problem, state, cameras, each) for each in (problem.first, problem.second))
    weight = torch.where(problem.strong, problem.confidence, 0.0)
    loss = (weight * _penalty(first - second, _COARSE)).sum() / weight.sum().clamp(min=1e-12)
    return loss + _weak_loss(problem, cameras, (first, second))


def fine_loss(problem: SparseProblem, state: SparseState) -> Float[Tensor, ""]:
    """Return the loss of distances between pixels and projections of their partners' points, ().

    Args:
        problem: The problem.
        state: Parameters.
    """
    cameras = sparse_cameras(problem, state)
    first, second = (_points(problem, state, cameras, each) for each in (problem.first, problem.second))
    weight = torch.where(problem.strong, problem.confidence, 0.0)
    loss = weight.new_zeros(())
    for points, anchors in ((second, problem.first), (first, problem.second)):
        pose, intrinsics = (each[anchors.image] for each in cameras)
        seen = (intrinsics @ ((pose[..., :3] @ points[..., None]) + pose[..., 3:])).squeeze(-1)
        projected = (seen[:, :2] / seen[:, 2:].clamp(min=_LEAST_DEPTH)).clamp(_LEAST_PX, _MOST_PX)
        loss = loss + (weight * _penalty(projected - anchors.coords_px, _FINE)).sum()
    loss = loss / (2 * weight.sum()).clamp(min=1e-12)
    return loss + _weak_loss(problem, cameras, (first, second))


def _weak_loss(problem: SparseProblem, cameras: Cameras, points: tuple[Tensor, Tensor]) -> Tensor:
    """Return what pairs without sure matches add: distances to what the other image's pass says of their points."""
    total = sure = points[0].new_zeros(())
    world_from_cam = invert_rigid(cameras.cam_from_world)
    for first, second, camera, target, confidence in problem.weak:
        own = torch.cat([points[0][first], points[1][second]])
        pose = world_from_cam[camera]
        distance = _penalty(own - (target @ pose[:, :3].mT + pose[:, 3]), _WEAK)
        total, sure = total + (confidence * distance).sum(), sure + confidence.sum()
    return _WEAK_SHARE * total / sure.clamp(min=1e-12)
