"""Epipolar consistency: predicted cameras agree with correspondences between two views."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from geomtx.checks import check_mask, check_option, check_positive, check_shape
from geomtx.geometry.camera import compose_rigid, invert_rigid
from geomtx.geometry.epipolar import fundamental_matrix, sampson_distance
from geomtx.layers.precision import at_least_float32
from geomtx.losses.consistency.warp import ViewPairs, check_cameras, check_pairs, known_cameras, mean_over_pairs
from geomtx.losses.reduce import select
from geomtx.types import Bool, Cameras, Float

__all__ = ["EpipolarSettings", "epipolar_loss"]


@dataclass(frozen=True)
class EpipolarSettings:
    """Settings of `epipolar_loss`.

    Attributes:
        delta: Distance at which the loss turns from squared to linear, pixels, positive. Defaults to 1.
        min_baseline: Distance between two cameras, in units of the scene, below which they have no epipolar geometry
            and the pair doesn't count; positive. Defaults to 1e-3.
        min_points: Number of points visible in both views below which a pair is left out, positive. Defaults to 8.

    Raises:
        ValueError: For a number that is not positive.
    """

    delta: float = 1.0
    min_baseline: float = 1e-3
    min_points: int = 8

    def __post_init__(self) -> None:
        for name in ("delta", "min_baseline", "min_points"):
            check_positive(name, getattr(self, name))


SETTINGS = EpipolarSettings()


def epipolar_loss(
    coords_px: Float[Tensor, "b s n 2"],
    cameras: Cameras,
    pairs: ViewPairs,
    *,
    visible: Bool[Tensor, "b s n"] | None = None,
    camera_mask: Bool[Tensor, "b s"] | None = None,
    settings: EpipolarSettings = SETTINGS,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    """Compute Huber's loss of the Sampson distance (its root, in pixels) of correspondences between views.

    No depth is involved, so gradients flow to poses and intrinsics only; correspondences are constants. Suggested
    weight among other losses: 0.01.

    Args:
        coords_px: Positions of N points in every view, (B, S, N, 2), pixels: true or predicted tracks.
        cameras: Cameras of the views, (B, S, 3, 4) and (B, S, 3, 3), in the same pixels.
        pairs: Pairs of views, see `draw_pairs`.
        visible: Whether a point is visible, (B, S, N) bool; other positions have no influence. Defaults to all points.
        camera_mask: Whether a camera is known, (B, S) bool. Defaults to all cameras.
        settings: Error function and limits.
        reduction: "mean" for the mean over the pairs of the mean over the points of each, "none" for one value a point.
            Defaults to "mean".

    Returns:
        A scalar, or (B, S, K, N) with 0 for what doesn't count; float32 or float64. If nothing counts, a zero with a
        graph.

    Raises:
        ValueError: For shapes that don't match, or another `reduction`.
    """
    check_shape("coords_px", coords_px, ("B", "S", "N", 2))
    b, s, n = coords_px.shape[:3]
    check_cameras(cameras, camera_mask, (b, s))
    check_pairs(pairs, s)
    if visible is not None:
        check_mask("visible", visible, (b, s, n))
    check_option("reduction", reduction, ("mean", "none"))
    with torch.autocast(coords_px.device.type, enabled=False):
        extrinsics, intrinsics = known_cameras(cameras, camera_mask)
        other_from_view = compose_rigid(extrinsics[:, pairs.sources], invert_rigid(extrinsics)[:, :, None])
        has_baseline = torch.linalg.vector_norm(other_from_view[..., 3].detach(), dim=-1) >= settings.min_baseline
        seen = torch.ones_like(coords_px[..., 0], dtype=torch.bool) if visible is None else visible
        if camera_mask is not None:
            seen = seen & camera_mask[..., None]
        coords = select(at_least_float32(coords_px.detach()), seen[..., None])
        valid = seen[:, :, None] & seen[:, pairs.sources] & has_baseline[..., None]
        valid = valid & (valid.sum(-1, keepdim=True) >= settings.min_points)
        fundamental = fundamental_matrix(intrinsics[:, :, None], intrinsics[:, pairs.sources], other_from_view)
        distance = select(sampson_distance(coords[:, :, None], coords[:, pairs.sources], fundamental), valid)
        error = F.huber_loss(distance, torch.zeros_like(distance), reduction="none", delta=settings.delta)
        return error if reduction == "none" else mean_over_pairs(error, valid, settings.min_points)
