"""Camera loss: all refinements of the camera head compared with the true pose encoding (VGGT, section 3.4)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from geomtx.checks import check_mask, check_option, check_positive, check_shape
from geomtx.geometry.camera import POSE_DIM
from geomtx.layers.precision import at_least_float32
from geomtx.losses.penalty import Penalty, PenaltyKind
from geomtx.losses.reduce import average_stages, masked_mean, select
from geomtx.types import Bool, Float, show_shapes

__all__ = ["CameraLoss", "camera_loss", "depth_to_camera_mask"]


# Difference of pose encodings at which Huber's loss turns from squared to linear; the paper doesn't state it.
DELTA = 0.1


@show_shapes
class CameraLoss(NamedTuple):
    """Output of `camera_loss`: scalars, or (B, S) without reduction.

    Attributes:
        total: Weighted sum of the three parts.
        translation: Error of the translations, in units of the scene.
        rotation: Error of the quaternions.
        fov: Error of the fields of view, radians.
    """

    total: Tensor
    translation: Tensor
    rotation: Tensor
    fov: Tensor


def camera_loss(
    pose_encodings: Float[Tensor, "i b s 9"],
    target: Float[Tensor, "b s 9"],
    mask: Bool[Tensor, "b s"] | None = None,
    *,
    kind: PenaltyKind | Penalty = "l1",
    decay: float = 0.6,
    sign_invariant: bool = True,
    weights: tuple[float, float, float] = (1.0, 1.0, 0.5),
    reduction: Literal["mean", "none"] = "mean",
) -> CameraLoss:
    """Compare predicted pose encodings with the true ones.

    Refinement i of I has the weight decay^(I-1-i) / I. The paper uses Huber's loss; the authors released L1, which
    trains more stably: `kind=Penalty("l1", clamp=100.0), sign_invariant=False`. NaN is never replaced by 0: NaN in a
    prediction, or in a target that `mask` declares known, gives a NaN loss.

    Args:
        pose_encodings: Pose encodings of all I refinements, (I, B, S, 9), see `geomtx.encode_pose`; any floating dtype.
        target: True pose encodings, (B, S, 9), of cameras whose world is the first view's camera, in units of the
            scene.
        mask: Whether the camera of a view is known, (B, S) bool; other views don't count, whatever they hold. Depth is
            not required. Defaults to all views.
        kind: "l1" or "huber", averaged over the components of each part, or "l2", the Euclidean norm of each part; or a
            `Penalty`, whose delta defaults to 0.1 and whose clamp applies to the translation only. Defaults to "l1".
        decay: Weight of a refinement relative to the next one, positive. Defaults to 0.6.
        sign_invariant: Whether a quaternion is compared with the nearer of q and -q, which are the same rotation.
            Defaults to True.
        weights: Weights of translation, rotation and field of view in the total. Default to (1, 1, 0.5).
        reduction: "mean" for the mean over known views, "none" for one value a view. Defaults to "mean".

    Returns:
        Scalars, or (B, S) with 0 where the camera is not known; float32 or float64. Without a known camera, zeros with
        a graph.

    Raises:
        ValueError: For other shapes or options, a mask that isn't bool, no refinement, or a `decay` that is not
            positive.
    """
    _check_inputs(pose_encodings, target, mask, weights)
    check_option("reduction", reduction, ("mean", "none"))
    check_positive("decay", decay)
    penalty = Penalty.of(kind)
    unlimited = replace(penalty, clamp=None)
    with torch.autocast(pose_encodings.device.type, enabled=False):
        known = None if mask is None else mask[..., None]
        predicted = select(at_least_float32(pose_encodings), known)
        wanted = select(at_least_float32(target), known)
        if sign_invariant:
            wanted = _nearer_sign(predicted, wanted)
        differences = (predicted - wanted).split((3, 4, 2), dim=-1)
        errors = [
            each.error(part, DELTA) for each, part in zip((penalty, unlimited, unlimited), differences, strict=True)
        ]
        translation, rotation, fov = (average_stages(error.mean(-1), decay) for error in errors)
        if reduction == "mean":
            translation, rotation, fov = (masked_mean(part, mask) for part in (translation, rotation, fov))
        total = weights[0] * translation + weights[1] * rotation + weights[2] * fov
    return CameraLoss(total, translation, rotation, fov)


def _check_inputs(
    pose_encodings: Tensor, target: Tensor, mask: Tensor | None, weights: tuple[float, float, float]
) -> None:
    """Check the shapes of the inputs and the number of weights."""
    check_shape("pose_encodings", pose_encodings, ("I", "B", "S", POSE_DIM))
    views = tuple(pose_encodings.shape[1:3])
    check_shape("target", target, (*views, POSE_DIM))
    if mask is not None:
        check_mask("mask", mask, views)
    if len(weights) != 3:
        raise ValueError(f"weights must be three numbers (translation, rotation, field of view), got {weights}")


def _nearer_sign(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the target with q or -q, whichever has the smaller L1 distance from the prediction, (I, B, S, 9)."""
    quat, wanted = predicted[..., 3:7], target[..., 3:7]
    flip = (quat + wanted).abs().sum(-1, keepdim=True) < (quat - wanted).abs().sum(-1, keepdim=True)
    quat = torch.where(flip, -wanted, wanted)
    translation, fov = (target[..., part].expand(*quat.shape[:-1], -1) for part in (slice(3), slice(7, 9)))
    return torch.cat([translation, quat, fov], dim=-1)


def depth_to_camera_mask(mask: Bool[Tensor, "b s h w"], *, min_pixels: int = 100) -> Bool[Tensor, "b s"]:
    """Return the cameras that the published camera loss counts: all views of scenes whose first view has depth.

    The camera loss itself needs no depth; this function is for comparisons with the published training code.

    Args:
        mask: Whether a pixel has depth, (B, S, H, W) bool.
        min_pixels: Number of pixels with depth that the first view must exceed. Defaults to 100.

    Returns:
        Mask for `camera_loss`, (B, S) bool.

    Raises:
        ValueError: For another shape.
    """
    check_mask("mask", mask, ("B", "S", "H", "W"))
    return (mask[:, :1].sum((-2, -1)) > min_pixels).expand(mask.shape[:2])
