"""The pixels of one view in another: unproject with the depth of one, project into the other, look up its depth."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from geomtx.checks import check_mask, check_shape
from geomtx.geometry.camera import transform_points
from geomtx.geometry.projection import project, unproject
from geomtx.layers.precision import at_least_float32, float32_island
from geomtx.losses.consistency.pairs import ViewPairs, check_cameras, check_pairs
from geomtx.losses.reduce import select
from geomtx.types import Cameras, show_shapes

__all__ = ["MIN_DEPTH", "Warp", "known_cameras", "sample_maps", "warp_pixels"]

MIN_DEPTH = 1e-3  # scene units: nearer points have no stable image


@show_shapes
class Warp(NamedTuple):
    """Every pixel of S views in K others.

    Attributes:
        coords_px: (B, S, K, H, W, 2) in the other view, finite everywhere.
        depth_ratio: (B, S, K, H, W), z-depth of the pixel's point in the other view over the depth which that view has
            there; 1 where they agree, above 1 where the point is hidden.
        valid: (B, S, K, H, W) bool, True = both views know their depth and camera, and the point is inside the other
            view and not hidden in it.
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
    """Find every pixel in other views; differentiable in depth and cameras.

    Depth is looked up by interpolating its inverse, which on a plane is exact: in an image, 1/z of a plane is affine.

    Args:
        depth: (B, S, H, W), z-depth in scene units, pixel centres at integers.
        cameras: (B, S, 3, 4) and (B, S, 3, 3).
        pairs: Of S views.
        mask: (B, S, H, W) bool, True = the pixel takes part. Depth that isn't above `MIN_DEPTH` never does.
        camera_mask: (B, S) bool, True = the camera is known.
        margin: How far inside the other view a point must be, pixels.
        max_error: Largest relative difference of depths, |z - D| / (z + D), that isn't an occlusion.

    Raises:
        ValueError: For shapes that don't fit.
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
    # Selected before the division, whose gradient is not finite for points beside the camera.
    ahead = points_cam.new_tensor([0.0, 0.0, 1.0])
    coords, z = project(torch.where(in_front[..., None], points_cam, ahead), other.intrinsics)
    last = coords.new_tensor([width - 1 - margin, height - 1 - margin])
    inside = in_front & ((coords >= margin) & (coords <= last)).all(-1)
    coords, z, inside = (x.unflatten(3, (height, width)) for x in (coords, z, inside))
    coords = select(coords, inside[..., None])

    inverse = 1 / depth[:, pairs.sources]
    if pairs.frozen is not None:
        # Pairs are drawn on the CPU; an index may stay there, a condition may not.
        frozen = pairs.frozen.to(depth.device)[:, :, None, None]
        inverse = torch.where(frozen, inverse.detach(), inverse)
    ratio = z * sample_maps(inverse[:, :, :, None], coords)[:, :, :, 0]
    all_known = sample_maps(known[:, pairs.sources][:, :, :, None].to(coords.dtype), coords.detach())[:, :, :, 0]
    # Bilinear weights add up to 1 but for rounding; a neighbour that isn't known takes away more, or nothing.
    valid = inside & (all_known > 1 - 1e-4) & (relative_error(ratio).detach() <= max_error)
    return Warp(coords, ratio, valid)


def relative_error(ratio: Tensor) -> Tensor:
    """|z - D| / (z + D) of z / D, in [0, 1) for positive depths."""
    return (ratio - 1).abs() / (ratio + 1)


def known_cameras(cameras: Cameras, camera_mask: Tensor | None) -> Cameras:
    """Float32 or better, and the identity where the camera is not known."""
    extrinsics, intrinsics = map(at_least_float32, cameras)
    if camera_mask is None:
        return Cameras(extrinsics, intrinsics)
    eye = torch.eye(3, 4, device=extrinsics.device, dtype=extrinsics.dtype)
    keep = camera_mask[..., None, None]
    return Cameras(torch.where(keep, extrinsics, eye), torch.where(keep, intrinsics, eye[:, :3]))


@float32_island
def sample_maps(maps: Tensor, coords_px: Tensor) -> Tensor:
    """Bilinear look-up, zero outside.

    Args:
        maps: (*, C, H, W), finite, floating point.
        coords_px: (*, H', W', 2), pixel centres at integers.

    Returns:
        (*, C, H', W'), in the wider precision of both, float32 at least.
    """
    batch, (height, width) = maps.shape[:-3], maps.shape[-2:]
    scale = coords_px.new_tensor([2 / max(width - 1, 1), 2 / max(height - 1, 1)])
    grid = (coords_px * scale - 1).flatten(0, len(batch) - 1)
    flat = maps.flatten(0, len(batch) - 1)
    return F.grid_sample(flat, grid, mode="bilinear", align_corners=True).unflatten(0, batch)
