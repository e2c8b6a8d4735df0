"""What global alignment minimises: distances between point maps of pairs, moved to the world, and the points of images.

The parameters are the published ones (DUSt3R, Wang et al. 2024, section 3.4), so that its learning rates fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from geomtx.geometry.rotation import quat_to_matrix
from geomtx.inference.pair_graphs import name_images
from geomtx.inference.pair_maps import PairMaps
from geomtx.types import Float, Int, show_shapes

__all__ = [
    "AlignmentData",
    "AlignmentState",
    "ConfidenceWeight",
    "alignment_loss",
    "camera_parameters",
    "image_points",
    "pack_pairs",
    "pair_transforms",
    "pose_parameters",
    "principal_parameters",
]

ConfidenceWeight = Literal["log", "sqrt", "minus_one", "none"]
"""Weight of a pixel of confidence C: log C, √C, C - 1 or C."""

BASE_SCALE = 0.5
"""Geometric mean of the scales of pairs; without one, a scene of no size would be the best."""
_FOCAL_UNIT, _PRINCIPAL_UNIT, _ADAPTOR_UNIT = 20.0, 10.0, 20.0
_NUMBERS_AT_ONCE = 1 << 20  # points of pairs whose distances are computed together

_WEIGHTS = {
    "log": torch.log,
    "sqrt": torch.sqrt,
    "minus_one": lambda confidence: confidence - 1,
    "none": lambda confidence: confidence,
}
_LEAST_CONFIDENCE = {"log": "above 1", "minus_one": "above 1", "sqrt": "above 0", "none": "above 0"}


@show_shapes
class AlignmentState(NamedTuple):
    """Parameters of S images and E pairs.

    Attributes:
        poses: Camera-to-world poses of the images, (S, 7): quaternion xyzw of any length, and τ with a translation of
            sign(τ) (e^|τ| - 1).
        focals: φ with a focal length of e^(φ/20) pixels, (S, 1), or (1, 1) if all images share it.
        principal: o with the principal point (W/2, H/2) + 10·o, (S, 2).
        log_depth: Logarithm of each image's depth, S tensors (H, W).
        pair_poses: Pose of each pair as above, and σ with a scale of e^σ, (E, 8).
        adaptors: Two numbers a of each pair, (E, 2): its points are multiplied by e^(·/20) of (a₀, a₀, a₁) less the
            mean of the three; where scales are free, the mean stays.
    """

    poses: Float[Tensor, "s 7"]
    focals: Float[Tensor, "k 1"]
    principal: Float[Tensor, "s 2"]
    log_depth: tuple[Tensor, ...]
    pair_poses: Float[Tensor, "e 8"]
    adaptors: Float[Tensor, "e 2"]

    def map(self, function: Callable[[Tensor], Tensor]) -> AlignmentState:
        """Return the parameters with a function applied to each tensor."""
        return tree_map_only(Tensor, function, self)


@show_shapes
class AlignmentData(NamedTuple):
    """Point maps of pairs with their pixels in one axis, padded to the largest image: first images, then second ones.

    Attributes:
        image: Image of each map, (2·E,).
        pair: Pair of each map, (2·E,).
        points: Points in the camera of the pair's first image, (2·E, N, 3); 0 in the padding.
        weight: Weight of each distance in the loss, (2·E, N); 0 in the padding.
        coords_px: Pixel (x, y) of each point relative to the middle of its image (W/2, H/2), (S, N, 2).
        sizes: Height and width of each image.
    """

    image: Int[Tensor, " m"]
    pair: Int[Tensor, " m"]
    points: Float[Tensor, "m n 3"]
    weight: Float[Tensor, "m n"]
    coords_px: Float[Tensor, "s n 2"]
    sizes: tuple[tuple[int, int], ...]


def pack_pairs(
    maps: PairMaps,
    sizes: Sequence[tuple[int, int]],
    *,
    confidence: ConfidenceWeight = "log",
    by_pair: bool = False,
    device: torch.device | None = None,
) -> AlignmentData:
    """Return the maps as alignment reads them, in float32 or better, as `AlignmentData`.

    Args:
        maps: Point maps of the pairs.
        sizes: Height and width of each image.
        confidence: Rule for the weight of a confidence; one that would weigh less than 0 weighs nothing.
        by_pair: Whether the loss is the mean over pairs of the mean over each image's pixels, in place of the sum of
            all distances over the number of pixels; the two agree for images of one size.
        device: Device to compute on; defaults to the device of the points.

    Raises:
        ValueError: If no pixel of an image weighs anything in any of its pairs.
    """
    num_pairs, num_pixels = len(maps.pairs), max(height * width for height, width in sizes)
    dtype = torch.promote_types(maps.points1[0].dtype, torch.float32)
    device = device or maps.points1[0].device
    points = torch.zeros(2 * num_pairs, num_pixels, 3, dtype=dtype, device=device)
    weight = torch.zeros(2 * num_pairs, num_pixels, dtype=dtype, device=device)
    image = maps.pairs.T.flatten().to(device)
    for side in range(2):
        total = sum(sizes[each][0] * sizes[each][1] for each in maps.pairs[:, side].tolist())
        for index in range(num_pairs):
            own, sure = (value.to(device, dtype).flatten(0, 1) for value in maps.side(index, side))
            row, count = side * num_pairs + index, len(sure)
            value = _WEIGHTS[confidence](sure.clamp(min=0)).clamp(min=0)
            points[row, :count], weight[row, :count] = own, value / (num_pairs * count if by_pair else total)
    coords = torch.zeros(len(sizes), num_pixels, 2, dtype=dtype, device=device)
    for index, (height, width) in enumerate(sizes):
        y, x = (torch.arange(size, dtype=dtype, device=device) - size / 2 for size in (height, width))
        coords[index, : height * width] = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)
    pair = torch.arange(num_pairs, device=device).repeat(2)
    of_image = weight.new_zeros(len(sizes)).index_add_(0, image, weight.sum(1))
    nothing = (of_image == 0).nonzero()[:, 0].tolist()
    if nothing:
        raise ValueError(
            f"confidence must be {_LEAST_CONFIDENCE[confidence]} somewhere in each image to weigh by {confidence!r}, "
            f"got less everywhere in {name_images(nothing)}"
        )
    return AlignmentData(image, pair, points, weight, coords, tuple(sizes))


def pose_parameters(rotation_quat: Tensor, translation: Tensor) -> Tensor:
    """Return the published seven numbers (..., 7) of quaternions (..., 4) and translations (..., 3)."""
    return torch.cat([rotation_quat, translation.sign() * translation.abs().log1p()], dim=-1)


def camera_parameters(state: AlignmentState) -> tuple[Tensor, Tensor, Tensor]:
    """Return camera-to-world poses (S, 3, 4), focal lengths (S,), and principal points (S, 2) less the middle, in px.

    Args:
        state: Parameters.
    """
    focal = (state.focals / _FOCAL_UNIT).exp()[:, 0].expand(len(state.poses))
    return _poses(state.poses), focal, _PRINCIPAL_UNIT * state.principal


def focal_parameters(focal_px: Tensor) -> Tensor:
    """Return φ, (S, 1), of focal lengths (S,)."""
    return _FOCAL_UNIT * focal_px.log()[:, None]


def principal_parameters(offset_px: Tensor) -> Tensor:
    """Return o, (S, 2), of principal points less the middle of their images, (S, 2)."""
    return offset_px / _PRINCIPAL_UNIT


def _poses(parameters: Tensor) -> Tensor:
    tau = parameters[:, 4:7]
    translation = tau.sign() * tau.abs().expm1()
    return torch.cat([quat_to_matrix(parameters[:, :4]), translation[..., None]], dim=-1)


def image_points(data: AlignmentData, state: AlignmentState) -> Float[Tensor, "s n 3"]:
    """Return the points of all images in the world, (S, N, 3); those of the padding are the camera's centre.

    Args:
        data: Pixels of the images.
        state: Parameters.
    """
    poses, focal, principal = camera_parameters(state)
    num = data.coords_px.shape[1]
    flat = [each.flatten() for each in state.log_depth]
    depth = torch.stack([torch.nn.functional.pad(each.exp(), (0, num - len(each))) for each in flat])
    rays = (data.coords_px - principal[:, None]) / focal[:, None, None]
    local = torch.cat([rays * depth[..., None], depth[..., None]], dim=-1)
    return local @ poses[..., :3].mT + poses[:, None, :, 3]


def pair_transforms(state: AlignmentState, *, free_scale: bool = False) -> Float[Tensor, "e 3 4"]:
    """Return the matrices that move the points of each pair to the world, (E, 3, 4).

    Args:
        state: Parameters.
        free_scale: Whether scales are e^σ, as with known cameras; by default their geometric mean is held at 0.5.
    """
    sigma, adaptors = state.pair_poses[:, 7], state.adaptors
    scale = sigma.exp() if free_scale else BASE_SCALE * (sigma - sigma.mean()).exp()
    three = torch.cat([adaptors[:, :1], adaptors], dim=1)
    stretch = ((three if free_scale else three - three.mean(1, keepdim=True)) / _ADAPTOR_UNIT).exp()
    pose = scale[:, None, None] * _poses(state.pair_poses[:, :7])
    return torch.cat([pose[..., :3] * stretch[:, None], pose[..., 3:]], dim=-1)


def alignment_loss(
    data: AlignmentData, state: AlignmentState, *, squared: bool = False, free_scale: bool = False
) -> Float[Tensor, ""]:
    """Return the published loss, the weighted sum of distances between images' and pairs' points, ().

    Value and gradient are computed together, some maps at a time, so that the memory in use beside the maps doesn't
    depend on their number.

    Args:
        data: Point maps of the pairs.
        state: Parameters.
        squared: Whether distances are squared ("l2"); by default they are not ("l1").
        free_scale: Whether the mean scale of pairs is free, see `pair_transforms`.
    """
    transforms = pair_transforms(state, free_scale=free_scale)
    result: Tensor = _Distances.apply(data, image_points(data, state), transforms, squared)
    return result


def map_chunks(data: AlignmentData, factor: int = 1) -> list[slice]:
    """Return consecutive maps that are worked on together, fewer by a factor where each point takes more memory."""
    at_once = max(1, _NUMBERS_AT_ONCE // (factor * data.points.shape[1]))
    return [slice(start, start + at_once) for start in range(0, len(data.image), at_once)]


class _Distances(torch.autograd.Function):
    """Weighted sum of distances; the gradient is that of its single pass over the maps."""

    @staticmethod
    def forward(ctx: Any, data: AlignmentData, world: Tensor, transforms: Tensor, squared: bool) -> Tensor:
        total, by_world, by_transform = world.new_zeros(()), torch.zeros_like(world), torch.zeros_like(transforms)
        for some in map_chunks(data):
            image, pair, points = data.image[some], data.pair[some], data.points[some]
            move = transforms[pair]
            difference = torch.baddbmm(move[:, None, :, 3], points, move[..., :3].mT, beta=-1, alpha=-1)
            difference += world[image]
            distance = torch.linalg.vector_norm(difference, dim=-1)
            weight = data.weight[some]
            if squared:
                total += (weight * distance.square()).sum()
                difference *= (2 * weight)[..., None]
            else:
                total += (weight * distance).sum()
                difference *= torch.where(distance > 0, weight / distance, 0.0)[..., None]
            by_world.index_add_(0, image, difference)
            by_move = torch.cat([difference.mT @ points, difference.sum(1)[..., None]], dim=-1)
            by_transform.index_add_(0, pair, by_move, alpha=-1)
        ctx.save_for_backward(by_world, by_transform)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor, None]:
        by_world, by_transform = ctx.saved_tensors
        return None, gradients[0] * by_world, gradients[0] * by_transform, None
