"""Errors of camera poses, computed in float64.

`pairwise_pose_errors` and `pose_auc` are the protocol of Co3Dv2, RealEstate10K and IMC; `exact_pose_auc` is the
protocol of ScanNet-1500, whose numbers are not comparable with those of the former.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.checks import check_mask, check_positive, check_shape
from geomtx.geometry.camera import compose_rigid, invert_rigid
from geomtx.geometry.rotation import matrix_to_quat
from geomtx.geometry.similarity import Similarity, apply_similarity, fit_similarity
from geomtx.losses.reduce import masked_median
from geomtx.types import Bool, Float, show_shapes

__all__ = [
    "FAILED_DEG",
    "PairErrors",
    "TrajectoryErrors",
    "exact_pose_auc",
    "pairwise_pose_errors",
    "pose_auc",
    "pose_recall",
    "trajectory_errors",
]

FAILED_DEG = 1e6
"""Error of a pose that is not finite, degrees; above every threshold."""

# Lower limit of 1 - cos², which keeps the argument of acos below 1, where rounding gives NaN.
_FLOOR = 1e-15


@show_shapes
class PairErrors(NamedTuple):
    """Errors of relative poses, for the pairs of views (0, 1), (0, 2), …, (1, 2), …; P = S (S - 1) / 2.

    Attributes:
        rotation_deg: Geodesic angle between the rotations, (…, P), degrees.
        translation_deg: Angle between the directions of the translations up to sign, (…, P), in [0, 90] degrees.
        mask: Whether both true cameras are known and finite, (…, P) bool.
    """

    rotation_deg: Float[Tensor, "*batch p"]
    translation_deg: Float[Tensor, "*batch p"]
    mask: Bool[Tensor, "*batch p"]

    def larger_deg(self) -> Tensor:
        """Return the larger of both errors, (…, P), degrees: the input of `pose_auc`."""
        return torch.maximum(self.rotation_deg, self.translation_deg)


@show_shapes
class TrajectoryErrors(NamedTuple):
    """Distances of camera centres after alignment, in the unit of the true cameras.

    Attributes:
        rmse: Root mean square distance, (…): the absolute trajectory error (ATE).
        mean: Mean distance, (…).
        median: Median distance, (…).
        alignment: Similarity from the predicted to the true world frame.
    """

    rmse: Float[Tensor, "*batch"]
    mean: Float[Tensor, "*batch"]
    median: Float[Tensor, "*batch"]
    alignment: Similarity


def pairwise_pose_errors(
    predicted: Float[Tensor, "*batch s 3 4"], true: Float[Tensor, "*batch s 3 4"], mask: Tensor | None = None
) -> PairErrors:
    """Compute the errors of the relative poses T_ij = E_i · E_j⁻¹ of all pairs of views i < j.

    The errors don't depend on the world frames and scales. A translation of length 0 has no direction: its error is 90
    degrees. A predicted pose that isn't finite has the errors `FAILED_DEG`, so that it counts as a failure.

    Args:
        predicted: Predicted poses `cam_from_world`, (…, S, 3, 4), at least two views.
        true: True poses, (…, S, 3, 4).
        mask: Whether the true camera is known, (…, S) bool. Defaults to wherever it is finite; elsewhere it never is.

    Returns:
        `PairErrors` in float64.

    Raises:
        ValueError: For other shapes, or fewer than two views.
    """
    mask = _known_cameras(predicted, true, mask, least=2)
    num_views = mask.shape[-1]
    first, second = torch.triu_indices(num_views, num_views, offset=1, device=predicted.device)
    got, want = (
        compose_rigid(cameras[..., first, :, :], invert_rigid(cameras[..., second, :, :]))
        for cameras in (predicted.double(), true.double())
    )
    return PairErrors(
        _failed_if_not_finite(_rotation_error(got[..., :3], want[..., :3])),
        _failed_if_not_finite(_translation_error(got[..., 3], want[..., 3])),
        mask[..., first] & mask[..., second],
    )


def pose_auc(
    errors_deg: Float[Tensor, "*batch p"], thresholds: Sequence[int] = (5, 15, 30), mask: Tensor | None = None
) -> Float[Tensor, "*batch t"]:
    """Compute the area under the recall curve in bins of one degree.

    AUC@T is the mean over k = 1 … T of the share of pairs with an error below k (the last bin includes T itself).

    Args:
        errors_deg: Errors of pairs, (…, P), degrees, usually `PairErrors.larger_deg()`. NaN counts as a failure.
        thresholds: Thresholds T, positive integers, degrees. Default to (5, 15, 30).
        mask: Whether a pair counts, (…, P) bool. Defaults to all pairs.

    Returns:
        AUC for every threshold, (…, T), in [0, 1], float64; NaN where no pair counts.

    Raises:
        ValueError: For a threshold that isn't a positive integer, or another shape of the mask.
    """
    areas = []
    for threshold in thresholds:
        if threshold != int(threshold) or threshold < 1:
            raise ValueError(f"thresholds must be whole degrees above 0, got {threshold}")
        edges = torch.arange(1, int(threshold) + 1, device=errors_deg.device, dtype=torch.float64)
        edges[-1] = torch.nextafter(edges[-1], torch.full_like(edges[-1], torch.inf))
        areas.append(pose_recall(errors_deg, edges.tolist(), mask).mean(-1))
    return torch.stack(areas, dim=-1)


def pose_recall(
    errors_deg: Float[Tensor, "*batch p"], thresholds: Sequence[float] = (5, 15, 30), mask: Tensor | None = None
) -> Float[Tensor, "*batch t"]:
    """Compute the share of pairs with an error below each threshold: RRA for rotation, RTA for translation errors.

    Args:
        errors_deg: Errors of pairs, (…, P), degrees. NaN counts as a failure.
        thresholds: Thresholds, degrees. Default to (5, 15, 30).
        mask: Whether a pair counts, (…, P) bool. Defaults to all pairs.

    Returns:
        Share for every threshold, (…, T), in [0, 1], float64; NaN where no pair counts.

    Raises:
        ValueError: For another shape of the mask.
    """
    if mask is None:
        mask = torch.ones_like(errors_deg, dtype=torch.bool)
    check_mask("mask", mask, tuple(errors_deg.shape))
    edges = torch.tensor(thresholds, device=errors_deg.device, dtype=torch.float64)
    below = (errors_deg.double()[..., None] < edges) & mask[..., None]
    return below.sum(-2).double() / mask.sum(-1, keepdim=True)


def exact_pose_auc(
    errors_deg: Float[Tensor, "*batch p"], thresholds: Sequence[float] = (5, 10, 20)
) -> Float[Tensor, "*batch t"]:
    """Compute the exact area under the recall curve by trapezoids (protocol of ScanNet-1500 and MegaDepth-1500).

    The curve runs through (0, 0) and the points (i-th smallest error, i / P) and is constant from the last error below
    the threshold on; its area is divided by the threshold.

    Args:
        errors_deg: Errors of pairs, (…, P), degrees. The protocol gives pairs without an estimate an error of 90; NaN
            counts as a failure.
        thresholds: Thresholds, degrees, positive. Default to (5, 10, 20).

    Returns:
        AUC for every threshold, (…, T), in [0, 1], float64.

    Raises:
        ValueError: Without pairs, or for a threshold that is not positive.
    """
    if errors_deg.shape[-1] == 0:
        raise ValueError(f"errors_deg must hold at least 1 pair, got {tuple(errors_deg.shape)}")
    errors = _failed_if_not_finite(errors_deg.double()).sort(-1).values
    num_pairs = errors.shape[-1]
    recall = torch.arange(num_pairs + 1, device=errors.device, dtype=torch.float64) / num_pairs
    errors = torch.cat([torch.zeros_like(errors[..., :1]), errors], dim=-1)
    areas = []
    for threshold in thresholds:
        check_positive("thresholds", threshold)
        # As in the published protocol, an error equal to the threshold is excluded.
        below = errors < threshold
        below[..., 0] = True
        widths = torch.where(below[..., 1:], errors.diff(dim=-1), 0.0)
        area = (widths * (recall[1:] + recall[:-1]) / 2).sum(-1)
        last = below.sum(-1) - 1
        rest = threshold - errors.gather(-1, last[..., None]).squeeze(-1)
        areas.append((area + rest * recall[last]) / threshold)
    return torch.stack(areas, dim=-1)


def trajectory_errors(
    predicted: Float[Tensor, "*batch s 3 4"], true: Float[Tensor, "*batch s 3 4"], mask: Tensor | None = None
) -> TrajectoryErrors:
    """Compute the absolute trajectory error (ATE): distances of the camera centres after a least-squares similarity.

    Args:
        predicted: Predicted poses `cam_from_world`, (…, S, 3, 4), at least three views.
        true: True poses, (…, S, 3, 4).
        mask: Whether the true camera is known, (…, S) bool. Defaults to wherever it is finite; elsewhere it never is.

    Returns:
        `TrajectoryErrors` in float64. NaN for a scene with fewer than three known cameras, which a similarity aligns
        exactly, or with a predicted pose that isn't finite.

    Raises:
        ValueError: For other shapes, or fewer than three views.
    """
    mask = _known_cameras(predicted, true, mask, least=3)
    source, target = (invert_rigid(cameras.double())[..., 3] for cameras in (predicted, true))
    usable = (mask.sum(-1) >= 3) & (source.isfinite().all(-1) | ~mask).all(-1)
    source = torch.where((mask & usable[..., None])[..., None], source, 0.0)
    alignment = fit_similarity(source, target, mask)
    distances = (apply_similarity(alignment, source) - target).norm(dim=-1)
    distances = torch.where(mask & usable[..., None], distances, torch.nan)
    return TrajectoryErrors(
        distances.square().nanmean(-1).sqrt(),
        distances.nanmean(-1),
        masked_median(distances, mask & usable[..., None]),
        alignment,
    )


def _known_cameras(predicted: Tensor, true: Tensor, mask: Tensor | None, *, least: int) -> Tensor:
    """Check poses of at least `least` views; return whether the truth is known and finite, (…, S) bool."""
    check_shape("predicted", predicted, ("...", "S", 3, 4))
    check_shape("true", true, tuple(predicted.shape))
    if predicted.shape[-3] < least:
        raise ValueError(f"predicted must have at least {least} views, got {predicted.shape[-3]}")
    known = true.isfinite().all(-1).all(-1)
    if mask is None:
        return known
    check_mask("mask", mask, tuple(known.shape))
    return known & mask


def _rotation_error(got: Tensor, want: Tensor) -> Tensor:
    """Return the angle acos(1 - 2 (1 - ⟨q, q'⟩²)) between rotations, degrees."""
    cosine = (matrix_to_quat(got) * matrix_to_quat(want)).sum(-1)
    return torch.acos(1 - 2 * (1 - cosine.square()).clamp(min=_FLOOR, max=1.0)).rad2deg()


def _translation_error(got: Tensor, want: Tensor) -> Tensor:
    """Return the angle acos(|⟨t, t'⟩|) between directions, degrees; 90 if a vector is zero."""
    units = []
    for vector in (got, want):
        length = vector.norm(dim=-1, keepdim=True)
        units.append(vector / torch.where(length > 0, length, 1.0))
    cosine = (units[0] * units[1]).sum(-1)
    angle = torch.acos((1 - (1 - cosine.square()).clamp(min=_FLOOR, max=1.0)).sqrt()).rad2deg()
    return torch.minimum(angle, 180 - angle)


def _failed_if_not_finite(errors_deg: Tensor) -> Tensor:
    """Return the errors with `FAILED_DEG` in place of NaN and infinity."""
    return torch.where(errors_deg.isfinite(), errors_deg, FAILED_DEG)
