"""Epipolar consistency: cameras that explain where the same point is in two views."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from geomtx.checks import check_mask, check_option, check_positive, check_shape
from geomtx.geometry.camera import compose_rigid, invert_rigid
from geomtx.geometry.epipolar import fundamental_matrix, sampson_distance
from geomtx.layers.precision import at_least_float32
from geomtx.losses.consistency.pairs import ViewPairs, check_cameras, check_pairs, mean_over_pairs
from geomtx.losses.consistency.warp import known_cameras
from geomtx.losses.reduce import select
from geomtx.types import Bool, Cameras, Float

__all__ = ["epipolar_loss"]


def epipolar_loss(
    coords_px: Float[Tensor, "b s n 2"],
    cameras: Cameras,
    pairs: ViewPairs,
    *,
    visible: Bool[Tensor, "b s n"] | None = None,
    camera_mask: Bool[Tensor, "b s"] | None = None,
    delta: float = 1.0,
    min_baseline: float = 1e-3,
    min_points: int = 8,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    """Compare cameras with correspondences, by Huber's loss of the Sampson distance (the root, in pixels).

    No depth is involved, so the gradient reaches poses and focal lengths alone; correspondences are taken as they are.
    Weight among other losses: 0.01.

    Args:
        coords_px: (B, S, N, 2), where N points are in every view: true tracks or predicted ones.
        cameras: (B, S, 3, 4) and (B, S, 3, 3) in the same pixels.
        pairs: See `draw_pairs`.
        visible: (B, S, N), True = the point is seen; other coordinates count for nothing. None = all are.
        camera_mask: (B, S), True = the camera is known. None = all are.
        delta: Where the loss turns from squared to linear, pixels.
        min_baseline: Pairs of cameras that are nearer, in scene units, have no epipolar geometry and don't count.
        min_points: Pairs with fewer points that are seen in both views are left out.
        reduction: "mean" over the pairs of the mean over each one's points, or "none".

    Returns:
        A scalar, or (B, S, K, N) with 0 for what doesn't count; float32 or better. Without any a zero that has a graph.

    Raises:
        ValueError: For shapes that don't fit, other options, and for `delta`, `min_baseline` or `min_points` that are
            not positive.
    """
    check_shape("coords_px", coords_px, ("B", "S", "N", 2))
    b, s, n = coords_px.shape[:3]
    check_cameras(cameras, camera_mask, (b, s))
    check_pairs(pairs, s)
    if visible is not None:
        check_mask("visible", visible, (b, s, n))
    check_option("reduction", reduction, ("mean", "none"))
    for name, value in (("delta", delta), ("min_baseline", min_baseline), ("min_points", min_points)):
        check_positive(name, value)
    with torch.autocast(coords_px.device.type, enabled=False):
        extrinsics, intrinsics = known_cameras(cameras, camera_mask)
        other_from_view = compose_rigid(extrinsics[:, pairs.sources], invert_rigid(extrinsics)[:, :, None])
        is_apart = torch.linalg.vector_norm(other_from_view[..., 3].detach(), dim=-1) >= min_baseline
        seen = torch.ones_like(coords_px[..., 0], dtype=torch.bool) if visible is None else visible
        if camera_mask is not None:
            seen = seen & camera_mask[..., None]
        coords = select(at_least_float32(coords_px.detach()), seen[..., None])
        valid = seen[:, :, None] & seen[:, pairs.sources] & is_apart[..., None]
        valid = valid & (valid.sum(-1, keepdim=True) >= min_points)
        fundamental = fundamental_matrix(intrinsics[:, :, None], intrinsics[:, pairs.sources], other_from_view)
        distance = select(sampson_distance(coords[:, :, None], coords[:, pairs.sources], fundamental), valid)
        error = F.huber_loss(distance, torch.zeros_like(distance), reduction="none", delta=delta)
        return error if reduction == "none" else mean_over_pairs(error, valid, min_points)
