"""A faster way to the minimum of global alignment: reweighted least squares, in two alternating blocks.

With each distance weighted by its inverse, the loss is a sum of squares that touches it from above (Weiszfeld 1937). In
it, the depth of each pixel has a closed form, given cameras and pairs. Cameras, focal lengths and one factor for the
depth of each image are solved together with the similarities of pairs, by a damped Gauss-Newton step: a pair touches
two images alone, so pairs are eliminated (Schur complement), and what is left has eight unknowns an image. All that a
step needs of a map is the second moments of ten numbers a pixel. Most rounds look at some of the pixels only.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.geometry.rotation import matrix_to_quat
from geomtx.scene.pairs.fitting import Progress
from geomtx.scene.pairs.objective import (
    BASE_SCALE,
    AlignmentData,
    AlignmentState,
    alignment_loss,
    camera_parameters,
    focal_parameters,
    map_chunks,
    pair_transforms,
    pose_parameters,
)
from geomtx.types import show_shapes

__all__ = ["FixedCameras", "solve_reweighted"]

_SHARE = 16  # one of so many pixels in the first rounds
_LEAST_PIXELS = 512
# Rounds at most, and the relative change of the loss in a round that ends them. Poses still become much better while
# the loss hardly falls, and rounds on some of the pixels are cheap.
_COARSE, _FINE = (200, 1e-6), (20, 1e-5)
_DEPTH_ROUNDS = 3
# A distance counts as at least this share of the mean one, as a weight is the inverse of a distance: pixels that fit
# exactly, as all do of the pairs along which the start was made, would otherwise outweigh the others and never move.
# The share is halved in each round, down to the last one.
_FIRST_FLOOR, _LAST_FLOOR = 1.0, 3e-3
_DAMPING, _LARGEST_DAMPING = 1e-4, 1e4
_LEAST_SCALE = 1e-30
_IMAGE, _PAIR = 8, 7  # unknowns: rotation, translation, log scale; and of images log focal length
_NUMBERS = 10  # of a pixel: its point and the pair's, both from their own centres, their difference, and 1


@show_shapes
class FixedCameras(NamedTuple):
    """What is known.

    Attributes:
        poses: Images whose poses are known, (S,) bool.
        focals: Images whose focal lengths are known, (S,) bool.
        shared_focal: Whether all images have one focal length.
    """

    poses: Tensor
    focals: Tensor
    shared_focal: bool

    @property
    def free_scale(self) -> bool:
        """Whether the scale of the scene comes of known poses."""
        return bool(self.poses.any())


class _Scene(NamedTuple):
    """Cameras-to-world (S, 3, 3), (S, 3), focal lengths (S,), depth (S, N), and the similarities of pairs (E, …)."""

    rotation: Tensor
    center: Tensor
    focal: Tensor
    depth: Tensor
    pair_rotation: Tensor
    pair_center: Tensor
    pair_scale: Tensor


def solve_reweighted(
    data: AlignmentData,
    state: AlignmentState,
    fixed: FixedCameras,
    *,
    squared: bool = False,
    progress: Progress = lambda share: None,
) -> tuple[AlignmentState, Tensor, int]:
    """Return the parameters at the minimum, the loss before and after, (2,), and the number of rounds.

    Adaptors must be zero, and principal points stay.

    Args:
        data: Point maps of the pairs.
        state: Start.
        fixed: Known cameras, which are held.
        squared: Whether distances are squared.
        progress: Called with the share of the work that is done since the last call, by the rounds that are left.
    """
    free = fixed.free_scale
    with torch.no_grad():
        before = alignment_loss(data, state, squared=squared, free_scale=free)
        scene = _read(data, state, free)
        data = data._replace(coords_px=data.coords_px - camera_parameters(state)[2][:, None])
        num_pixels = data.coords_px.shape[1]
        total = data.weight.sum()
        # Of maps that fit to the last digit, the precision is the floor.
        floor = torch.maximum(_FIRST_FLOOR * before / total, 1e-5 * scene.depth.mean())
        least = _LAST_FLOOR / _FIRST_FLOOR * floor
        rounds = 0
        num = max(num_pixels // _SHARE, _LEAST_PIXELS)
        if num < num_pixels:
            generator = torch.Generator().manual_seed(0)
            some = torch.randperm(num_pixels, generator=generator)[:num].sort().values.to(data.points.device)
            few = data._replace(
                points=data.points[:, some], weight=data.weight[:, some], coords_px=data.coords_px[:, some]
            )
            coarse = scene._replace(depth=scene.depth[:, some])
            coarse, floor, made = _alternate(few, coarse, fixed, (floor, least, squared), _COARSE)
            rounds += made
            progress(0.5)
            depth = scene.depth * (coarse.depth / scene.depth[:, some]).nan_to_num(1.0).median(1, keepdim=True).values
            depth[:, some] = coarse.depth
            scene = coarse._replace(depth=depth)
            for _ in range(_DEPTH_ROUNDS):
                scene = scene._replace(depth=_find_depth(data, scene, floor, squared)[0])
            floor = least
        last = _FINE if num < num_pixels else _COARSE
        scene, _, made = _alternate(data, scene, fixed, (floor, least, squared), last)
        progress(0.5 if num < num_pixels else 1.0)
        state = _write(state, scene, data.sizes, fixed)
        after = alignment_loss(
            data,
            state._replace(principal=torch.zeros_like(state.principal)),
            squared=squared,
            free_scale=fixed.free_scale,
        )
    return state, torch.stack([before, after]), rounds + made


def _alternate(
    data: AlignmentData,
    scene: _Scene,
    fixed: FixedCameras,
    settings: tuple[Tensor, Tensor, bool],
    until: tuple[int, float],
) -> tuple[_Scene, Tensor, int]:
    """Alternate steps of cameras and pairs with steps of the depth; returns the scene, the floor, and the rounds."""
    (floor, least, squared), (rounds, tolerance) = settings, until
    damping, last = _DAMPING, None
    for index in range(rounds):
        merit, moments = _find_moments(data, scene, floor, squared)
        if last is not None and bool(floor <= least) and bool(last - merit < tolerance * last):
            return scene, floor, index
        last = merit
        system = _normal_equations(data, scene, moments)
        while damping < _LARGEST_DAMPING:
            tried = _step(scene, _solve(data, system, fixed, damping), fixed)
            depth, after = _find_depth(data, tried, floor, squared)
            if bool(after <= merit):
                scene, damping = tried._replace(depth=depth), max(damping / 4, 1e-9)
                break
            damping *= 8
        else:
            return scene, floor, index
        floor = torch.maximum(floor / 2, least)
    return scene, floor, rounds


def _local(data: AlignmentData, scene: _Scene) -> Tensor:
    """Return the points of images from their own cameras, along the axes of the world, (S, N, 3)."""
    rays = data.coords_px / scene.focal[:, None, None]
    return (torch.cat([rays, torch.ones_like(rays[..., :1])], dim=-1) * scene.depth[..., None]) @ scene.rotation.mT


def _weigh(weight: Tensor, difference: Tensor, floor: Tensor, squared: bool) -> tuple[Tensor, Tensor]:
    """Return the weights of squares, and the sum of distances, those below the floor rounded off (m, N)."""
    square = difference.square().sum(-1)
    if squared:
        return 2 * weight, (weight * square).sum()
    distance = (square + floor.square()).sqrt()
    return weight / distance, (weight * distance).sum()


def _find_moments(data: AlignmentData, scene: _Scene, floor: Tensor, squared: bool) -> tuple[Tensor, Tensor]:
    """Return the loss, and the second moments of each map, (2·E, 10, 10) in float64 on the host."""
    own, parts, total = _local(data, scene), [], floor.new_zeros(())
    turn = scene.pair_scale[:, None, None] * scene.pair_rotation
    for some in map_chunks(data, 4):
        image, pair = data.image[some], data.pair[some]
        near, far = own[image], data.points[some] @ turn[pair].mT
        difference = near - far + (scene.center[image] - scene.pair_center[pair])[:, None]
        weight, loss = _weigh(data.weight[some], difference, floor, squared)
        total += loss
        numbers = torch.cat([near, far, difference, torch.ones_like(near[..., :1])], dim=-1)
        parts.append((numbers * weight[..., None]).mT @ numbers)
    return total, torch.cat(parts).cpu().double()


def _find_depth(data: AlignmentData, scene: _Scene, floor: Tensor, squared: bool) -> tuple[Tensor, Tensor]:
    """Return the best depth for the weights of the present one, (S, N), and the loss of the present one."""
    rays = _local(data, scene._replace(depth=torch.ones_like(scene.depth)))
    along, square = torch.zeros_like(scene.depth), torch.zeros_like(scene.depth)
    turn, total = scene.pair_scale[:, None, None] * scene.pair_rotation, floor.new_zeros(())
    for some in map_chunks(data, 2):
        image, pair = data.image[some], data.pair[some]
        ray = rays[image]
        seen = data.points[some] @ turn[pair].mT + (scene.pair_center[pair] - scene.center[image])[:, None]
        difference = scene.depth[image][..., None] * ray - seen
        weight, loss = _weigh(data.weight[some], difference, floor, squared)
        total += loss
        along.index_add_(0, image, weight * (ray * seen).sum(-1))
        square.index_add_(0, image, weight)
    depth = along / (square * rays.square().sum(-1))
    # A pixel that doesn't count, or whose pairs lie behind its camera, stays.
    return torch.where(depth > 0, depth, scene.depth), total


class _System(NamedTuple):
    """Blocks of the normal equations: images (S, 8, 8), pairs (E, 7, 7), both (2·E, 8, 7), and their sides."""

    images: Tensor
    pairs: Tensor
    both: Tensor
    image_side: Tensor
    pair_side: Tensor


def _normal_equations(data: AlignmentData, scene: _Scene, moments: Tensor) -> _System:
    image, pair = data.image.cpu(), data.pair.cpu()
    eye = torch.eye(3, dtype=torch.float64)
    cross = torch.zeros(3, 3, 3, dtype=torch.float64)  # rotation, component, coordinate
    for axis in range(3):
        cross[axis, (axis + 2) % 3, (axis + 1) % 3] = 1
        cross[axis, (axis + 1) % 3, (axis + 2) % 3] = -1
    # Each column of the Jacobian is linear in the ten numbers of a pixel.
    columns = torch.zeros(len(image), _IMAGE + _PAIR, 3, _NUMBERS, dtype=torch.float64)
    for first, place, sign in ((0, slice(0, 3), 1), (_IMAGE, slice(3, 6), -1)):
        columns[:, first : first + 3, :, place] = sign * cross
        columns[:, first + 3 : first + 6, :, 9] = sign * eye
        columns[:, first + 6, :, place] = sign * eye
    forward = scene.rotation[..., 2].cpu().double()[image]
    columns[:, 7, :, 0:3] = forward[:, :, None] * forward[:, None] - eye
    weighted = torch.einsum("mkca,mab->mkcb", columns, moments)
    square = torch.einsum("mkcb,mlcb->mkl", weighted, columns)
    side = -torch.einsum("mkcc->mk", weighted[..., 6:9])
    num_images, num_pairs = len(data.sizes), len(pair) // 2
    images = square.new_zeros(num_images, _IMAGE, _IMAGE).index_add_(0, image, square[:, :_IMAGE, :_IMAGE])
    pairs = square.new_zeros(num_pairs, _PAIR, _PAIR).index_add_(0, pair, square[:, _IMAGE:, _IMAGE:])
    image_side = side.new_zeros(num_images, _IMAGE).index_add_(0, image, side[:, :_IMAGE])
    pair_side = side.new_zeros(num_pairs, _PAIR).index_add_(0, pair, side[:, _IMAGE:])
    return _System(images, pairs, square[:, :_IMAGE, _IMAGE:], image_side, pair_side)


def _solve(data: AlignmentData, system: _System, fixed: FixedCameras, damping: float) -> tuple[Tensor, Tensor]:
    """Return the steps of images (S, 8) and pairs (E, 7)."""
    num_images, num_pairs = len(system.images), len(system.pairs)
    image = data.image.cpu().unflatten(0, (2, num_pairs))
    images, pairs = (each + damping * torch.diag_embed(each.diagonal(dim1=1, dim2=2)) for each in system[:2])
    tiny = 1e-12 * pairs.diagonal(dim1=1, dim2=2).mean()
    inverse = torch.linalg.inv(pairs + tiny * torch.eye(_PAIR, dtype=torch.float64))
    both = system.both.unflatten(0, (2, num_pairs))
    # A second right side: what holds the mean of the logarithms of the scales.
    sides = torch.stack([system.pair_side, torch.zeros_like(system.pair_side)], dim=-1)
    sides[:, 6, 1] = 1
    reduced = torch.stack([system.image_side, torch.zeros_like(system.image_side)], dim=-1)
    whole = images.new_zeros(num_images * num_images, _IMAGE, _IMAGE)
    whole.index_add_(0, torch.arange(num_images) * (num_images + 1), images)
    for first in range(2):
        product = both[first] @ inverse
        reduced = reduced.index_add(0, image[first], product @ sides, alpha=-1)
        for second in range(2):
            whole.index_add_(0, image[first] * num_images + image[second], product @ both[second].mT, alpha=-1)
    matrix = whole.view(num_images, num_images, _IMAGE, _IMAGE).transpose(1, 2).flatten(2).flatten(0, 1)
    free = _free_columns(num_images, fixed)
    matrix = free.mT @ matrix @ free
    matrix = matrix + tiny * torch.eye(len(matrix), dtype=torch.float64)
    by_image = (free @ torch.linalg.solve(matrix, free.mT @ reduced.flatten(0, 1))).unflatten(0, (num_images, _IMAGE))
    by_pair = inverse @ (sides - both[0].mT @ by_image[image[0]] - both[1].mT @ by_image[image[1]])
    if fixed.free_scale:
        return by_image[..., 0], by_pair[..., 0]
    share = by_pair[:, 6, 0].sum() / by_pair[:, 6, 1].sum()
    return by_image[..., 0] - share * by_image[..., 1], by_pair[..., 0] - share * by_pair[..., 1]


def _free_columns(num_images: int, fixed: FixedCameras) -> Tensor:
    """Return the matrix from free unknowns to those of all images, (8·S, K)."""
    columns = torch.eye(num_images * _IMAGE, dtype=torch.float64)
    free = torch.ones(num_images, _IMAGE, dtype=torch.bool)
    free[fixed.poses.cpu(), :6] = False
    free[:, 7] = ~fixed.focals.cpu()
    if fixed.shared_focal:
        columns[:, 7] = columns[:, 7::_IMAGE].sum(1)
        free[1:, 7] = False
    return columns[:, free.flatten()]


def _step(scene: _Scene, steps: tuple[Tensor, Tensor], fixed: FixedCameras) -> _Scene:
    import roma

    image, pair = (each.to(scene.focal.dtype).to(scene.focal.device) for each in steps)
    moved = _Scene(
        roma.rotvec_to_rotmat(image[:, :3]) @ scene.rotation,
        scene.center + image[:, 3:6],
        scene.focal * image[:, 7].exp(),
        scene.depth * image[:, 6, None].exp(),
        roma.rotvec_to_rotmat(pair[:, :3]) @ scene.pair_rotation,
        scene.pair_center + pair[:, 3:6],
        scene.pair_scale * pair[:, 6].exp(),
    )
    if fixed.free_scale:
        return moved
    factor = BASE_SCALE * (-moved.pair_scale.log().mean()).exp()
    return moved._replace(
        center=factor * moved.center,
        depth=factor * moved.depth,
        pair_center=factor * moved.pair_center,
        pair_scale=factor * moved.pair_scale,
    )


def _read(data: AlignmentData, state: AlignmentState, free_scale: bool) -> _Scene:
    poses, focal, _ = camera_parameters(state)
    transforms = pair_transforms(state._replace(adaptors=torch.zeros_like(state.adaptors)), free_scale=free_scale)
    scale = torch.linalg.vector_norm(transforms[..., :3], dim=(1, 2)) / 3**0.5
    depth = data.coords_px.new_zeros(data.coords_px.shape[:2])
    for index, each in enumerate(state.log_depth):
        depth[index, : each.numel()] = each.flatten().exp()
    turn = transforms[..., :3] / scale[:, None, None]
    return _Scene(poses[..., :3], poses[..., 3], focal, depth, turn, transforms[..., 3], scale)


def _write(
    state: AlignmentState, scene: _Scene, sizes: tuple[tuple[int, int], ...], fixed: FixedCameras
) -> AlignmentState:
    # Of maps that contradict known poses, scales and depth shrink to 0, which has no logarithm.
    scale = scene.pair_scale.clamp(min=_LEAST_SCALE)
    pose = pose_parameters(matrix_to_quat(scene.pair_rotation), scene.pair_center / scale[:, None])
    focals = focal_parameters(scene.focal)
    poses = pose_parameters(matrix_to_quat(scene.rotation), scene.center)
    return state._replace(
        poses=torch.where(fixed.poses[:, None], state.poses, poses),
        focals=focals[:1] if fixed.shared_focal else focals,
        log_depth=tuple(
            each[: height * width].clamp(min=torch.finfo(each.dtype).tiny).log().view(height, width)
            for each, (height, width) in zip(scene.depth, sizes, strict=True)
        ),
        pair_poses=torch.cat([pose, scale.log()[:, None]], dim=1),
    )
