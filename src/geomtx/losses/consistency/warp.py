"""Pairs of views, and warping of pixels between them: unprojection by the depth of one view, projection into
another, and depth lookup.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from geomtx.checks import check_mask, check_option, check_positive, check_shape
from geomtx.geometry.camera import transform_points
from geomtx.geometry.projection import project, unproject
from geomtx.layers.precision import at_least_float32, float32_island
from geomtx.losses.reduce import masked_mean, select
from geomtx.types import Bool, Cameras, Int, show_shapes

__all__ = [
    "MIN_DEPTH",
    "ViewPairs",
    "Warp",
    "check_cameras",
    "check_pairs",
    "choose_cameras",
    "draw_pairs",
    "known_cameras",
    "mean_over_pairs",
    "sample_maps",
    "warp_pixels",
]


@show_shapes
class ViewPairs(NamedTuple):
    """K other views for each of S views, the same in all scenes of a batch.

    Attributes:
        sources: Indices of views, (S, K): row i holds the views that view i is compared with.
        frozen: Whether the second depth map of a pair gets no gradient, (S, K) bool. Depth maps that only have to agree
            with each other tend towards a plane; a constant one is an anchor. Defaults to none.
    """

    sources: Int[Tensor, "s k"]
    frozen: Bool[Tensor, "s k"] | None = None


def draw_pairs(
    num_views: int, num_sources: int = 2, *, freeze: float = 0.5, generator: torch.Generator | None = None
) -> ViewPairs:
    """Draw a few other views at random for every view.

    Args:
        num_views: Number S of views, positive.
        num_sources: Number K of distinct other views for each view, positive; with fewer other views, all of them.
            Defaults to 2.
        freeze: Probability that a pair is `frozen`, in [0, 1]. Defaults to 0.5.
        generator: Random generator, whose device the pairs are on. Defaults to torch's global one, on the CPU.

    Returns:
        `ViewPairs` of (S, K) sources, which are the same in all scenes of a batch.

    Raises:
        ValueError: If `num_views` or `num_sources` is not positive, or `freeze` no probability.
    """
    check_positive("num_views", num_views)
    check_positive("num_sources", num_sources)
    if not 0 <= freeze <= 1:
        raise ValueError(f"freeze must be a probability, got {freeze}")
    device = None if generator is None else generator.device
    order = torch.rand(num_views, num_views, generator=generator, device=device).fill_diagonal_(-1.0)
    sources = order.topk(min(num_sources, num_views - 1), dim=1).indices
    return ViewPairs(sources, torch.rand(sources.shape, generator=generator, device=device) < freeze)


def choose_cameras(predicted: Cameras, true: Cameras, *, geometry: Literal["pred", "mixed", "gt"] = "pred") -> Cameras:
    """Choose between predicted and true cameras for a cross-view loss on predicted depth.

    Args:
        predicted: Predicted cameras.
        true: True cameras in the same world frame and unit.
        geometry: "pred" for predicted cameras, so that gradients flow to depth, poses and intrinsics; "mixed" for
            predicted poses and true intrinsics; "gt" for true cameras, so that gradients flow to depth only. Defaults
            to "pred".

    Returns:
        The chosen cameras.

    Raises:
        ValueError: For another `geometry`.
    """
    check_option("geometry", geometry, ("pred", "mixed", "gt"))
    if geometry == "mixed":
        return Cameras(predicted.cam_from_world, true.intrinsics)
    return predicted if geometry == "pred" else true


def check_cameras(cameras: Cameras, camera_mask: Tensor | None, views: tuple[int, int]) -> None:
    """Check that cameras and mask have the shape of (B, S) views."""
    check_shape("cameras.cam_from_world", cameras.cam_from_world, (*views, 3, 4))
    check_shape("cameras.intrinsics", cameras.intrinsics, (*views, 3, 3))
    if camera_mask is not None:
        check_mask("camera_mask", camera_mask, views)


def check_pairs(pairs: ViewPairs, num_views: int) -> None:
    """Check that the pairs are those of S views."""
    check_shape("pairs.sources", pairs.sources, (num_views, "K"))
    if pairs.frozen is not None:
        check_mask("pairs.frozen", pairs.frozen, tuple(pairs.sources.shape))


def mean_over_pairs(errors: Tensor, valid: Tensor, min_count: int) -> Tensor:
    """Return the mean over pairs of the mean over their valid errors.

    Args:
        errors: M errors of every pair, (…, M).
        valid: Whether an error counts, (…, M) bool.
        min_count: Number of valid errors, at least 1, below which a pair is left out.

    Returns:
        A scalar; a zero with a graph if no pair counts.
    """
    count = valid.sum(-1)
    means = select(errors, valid).sum(-1) / count.clamp(min=1)
    return masked_mean(means, count >= min_count)


MIN_DEPTH = 1e-3  # units of the scene; nearer points have no stable projection


@show_shapes
class Warp(NamedTuple):
    """Positions of all pixels of S views in K other views.

    Attributes:
        coords_px: Positions in the other view, (B, S, K, H, W, 2), pixels, finite everywhere.
        depth_ratio: Z-depth of the pixel's point in the other view divided by the depth of that view's map there,
            (B, S, K, H, W); 1 where they agree, above 1 where the point is occluded.
        valid: Whether depth and cameras of both views are known and the point is inside the other view and not occluded
            there, (B, S, K, H, W) bool.
    """

    coords_px: Tensor
    depth_ratio: Tensor
    valid: Tensor


@float32_island
def warp_pixels(
    depth: Tensor,
    cameras: Cameras,
    pairs: ViewPairs,
    *,
    mask: Tensor | None = None,
    camera_mask: Tensor | None = None,
    margin: float = 1.0,
    max_error: float = 0.2,
) -> Warp:
    """Warp every pixel into other views; differentiable with respect to depth and cameras.

    The inverse of the other view's depth is interpolated, which is exact on planes: 1/z of a plane is affine in pixels.

    Args:
        depth: Z-depth, (B, S, H, W), in units of the scene; pixel centres at integers.
        cameras: Cameras of the views, (B, S, 3, 4) and (B, S, 3, 3).
        pairs: Pairs of the S views.
        mask: Whether a pixel takes part, (B, S, H, W) bool. Pixels with a depth of at most `MIN_DEPTH` never do.
            Defaults to all pixels.
        camera_mask: Whether a camera is known, (B, S) bool. Defaults to all cameras.
        margin: Least distance of a point from the border of the other view, pixels. Defaults to 1.
        max_error: Relative difference of depths |z - D| / (z + D) above which a point is considered occluded. Defaults
            to 0.2.

    Returns:
        `Warp`, float32 or float64.

    Raises:
        ValueError: For shapes that don't match.
    """
    check_shape("depth", depth, ("B", "S", "H", "W"))
    height, width = depth.shape[-2:]
    check_cameras(cameras, camera_mask, (depth.shape[0], depth.shape[1]))
    check_pairs(pairs, depth.shape[1])
    if mask is not None:
        check_mask("mask", mask, tuple(depth.shape))
    cameras = known_cameras(cameras, camera_mask)
    known = depth > MIN_DEPTH if mask is None else (depth > MIN_DEPTH) & mask
    if camera_mask is not None:
        known = known & camera_mask[..., None, None]
    depth = torch.where(known, depth, 1.0)

    points = unproject(depth, cameras.intrinsics, cameras.cam_from_world).flatten(2, 3)[:, :, None]
    other = Cameras(*(values[:, pairs.sources] for values in cameras))
    points_cam = transform_points(other.cam_from_world, points)
    in_front = known.flatten(2)[:, :, None] & (points_cam[..., 2] > MIN_DEPTH)
    # Selecting before the division keeps its gradient finite for points in the plane of the camera.
    ahead = points_cam.new_tensor([0.0, 0.0, 1.0])
    coords, z = project(torch.where(in_front[..., None], points_cam, ahead), other.intrinsics)
    last = coords.new_tensor([width - 1 - margin, height - 1 - margin])
    inside = in_front & ((coords >= margin) & (coords <= last)).all(-1)
    coords, z, inside = (x.unflatten(3, (height, width)) for x in (coords, z, inside))
    coords = select(coords, inside[..., None])

    inverse = 1 / depth[:, pairs.sources]
    if pairs.frozen is not None:
        # Pairs may be on the CPU: indices may stay there, a condition of `where` may not.
        frozen = pairs.frozen.to(depth.device)[:, :, None, None]
        inverse = torch.where(frozen, inverse.detach(), inverse)
    ratio = z * sample_maps(inverse[:, :, :, None], coords)[:, :, :, 0]
    all_known = sample_maps(known[:, pairs.sources][:, :, :, None].to(coords.dtype), coords.detach())[:, :, :, 0]
    # Bilinear weights add up to 1 up to rounding; a neighbour of unknown depth with a weight reduces the sum by more.
    valid = inside & (all_known > 1 - 1e-4) & (relative_error(ratio).detach() <= max_error)
    return Warp(coords, ratio, valid)


def relative_error(ratio: Tensor) -> Tensor:
    """Return |z - D| / (z + D) of the ratio z / D, in [0, 1) for positive depths."""
    return (ratio - 1).abs() / (ratio + 1)


def known_cameras(cameras: Cameras, camera_mask: Tensor | None) -> Cameras:
    """Return cameras in float32 or float64, with the identity in place of unknown ones."""
    extrinsics, intrinsics = map(at_least_float32, cameras)
    if camera_mask is None:
        return Cameras(extrinsics, intrinsics)
    eye = torch.eye(3, 4, device=extrinsics.device, dtype=extrinsics.dtype)
    keep = camera_mask[..., None, None]
    return Cameras(torch.where(keep, extrinsics, eye), torch.where(keep, intrinsics, eye[:, :3]))


@float32_island
def sample_maps(maps: Tensor, coords_px: Tensor) -> Tensor:
    """Sample maps by bilinear interpolation, with 0 outside.

    Args:
        maps: Finite floating point maps, (…, C, H, W).
        coords_px: Positions, (…, H', W', 2), pixels, pixel centres at integers.

    Returns:
        Samples, (…, C, H', W'), in the wider dtype of both, at least float32.
    """
    batch, (height, width) = maps.shape[:-3], maps.shape[-2:]
    scale = coords_px.new_tensor([2 / max(width - 1, 1), 2 / max(height - 1, 1)])
    grid = (coords_px * scale - 1).flatten(0, len(batch) - 1)
    flat = maps.flatten(0, len(batch) - 1)
    return F.grid_sample(flat, grid, mode="bilinear", align_corners=True).unflatten(0, batch)
