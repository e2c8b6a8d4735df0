"""Viewing rays of pixels as Plücker coordinates."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from geomtx.checks import check_count, check_option, check_shape
from geomtx.geometry.camera import invert_rigid
from geomtx.geometry.projection import unproject
from geomtx.layers.precision import float32_island
from geomtx.types import Float

__all__ = ["RayOrder", "plucker_rays"]

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
