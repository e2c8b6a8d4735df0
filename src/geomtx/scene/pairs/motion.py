"""What global alignment of a video adds: smooth cameras, optical flow of what stands still, and what moves.

Facts of MonST3R (Zhang et al. 2024), section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from geomtx.checks import check_at_least, check_mask, check_shape
from geomtx.scene.pairs.objective import AlignmentState, camera_parameters
from geomtx.scene.pairs.two_views import intrinsics_of
from geomtx.types import Bool, Float, Int, show_shapes

__all__ = [
    "MotionTerms",
    "camera_flow",
    "check_motion",
    "consistent_flow",
    "depth_term",
    "flow_term",
    "motion_loss",
    "moving_pixels",
    "smoothness_terms",
]

_TINY = 1e-6
_LARGEST_ERROR = 50.0  # of the smooth L1 distance of one component of the flow
_MOVING = 0.35  # of the largest error of a map
_CONSISTENT_PX = 3.0


@show_shapes
class MotionTerms(NamedTuple):
    """Terms that global alignment of a video adds to its loss; all frames have one size.

    Attributes:
        flow: Optical flow in pixels from the first to the second image of each pair, and back, (E, 2, H, W) each;
            defaults to none.
        moving: Pixels of each image that move by themselves, (S, H, W) bool, where the flow doesn't count; defaults to
            none.
        smoothness_weight: Weight of the changes between neighbouring cameras.
        flow_weight: Weight of the flow's errors.
        depth_weight: Weight of the depth's change from its start.
        translation_weight: Weight of translations within the smoothness.
        flow_start: Share of all steps after which the flow counts.
        largest_flow_error: Total of the flow's term above which it counts as 0; 0 for no limit.
    """

    flow: tuple[Tensor, Tensor] | None = None
    moving: Tensor | None = None
    smoothness_weight: float = 0.01
    flow_weight: float = 0.01
    depth_weight: float = 0.0
    translation_weight: float = 1.0
    flow_start: float = 0.1
    largest_flow_error: float = 25.0


def check_motion(terms: MotionTerms, num_pairs: int, sizes: Sequence[tuple[int, int]]) -> None:
    """Require terms of the right shapes.

    Args:
        terms: The terms.
        num_pairs: Number of pairs.
        sizes: Height and width of each frame.

    Raises:
        ValueError: If frames differ in size, or a shape or a weight is another one.
    """
    if len(set(sizes)) > 1:
        raise ValueError(
            f"frames of a video must have one size, got {sizes[0]} and {next(s for s in sizes if s != sizes[0])}"
        )
    for side, each in enumerate(terms.flow or ()):
        check_shape(f"flow[{side}]", each, (num_pairs, 2, *sizes[0]))
    if terms.moving is not None:
        check_mask("moving", terms.moving, (len(sizes), *sizes[0]))
    for name in ("smoothness_weight", "flow_weight", "depth_weight", "translation_weight"):
        check_at_least(name, getattr(terms, name), 0)


def camera_flow(
    depth: Float[Tensor, "n h w"], first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]
) -> Float[Tensor, "n 2 h w"]:
    """Return the flow in pixels that the motion of cameras gives what stands still, (N, 2, H, W).

    Args:
        depth: Depth of the first images, (N, H, W).
        first: Camera-to-world poses (N, 3, 4) and intrinsics (N, 3, 3) of the first images.
        second: Cameras of the second images.
    """
    (pose1, intrinsics1), (pose2, intrinsics2) = first, second
    height, width = depth.shape[-2:]
    y, x = (torch.arange(size, dtype=depth.dtype, device=depth.device) for size in (height, width))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"))
    pixels = torch.cat([grid, torch.ones_like(grid[:1])]).flatten(1)
    turn = intrinsics2 @ pose2[..., :3].mT
    over = turn @ pose1[..., :3] @ torch.linalg.inv(intrinsics1)
    shift = turn @ (pose1[..., 3:] - pose2[..., 3:])
    seen = over @ pixels + shift / (depth.flatten(1)[:, None] + _TINY)
    return (seen[:, :2] / (seen[:, 2:] + _TINY)).unflatten(-1, (height, width)) - grid


def flow_term(
    pairs: Int[Tensor, "e 2"],
    depth: Float[Tensor, "s h w"],
    cameras: tuple[Tensor, Tensor],
    flow: tuple[Tensor, Tensor],
    moving: Tensor | None = None,
) -> Float[Tensor, ""]:
    """Return the mean smooth L1 distance between the cameras' flow and optical flow, forwards and backwards added, ().

    Components of which it is 50 or more don't count.

    Args:
        pairs: Two images each, (E, 2).
        depth: Depth of the images, (S, H, W).
        cameras: Camera-to-world poses (S, 3, 4) and intrinsics (S, 3, 3).
        flow: Optical flow of the pairs and back, (E, 2, H, W) each.
        moving: Pixels that move by themselves, which don't count, (S, H, W) bool; defaults to none.
    """
    total = depth.new_zeros(())
    for (one, two), target in zip((pairs.T, pairs.T.flip(0)), flow, strict=True):
        first, second = (tuple(each[index] for each in cameras) for index in (one, two))
        induced = camera_flow(depth[one], (first[0], first[1]), (second[0], second[1]))
        error = F.smooth_l1_loss(induced, target, reduction="none")
        counts = error < _LARGEST_ERROR
        if moving is not None:
            counts = counts & ~moving[one][:, None]
        total = total + torch.where(counts, error, 0.0).sum() / counts.sum().clamp(min=1)
    return total


def smoothness_terms(poses: Float[Tensor, "s 3 4"], translation_weight: float = 1.0) -> Float[Tensor, " t"]:
    """Return how much each camera differs from the one before, (S - 1,).

    Args:
        poses: Camera-to-world poses in the order of time, (S, 3, 4).
        translation_weight: Weight of the length of the translation; the rotation's is 1.
    """
    before, after = poses[:-1], poses[1:]
    turn = before[..., :3].mT @ after[..., :3] - torch.eye(3, dtype=poses.dtype, device=poses.device)
    shift = before[..., :3].mT @ (after[..., 3] - before[..., 3])[..., None]
    return torch.linalg.vector_norm(turn, dim=(1, 2)) + translation_weight * torch.linalg.vector_norm(shift, dim=(1, 2))


def depth_term(
    depth: Float[Tensor, "s h w"], start: Float[Tensor, "s h w"], moving: Tensor | None = None
) -> Float[Tensor, ""]:
    """Return how much the logarithm of the depth has changed, up to a factor for each image, ().

    Args:
        depth: Depth, (S, H, W).
        start: Depth at the start, (S, H, W).
        moving: Pixels that count twice, (S, H, W) bool; defaults to none.
    """
    change = depth.clamp(min=_TINY).log() - start.clamp(min=_TINY).log()
    change = change - change.mean((1, 2), keepdim=True)
    weight = 1.0 if moving is None else 1 + moving.to(change.dtype)
    return (weight * change.square()).mean()


def motion_loss(
    pairs: Int[Tensor, "e 2"], state: AlignmentState, terms: MotionTerms, start: Tensor | None, progress: float
) -> Float[Tensor, ""]:
    """Return what the terms add to the loss of alignment, ().

    Args:
        pairs: Two images each, (E, 2).
        state: Parameters, of images of one size.
        terms: The terms.
        start: Depth at the start, (S, H, W); needed where its term counts.
        progress: Share of all steps that are made.
    """
    poses, focals, principal = camera_parameters(state)
    sizes = [(each.shape[0], each.shape[1]) for each in state.log_depth]
    depth = torch.stack(state.log_depth).exp()
    total = terms.smoothness_weight * smoothness_terms(poses, terms.translation_weight).sum()
    if terms.flow is not None and terms.flow_weight and progress >= terms.flow_start:
        cameras = poses, intrinsics_of(focals, principal, sizes)
        value = flow_term(pairs, depth, cameras, terms.flow, terms.moving)
        limit = terms.largest_flow_error
        total = total + terms.flow_weight * (value if not limit else torch.where(value > limit, 0.0, value))
    if start is not None and terms.depth_weight:
        total = total + terms.depth_weight * depth_term(depth, start, terms.moving)
    return total


def moving_pixels(
    pairs: Int[Tensor, "e 2"], induced: Float[Tensor, "e 2 h w"], flow: Float[Tensor, "e 2 h w"], num_images: int
) -> Bool[Tensor, "s h w"]:
    """Return the pixels of each image that move by themselves: whose flow isn't that of the cameras, (S, H, W).

    Errors are scaled to 0 … 1 in each map, and averaged over the pairs that start at an image; from 0.35 on, a pixel
    moves.

    Args:
        pairs: Two images each, (E, 2).
        induced: Flow of the cameras from the first to the second image, (E, 2, H, W).
        flow: Optical flow likewise.
        num_images: Number of images.
    """
    error = torch.linalg.vector_norm(induced - flow, dim=1)
    low, high = error.amin((1, 2), keepdim=True), error.amax((1, 2), keepdim=True)
    scaled = (error - low) / (high - low).clamp(min=torch.finfo(error.dtype).tiny)
    total = error.new_zeros(num_images, *error.shape[1:]).index_add_(0, pairs[:, 0], scaled)
    count = torch.bincount(pairs[:, 0], minlength=num_images).clamp(min=1)
    return total / count[:, None, None] > _MOVING


def consistent_flow(forward: Float[Tensor, "e 2 h w"], backward: Float[Tensor, "e 2 h w"]) -> Bool[Tensor, "e h w"]:
    """Return the pixels whose flow stays in the image and comes back to where it was, (E, H, W).

    Args:
        forward: Flow in pixels from the first to the second image, (E, 2, H, W).
        backward: Flow from the second to the first image.
    """
    height, width = forward.shape[-2:]
    y, x = (torch.arange(size, dtype=forward.dtype, device=forward.device) for size in (height, width))
    goal = torch.stack(torch.meshgrid(x, y, indexing="xy")) + forward
    last = goal.new_tensor([width - 1, height - 1])[:, None, None]
    inside = ((goal >= 0) & (goal <= last)).all(1)
    grid = (2 * goal / last - 1).movedim(1, -1)
    back = F.grid_sample(backward, grid, align_corners=True)
    return inside & ((forward + back).sum(1).abs() < _CONSISTENT_PX)
