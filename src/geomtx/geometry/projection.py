"""Projection of points into cameras and back, and viewing rays of pixels as Plücker coordinates."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from geomtx.checks import check_count, check_option, check_shape
from geomtx.geometry.camera import invert_rigid, transform_points
from geomtx.layers.precision import float32_island
from geomtx.types import Float

__all__ = [
    "RayOrder",
    "plucker_rays",
    "project",
    "unproject",
]

RayOrder = Literal["moment_direction", "direction_moment"]
"""Order of the channels of Plücker coordinates."""


@float32_island
def plucker_rays(
    cam_from_world: Float[Tensor, "*#batch 3 4"],
    intrinsics: Float[Tensor, "*#batch 3 3"],
    image_hw: tuple[int, int],
    *,
    pixel_center: float = 0.0,
    order: RayOrder = "moment_direction",
) -> Float[Tensor, "*out 6 h w"]:
    """Return the viewing ray of every pixel: its moment m = o x d and its unit direction d, in world coordinates.

    o is the camera's centre; m is the same for every point on the ray. The centre of the pixel in row i and column j is
    at (j, i), as in `unproject`, whose points lie on these rays; with `pixel_center=0.5` it is at (j + 0.5, i + 0.5),
    for intrinsics whose origin is the corner of the first pixel.

    Args:
        cam_from_world: Poses with OpenCV axes, (..., 3, 4).
        intrinsics: Intrinsics in pixels of an image of size `image_hw`, (..., 3, 3); skew is respected.
        image_hw: Height and width of the image in pixels.
        pixel_center: Coordinate of the centre of the first pixel, 0.0 or 0.5.
        order: Order of the channels: "moment_direction" is (m_x, m_y, m_z, d_x, d_y, d_z), "direction_moment" has the
            direction first.

    Returns:
        Plücker coordinates, (..., 6, H, W), in float32 or better; moments are in scene units.

    Raises:
        ValueError: If a shape is another one, the order is unknown, or a size isn't positive.

    Source: Sitzmann et al. 2021 (Light Field Networks), section 3.1.
    """
    check_shape("cam_from_world", cam_from_world, ("...", 3, 4))
    check_shape("intrinsics", intrinsics, ("...", 3, 3))
    check_option("order", order, get_args(RayOrder))
    for name, side in zip(("image height", "image width"), image_hw, strict=True):
        check_count(name, side)
    # Points at depth 1, so that no direction is close to zero.
    ahead = unproject(intrinsics.new_ones(*intrinsics.shape[:-2], *image_hw), intrinsics, pixel_center=pixel_center)
    world_from_cam = invert_rigid(cam_from_world)
    direction = ahead @ world_from_cam[..., None, :, :3].transpose(-1, -2)
    direction = direction / torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
    center = world_from_cam[..., None, None, :, 3]
    moment = torch.linalg.cross(center.expand_as(direction), direction)
    parts = (moment, direction) if order == "moment_direction" else (direction, moment)
    return torch.cat(parts, dim=-1).movedim(-1, -3)


@float32_island
def unproject(
    depth: Float[Tensor, "*#batch h w"],
    intrinsics: Float[Tensor, "*#batch 3 3"],
    cam_from_world: Float[Tensor, "*#batch 3 4"] | None = None,
    *,
    pixel_center: float = 0.0,
) -> Float[Tensor, "*out h w 3"]:
    """Return the point of every pixel of a depth map.

    Args:
        depth: Depth maps, z-depth in scene units, (..., H, W).
        intrinsics: Intrinsics in pixels of the depth map, (..., 3, 3); skew is respected.
        cam_from_world: Poses, (..., 3, 4); defaults to the identity, which gives points in the camera's frame.
        pixel_center: Coordinate of the centre of the first pixel, 0.0 or 0.5.

    Returns:
        Points in world coordinates and scene units, (..., H, W, 3), in float32 or better.

    Raises:
        ValueError: If a shape is another one, or leading axes don't broadcast.
    """
    check_shape("depth", depth, ("...", "H", "W"))
    _check_cameras("depth", depth, intrinsics, cam_from_world)
    height, width = depth.shape[-2:]
    rows = torch.arange(height, device=depth.device, dtype=intrinsics.dtype) + pixel_center
    columns = torch.arange(width, device=depth.device, dtype=intrinsics.dtype) + pixel_center
    k = intrinsics[..., None, None, :, :]
    y = (rows[:, None] - k[..., 1, 2]) / k[..., 1, 1] * depth
    x = (columns - k[..., 0, 2]) / k[..., 0, 0] * depth - k[..., 0, 1] / k[..., 0, 0] * y
    points_cam = torch.stack([x, y, depth], dim=-1)
    if cam_from_world is None:
        return points_cam
    points = transform_points(invert_rigid(cam_from_world), points_cam.flatten(-3, -2))
    return points.unflatten(-2, (height, width))


@float32_island
def project(
    points_world: Float[Tensor, "*#batch n 3"],
    intrinsics: Float[Tensor, "*#batch 3 3"],
    cam_from_world: Float[Tensor, "*#batch 3 4"] | None = None,
) -> tuple[Float[Tensor, "*out n 2"], Float[Tensor, "*out n"]]:
    """Project points into images; the inverse of `unproject`.

    Args:
        points_world: Points in world coordinates, (..., N, 3).
        intrinsics: Intrinsics in pixels, (..., 3, 3).
        cam_from_world: Poses, (..., 3, 4); defaults to the identity, for points in the camera's frame.

    Returns:
        Coordinates (x, y) in pixels, (..., N, 2), in the pixel convention of the intrinsics, and z-depth, (..., N); in
        float32 or better. A point on or behind the camera plane (depth ≤ 0) has no image: its coordinates are finite
        but meaningless, so test the depth.

    Raises:
        ValueError: If a shape is another one, or leading axes don't broadcast.
    """
    check_shape("points_world", points_world, ("...", "N", 3))
    _check_cameras("points_world", points_world, intrinsics, cam_from_world)
    points_cam = points_world if cam_from_world is None else transform_points(cam_from_world, points_world)
    depth = points_cam[..., 2]
    # The depth is replaced rather than clamped, so that points in front of the camera keep their exact quotient and
    # gradient wherever x / z and x / z² can be represented.
    size = depth.detach().abs()
    steepness = points_cam.detach().abs().amax(-1) / size / size
    safe_depth = torch.where(steepness < torch.finfo(depth.dtype).max ** 0.75, depth, 1.0)
    rays = points_cam / safe_depth[..., None]
    coords = rays @ intrinsics.transpose(-1, -2)
    return coords[..., :2], depth


def _check_cameras(name: str, values: Tensor, intrinsics: Tensor, cam_from_world: Tensor | None) -> None:
    """Require cameras whose leading axes broadcast with those of depth (..., H, W) or points (..., N, 3)."""
    check_shape("intrinsics", intrinsics, ("...", 3, 3))
    given = {name: values, "intrinsics": intrinsics}
    if cam_from_world is not None:
        check_shape("cam_from_world", cam_from_world, ("...", 3, 4))
        given["cam_from_world"] = cam_from_world
    axes = [tuple(tensor.shape[:-2]) for tensor in given.values()]
    for sizes in zip(*_pad(axes), strict=True):
        if len({size for size in sizes if size != 1}) > 1:
            raise ValueError(
                f"leading axes of {', '.join(given)} must be the same or 1, got {' and '.join(map(str, axes))}"
            )


def _pad(axes: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Return axes of the same number, with ones in front as broadcasting has them."""
    length = max(len(each) for each in axes)
    return [(1,) * (length - len(each)) + each for each in axes]
