"""What global alignment of a video adds: smooth cameras, optical flow of what stands still, and what moves.

As in MonST3R (Zhang et al. 2024), section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from geomtx.checks import check_at_least, check_mask, check_option, check_range, check_shape
from geomtx.scene.pairs.objective import AlignmentState, camera_parameters
from geomtx.scene.pairs.two_views import intrinsics_of
from geomtx.types import Bool, Float, Int, show_shapes

__all__ = [
    "MotionTerms",
    "camera_flow",
    "check_both_directions",
    "check_motion",
    "consistent_flow",
    "depth_term",
    "flow_term",
    "motion_loss",
    "moving_pixels",
    "smoothness_terms",
]

_TINY = 1e-6
_PIXELS_AT_ONCE = 1 << 20  # of pairs whose flow is compared together
_LARGEST_ERROR = 50.0  # of the smooth L1 distance of one component of the flow
_MOVING = 0.35  # of the largest error of a map
_MEDIANS, _LEAST_PX = 3.0, 0.5  # median errors of a map, and pixels
_CONSISTENT_PX = 3.0
MovingRule = Literal["largest", "median"]


@show_shapes
class MotionTerms(NamedTuple):
    """Terms that global alignment of a video adds to its loss; all frames have one size.

    Attributes:
        flow: Optical flow in pixels from the first to the second image of each pair, and back, (E, 2, H, W) each, NaN
            where it isn't known; or the first alone, of pairs that come in both directions. Defaults to none.
        moving: Pixels of each image that move by themselves, (S, H, W) bool, where the flow doesn't count; defaults to
            none.
        smoothness_weight: Weight of the changes between neighbouring cameras.
        flow_weight: Weight of the flow's errors, which are in pixels; the published one is for images of 512.
        depth_weight: Weight of the depth's change from its start.
        translation_weight: Weight of translations within the smoothness.
        flow_start: Share of all steps after which the flow counts.
        largest_flow_error: Total of the flow's term above which it counts as 0; 0 for no limit.
    """

    flow: Tensor | tuple[Tensor, Tensor] | None = None
    moving: Tensor | None = None
    smoothness_weight: float = 0.01
    flow_weight: float = 0.01
    depth_weight: float = 0.0
    translation_weight: float = 1.0
    flow_start: float = 0.1
    largest_flow_error: float = 25.0

    def to(self, dtype: torch.dtype, device: torch.device) -> MotionTerms:
        """Return the terms with their flow in a precision, and all tensors on a device."""
        flow = tree_map_only(Tensor, lambda each: each.to(device, dtype), self.flow)
        return self._replace(flow=flow, moving=None if self.moving is None else self.moving.to(device))


def check_motion(terms: MotionTerms, pairs: Int[Tensor, "e 2"], sizes: Sequence[tuple[int, int]]) -> None:
    """Require terms of the right shapes.

    Args:
        terms: The terms.
        pairs: Two images each, (E, 2).
        sizes: Height and width of each frame.

    Raises:
        ValueError: If frames differ in size, pairs lack their reverse where the flow back isn't given, or a shape or a
            number is another one.
    """
    if len(set(sizes)) > 1:
        raise ValueError(
            f"frames of a video must have one size, got {sizes[0]} and {next(s for s in sizes if s != sizes[0])}"
        )
    if isinstance(terms.flow, Tensor):
        check_shape("flow", terms.flow, (len(pairs), 2, *sizes[0]))
        check_both_directions(pairs)
    elif terms.flow is not None:
        if len(terms.flow) != 2:
            raise ValueError(f"flow must be forwards and back, two tensors, got {len(terms.flow)}")
        for side, each in enumerate(terms.flow):
            check_shape(f"flow[{side}]", each, (len(pairs), 2, *sizes[0]))
    if terms.moving is not None:
        check_mask("moving", terms.moving, (len(sizes), *sizes[0]))
    for name in ("smoothness_weight", "flow_weight", "depth_weight", "translation_weight", "largest_flow_error"):
        check_at_least(name, getattr(terms, name), 0)
    check_range("flow_start", terms.flow_start, 0, 1)


def check_both_directions(pairs: Int[Tensor, "e 2"]) -> None:
    """Require pairs that all come with their reverse.

    Raises:
        ValueError: If one doesn't; the message names it.
    """
    known = {(first, second) for first, second in pairs.tolist()}
    alone = next((pair for pair in sorted(known) if pair[::-1] not in known), None)
    if alone is not None:
        raise ValueError(f"pairs must come in both directions, got {alone} without {alone[::-1]}")


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
    grid = _pixels(depth)
    pixels = torch.cat([grid, torch.ones_like(grid[:1])]).flatten(1)
    turn = intrinsics2 @ pose2[..., :3].mT
    over = turn @ pose1[..., :3] @ torch.linalg.inv(intrinsics1)
    shift = turn @ (pose1[..., 3:] - pose2[..., 3:])
    seen = over @ pixels + shift / (depth.flatten(1)[:, None] + _TINY)
    return (seen[:, :2] / (seen[:, 2:] + _TINY)).view(-1, *grid.shape) - grid


def _pixels(like: Tensor) -> Float[Tensor, "2 h w"]:
    """Return the coordinates (x, y) of the pixels of maps (…, H, W), (2, H, W)."""
    y, x = (torch.arange(size, dtype=like.dtype, device=like.device) for size in like.shape[-2:])
    return torch.stack(torch.meshgrid(x, y, indexing="xy"))


def flow_term(
    pairs: Int[Tensor, "e 2"],
    depth: Float[Tensor, "s h w"],
    cameras: tuple[Tensor, Tensor],
    flow: Tensor | tuple[Tensor, Tensor],
    moving: Tensor | None = None,
) -> Float[Tensor, ""]:
    """Return the mean smooth L1 distance between the cameras' flow and optical flow, forwards and backwards added, ().

    Components of which it is 50 or more don't count, nor does flow that isn't known. Value and gradient are computed
    together, some pairs at a time, so that the memory in use beside the flow doesn't depend on their number.

    Args:
        pairs: Two images each, (E, 2).
        depth: Depth of the images, (S, H, W).
        cameras: Camera-to-world poses (S, 3, 4) and intrinsics (S, 3, 3).
        flow: Optical flow of the pairs and back, (E, 2, H, W) each, NaN where it isn't known; or the first alone, of
            pairs that come in both directions.
        moving: Pixels that move by themselves, which don't count, (S, H, W) bool; defaults to none.
    """
    sides = (flow,) if isinstance(flow, Tensor) else flow
    total = depth.new_zeros(())
    for order, target in zip((pairs, pairs.flip(1)), sides, strict=False):
        total = total + _MeanFlowError.apply(order, target, moving, depth, *cameras)
    return total * (2 / len(sides))


class _MeanFlowError(torch.autograd.Function):
    """Mean of the errors that count; the gradient is that of its single pass over the pairs."""

    @staticmethod
    def forward(ctx: Any, pairs: Tensor, flow: Tensor, moving: Tensor | None, *values: Tensor) -> Tensor:
        depth, poses, intrinsics = (
            each.detach().requires_grad_(needed) for each, needed in zip(values, ctx.needs_input_grad[3:], strict=True)
        )
        inputs = [each for each in (depth, poses, intrinsics) if each.requires_grad]
        gradients = [torch.zeros_like(each) for each in inputs]
        total, count = depth.new_zeros(()), depth.new_zeros(())
        at_once = max(1, _PIXELS_AT_ONCE // depth[0].numel())
        for some, wanted in zip(pairs.split(at_once), flow.split(at_once), strict=True):
            with torch.enable_grad():
                error, number = _flow_errors(some, depth, (poses, intrinsics), wanted, moving)
            total, count = total + error.detach(), count + number
            if inputs:
                for sum_, each in zip(gradients, torch.autograd.grad(error, inputs), strict=True):
                    sum_ += each
        count = count.clamp(min=1)
        ctx.save_for_backward(*(each / count for each in gradients))
        return total / count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        needed = ctx.needs_input_grad[3:]
        return None, None, None, *(gradients[0] * next(saved) if each else None for each in needed)


def _flow_errors(
    pairs: Tensor, depth: Tensor, cameras: tuple[Tensor, Tensor], flow: Tensor, moving: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the sum of the errors that count, and their number."""
    one, two = pairs.unbind(1)
    first, second = (tuple(each[index] for each in cameras) for index in (one, two))
    induced = camera_flow(depth[one], (first[0], first[1]), (second[0], second[1]))
    known = flow.isfinite()
    error = F.smooth_l1_loss(induced, torch.where(known, flow, 0.0), reduction="none")
    counts = known & (error < _LARGEST_ERROR)
    if moving is not None:
        counts = counts & ~moving[one][:, None]
    return torch.where(counts, error, 0.0).sum(), counts.sum().to(error.dtype)


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
    pairs: Int[Tensor, "e 2"],
    induced: Float[Tensor, "e 2 h w"],
    flow: Float[Tensor, "e 2 h w"],
    num_images: int,
    *,
    rule: MovingRule = "largest",
) -> Bool[Tensor, "s h w"]:
    """Return the pixels of each image that move by themselves: whose flow isn't that of the cameras, (S, H, W).

    The length of the difference is divided by a scale of each map, and averaged over the pairs that start at an image.

    Args:
        pairs: Two images each, (E, 2).
        induced: Flow of the cameras from the first to the second image, (E, 2, H, W).
        flow: Optical flow likewise; where it is NaN, it isn't known and doesn't count.
        num_images: Number of images.
        rule: Rule for what is large. "largest", the published one, scales the errors of a map to 0 … 1, and a pixel
            moves from 0.35 on: something always moves. "median" is for cameras that are known well: a pixel moves from
            three times the median error on, and from half a pixel on.
    """
    check_option("rule", rule, get_args(MovingRule))
    error = torch.linalg.vector_norm(induced - flow, dim=1)
    known = error.isfinite()
    if rule == "largest":
        low = torch.where(known, error, torch.inf).amin((1, 2), keepdim=True)
        high = torch.where(known, error, -torch.inf).amax((1, 2), keepdim=True)
        error, scale = error - low, _MOVING * (high - low).clamp(min=torch.finfo(error.dtype).tiny)
    else:
        median = torch.where(known, error, torch.nan).flatten(1).nanmedian(dim=1).values[:, None, None]
        scale = (_MEDIANS * median).clamp(min=_LEAST_PX)
    total, count = (
        error.new_zeros(num_images, *error.shape[1:]).index_add_(0, pairs[:, 0], each)
        for each in (torch.where(known, error / scale, 0.0), known.to(error.dtype))
    )
    return total / count.clamp(min=1) > 1


def consistent_flow(forward: Float[Tensor, "e 2 h w"], backward: Float[Tensor, "e 2 h w"]) -> Bool[Tensor, "e h w"]:
    """Return the pixels whose flow stays in the image and comes back, by the published test, (E, H, W).

    It is that the two components of the way there and back add up to less than three pixels: errors of opposite signs
    cancel.

    Args:
        forward: Flow in pixels from the first to the second image, (E, 2, H, W).
        backward: Flow from the second to the first image.
    """
    height, width = forward.shape[-2:]
    goal = _pixels(forward) + forward
    last = goal.new_tensor([width - 1, height - 1])[:, None, None]
    inside = ((goal >= 0) & (goal <= last)).all(1)
    grid = (2 * goal / last - 1).movedim(1, -1)
    back = F.grid_sample(backward, grid, align_corners=True)
    return inside & ((forward + back).sum(1).abs() < _CONSISTENT_PX)
