"""Camera loss: every refinement of the camera head against the true pose encoding (VGGT, section 3.4)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from geomtx.checks import check_mask, check_option, check_positive, check_shape
from geomtx.geometry.pose_encoding import POSE_DIM
from geomtx.layers.precision import at_least_float32
from geomtx.losses.reduce import average_stages, masked_mean, select
from geomtx.types import Bool, Float, show_shapes

__all__ = ["CameraLoss", "camera_loss", "depth_to_camera_mask"]


@show_shapes
class CameraLoss(NamedTuple):
    """Output of `camera_loss`: scalars, or (B, S) unreduced. `total` is the weighted sum of the others."""

    total: Tensor
    translation: Tensor
    rotation: Tensor
    fov: Tensor


def camera_loss(
    pose_encodings: Float[Tensor, "i b s 9"],
    target: Float[Tensor, "b s 9"],
    mask: Bool[Tensor, "b s"] | None = None,
    *,
    kind: Literal["l1", "l2", "huber"] = "l1",
    decay: float = 0.6,
    delta: float = 0.1,
    sign_invariant: bool = True,
    weights: tuple[float, float, float] = (1.0, 1.0, 0.5),
    clamp: float | None = None,
    reduction: Literal["mean", "none"] = "mean",
) -> CameraLoss:
    """Compare pose encodings with the true ones.

    Refinement i of I counts decay^(I-1-i) / I. The paper's loss is Huber's; the authors released L1, which trains
    more stably. Their code is `sign_invariant=False, clamp=100`. NaN is never turned into 0: one in a prediction, or
    in a target that `mask` calls known, is a NaN in the loss.

    Args:
        pose_encodings: (I, B, S, 9), every refinement, see `geomtx.encode_pose`; any floating dtype.
        target: (B, S, 9), of cameras whose world is the first view's camera, in units of the scene.
        mask: (B, S), True = the camera is known; other views, whatever they hold, count for nothing. No depth is
            needed. None = all are.
        kind: "l1", "huber" (means over the components of each part) or "l2" (the Euclidean norm of each part).
        decay: Weight of a refinement relative to the next one, positive.
        delta: Where "huber" turns from squared to linear, positive.
        sign_invariant: Compare each quaternion with the nearer of q and -q, which are the same rotation.
        weights: Of translation, rotation and field of view in the total.
        clamp: Largest translation error that counts. What is above has no gradient, so None, no limit, is the default.
        reduction: "mean" over known views, or "none".

    Returns:
        Scalars, or (B, S) with 0 where the camera is not known; float32 or better. Without a known camera a zero that
        has a graph.

    Raises:
        ValueError: For other shapes or options, a mask that isn't bool, no refinement, and for `decay`, `delta` or
            `clamp` that are not positive.
    """
    _check_inputs(pose_encodings, target, mask, weights)
    check_option("kind", kind, ("l1", "l2", "huber"))
    check_option("reduction", reduction, ("mean", "none"))
    for name, value in (("decay", decay), ("delta", delta), ("clamp", 1.0 if clamp is None else clamp)):
        check_positive(name, value)
    with torch.autocast(pose_encodings.device.type, enabled=False):
        known = None if mask is None else mask[..., None]
        predicted = select(at_least_float32(pose_encodings), known)
        wanted = select(at_least_float32(target), known)
        if sign_invariant:
            wanted = _nearer_sign(predicted, wanted)
        difference = predicted - wanted
        parts = [_part_error(part, kind, delta) for part in difference.split((3, 4, 2), dim=-1)]
        if clamp is not None:
            parts[0] = parts[0].clamp(max=clamp)
        translation, rotation, fov = (average_stages(part.mean(-1), decay) for part in parts)
        if reduction == "mean":
            translation, rotation, fov = (masked_mean(part, mask) for part in (translation, rotation, fov))
        total = weights[0] * translation + weights[1] * rotation + weights[2] * fov
    return CameraLoss(total, translation, rotation, fov)


def _check_inputs(
    pose_encodings: Tensor, target: Tensor, mask: Tensor | None, weights: tuple[float, float, float]
) -> None:
    check_shape("pose_encodings", pose_encodings, ("I", "B", "S", POSE_DIM))
    views = tuple(pose_encodings.shape[1:3])
    check_shape("target", target, (*views, POSE_DIM))
    if mask is not None:
        check_mask("mask", mask, views)
    if len(weights) != 3:
        raise ValueError(f"weights must be three, of translation, rotation and field of view, got {weights}")


def _nearer_sign(predicted: Tensor, target: Tensor) -> Tensor:
    """The target with q or -q, whichever has the smaller L1 distance from the prediction, (I, B, S, 9)."""
    quat, wanted = predicted[..., 3:7], target[..., 3:7]
    flip = (quat + wanted).abs().sum(-1, keepdim=True) < (quat - wanted).abs().sum(-1, keepdim=True)
    quat = torch.where(flip, -wanted, wanted)
    translation, fov = (target[..., part].expand(*quat.shape[:-1], -1) for part in (slice(3), slice(7, 9)))
    return torch.cat([translation, quat, fov], dim=-1)


def _part_error(difference: Tensor, kind: str, delta: float) -> Tensor:
    """(…, components) → (…, components or 1)."""
    if kind == "l2":
        return torch.linalg.vector_norm(difference, dim=-1, keepdim=True)
    if kind == "huber":
        return F.huber_loss(difference, torch.zeros_like(difference), reduction="none", delta=delta)
    return difference.abs()


def depth_to_camera_mask(mask: Bool[Tensor, "b s h w"], *, min_pixels: int = 100) -> Bool[Tensor, "b s"]:
    """Which cameras the published camera loss counts: all those of scenes whose first view has depth.

    Args:
        mask: (B, S, H, W), True = the pixel has depth.
        min_pixels: The first view needs more valid pixels than this.

    Returns:
        (B, S), for `camera_loss`. The library needs no depth for a camera loss; this is for comparisons.

    Raises:
        ValueError: For another shape.
    """
    check_mask("mask", mask, ("B", "S", "H", "W"))
    return (mask[:, :1].sum((-2, -1)) > min_pixels).expand(mask.shape[:2])
