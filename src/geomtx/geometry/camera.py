"""Rigid transforms, pinhole intrinsics, and the encoding of cameras by nine numbers (VGGT, section 3.1).

A camera is `cam_from_world`, [R | t] with x_cam = R x_world + t on OpenCV axes (x right, y down, z forward), and
`intrinsics` in pixels. The nine numbers are the translation t (3), the quaternion xyzw of R (4), and the vertical and
horizontal field of view in radians (2). All results are float32 or better, see `geomtx.geometry`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from geomtx.checks import check_shape
from geomtx.geometry.rotation import matrix_to_quat, quat_to_matrix
from geomtx.layers.precision import float32_island
from geomtx.types import Bool, Cameras, Float

__all__ = [
    "POSE_DIM",
    "activate_pose",
    "compose_rigid",
    "decode_pose",
    "encode_pose",
    "fit_intrinsics",
    "fov_to_intrinsics",
    "intrinsics_to_fov",
    "invert_rigid",
    "transform_points",
]


@float32_island
def invert_rigid(transform: Float[Tensor, "*batch 3 4"]) -> Float[Tensor, "*batch 3 4"]:
    """Return the inverse [Rᵀ | -Rᵀt] of rigid transforms [R | t], for instance `world_from_cam` of `cam_from_world`.

    The closed form has none of the rounding errors of a general matrix inverse.

    Args:
        transform: Rigid transforms, (..., 3, 4).

    Raises:
        ValueError: If the shape is another one; 4x4 matrices are not accepted.
    """
    check_shape("transform", transform, ("...", 3, 4))
    rotation_t = transform[..., :3].transpose(-1, -2)
    return torch.cat([rotation_t, -rotation_t @ transform[..., 3:]], dim=-1)


@float32_island
def compose_rigid(a_from_b: Float[Tensor, "*#batch 3 4"], b_from_c: Float[Tensor, "*#batch 3 4"]) -> Tensor:
    """Return the composition `a_from_c` of rigid transforms, (..., 3, 4).

    Args:
        a_from_b: Transforms that are applied last, (..., 3, 4).
        b_from_c: Transforms that are applied first, (..., 3, 4); batches broadcast.
    """
    rotation = a_from_b[..., :3]
    return torch.cat([rotation @ b_from_c[..., :3], rotation @ b_from_c[..., 3:] + a_from_b[..., 3:]], dim=-1)


@float32_island
def transform_points(transform: Float[Tensor, "*#batch 3 4"], points: Float[Tensor, "*#batch n 3"]) -> Tensor:
    """Return R x + t for N points of each transform, (..., N, 3).

    Args:
        transform: Rigid transforms [R | t], (..., 3, 4).
        points: Points x, (..., N, 3); batches broadcast.
    """
    return points @ transform[..., :3].transpose(-1, -2) + transform[..., None, :, 3]


@float32_island
def fov_to_intrinsics(
    fov: Float[Tensor, "*batch 2"], image_hw: tuple[int, int], *, min_tan: float | None = None
) -> Float[Tensor, "*batch 3 3"]:
    """Return the intrinsics of a field of view, with the principal point at (W/2, H/2).

    A field of view of zero, which a rectified network output can be, gives a focal length of about 10^6 image sizes
    instead of an infinite one.

    Args:
        fov: Vertical and horizontal field of view in radians, (..., 2).
        image_hw: Height and width of the image in pixels.
        min_tan: Smallest tangent of half a field of view, below which, and beyond π, it is taken instead; defaults to
            tangents of either sign whose magnitude is at least 5e-7.

    Returns:
        Intrinsics in pixels, (..., 3, 3).
    """
    height, width = image_hw
    half_tan = torch.tan(fov / 2)
    half_tan = torch.where(half_tan.abs() < 5e-7, 5e-7, half_tan) if min_tan is None else half_tan.clamp(min=min_tan)
    f_y = (height / 2) / half_tan[..., 0]
    f_x = (width / 2) / half_tan[..., 1]
    zero, one = torch.zeros_like(f_x), torch.ones_like(f_x)
    rows = (f_x, zero, one * (width / 2), zero, f_y, one * (height / 2), zero, zero, one)
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


@float32_island
def fit_intrinsics(
    slopes: Float[Tensor, "*batch h w 2"], mask: Bool[Tensor, "*batch h w"] | None = None
) -> Float[Tensor, "*batch 3 3"]:
    """Return the intrinsics that best project points seen by all pixels to these pixels, by least squares.

    The principal point is the image's centre, ((W - 1)/2, (H - 1)/2).

    Args:
        slopes: Points of the pixels in the camera as (x/z, y/z), (..., H, W, 2).
        mask: Mask of the pixels that take part, (..., H, W) bool; defaults to all.

    Returns:
        Intrinsics in pixels, (..., 3, 3). Where no pixel takes part, or all points are on the axis, the focal lengths
        are 0.
    """
    height, width = slopes.shape[-3:-1]
    center_x, center_y = (width - 1) / 2, (height - 1) / 2
    x = torch.arange(width, device=slopes.device, dtype=slopes.dtype) - center_x
    y = torch.arange(height, device=slopes.device, dtype=slopes.dtype) - center_y
    if mask is not None:
        slopes = torch.where(mask[..., None], slopes, 0.0)
    focal = []
    for slope, place in ((slopes[..., 0], x), (slopes[..., 1], y[:, None])):
        squares = slope.square().mean((-2, -1))
        focal.append((slope * place).mean((-2, -1)) / squares.clamp(min=torch.finfo(squares.dtype).tiny))
    zero, one = torch.zeros_like(focal[0]), torch.ones_like(focal[0])
    rows = (focal[0], zero, one * center_x, zero, focal[1], one * center_y, zero, zero, one)
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


@float32_island
def intrinsics_to_fov(intrinsics: Float[Tensor, "*batch 3 3"], image_hw: tuple[int, int]) -> Float[Tensor, "*batch 2"]:
    """Return the field of view 2·atan(size/2 / f); the inverse of `fov_to_intrinsics`.

    Args:
        intrinsics: Intrinsics in pixels, (..., 3, 3).
        image_hw: Height and width of the image in pixels.

    Returns:
        Vertical and horizontal field of view in radians, (..., 2), in [0, 2π). Value and gradient are finite for every
        focal length: π for a focal length of 0, more for negative ones.
    """
    height, width = image_hw
    f_x, f_y = intrinsics[..., 0, 0], intrinsics[..., 1, 1]
    # atan of the quotient would have a gradient of NaN at a focal length of 0.
    half = [torch.atan2(torch.full_like(f, size / 2), f) for f, size in ((f_y, height), (f_x, width))]
    return 2 * torch.stack(half, dim=-1)


POSE_DIM = 9
"""Number of channels of a pose encoding."""


@float32_island
def encode_pose(
    cam_from_world: Float[Tensor, "*batch 3 4"], intrinsics: Float[Tensor, "*batch 3 3"], image_hw: tuple[int, int]
) -> Float[Tensor, "*batch 9"]:
    """Return the pose encodings of cameras.

    Principal point and skew are not encoded: decoding puts the principal point at (W/2, H/2).

    Args:
        cam_from_world: Poses with OpenCV axes, (..., 3, 4).
        intrinsics: Intrinsics in pixels of an image of size `image_hw`, (..., 3, 3).
        image_hw: Height and width of the image in pixels.

    Returns:
        Pose encodings, (..., 9), in float32 or better; the quaternion's w is not negative.

    Raises:
        ValueError: If a shape is another one.
    """
    check_shape("cam_from_world", cam_from_world, ("...", 3, 4))
    check_shape("intrinsics", intrinsics, ("...", 3, 3))
    quat = matrix_to_quat(cam_from_world[..., :3])
    return torch.cat([cam_from_world[..., 3], quat, intrinsics_to_fov(intrinsics, image_hw)], dim=-1)


@float32_island
def decode_pose(encoding: Float[Tensor, "*batch 9"], image_hw: tuple[int, int]) -> Cameras:
    """Return the cameras of pose encodings; the inverse of `encode_pose` for a centred principal point.

    Args:
        encoding: Pose encodings, (..., 9). The quaternion may have any length, see `quat_to_matrix`.
        image_hw: Height and width in pixels of the image that the intrinsics shall belong to.

    Returns:
        Cameras, (..., 3, 4) and (..., 3, 3), in float32 or better.

    Raises:
        ValueError: If the shape is another one.
    """
    check_shape("encoding", encoding, ("...", POSE_DIM))
    rotation = quat_to_matrix(encoding[..., 3:7])
    cam_from_world = torch.cat([rotation, encoding[..., :3, None]], dim=-1)
    return Cameras(cam_from_world, fov_to_intrinsics(encoding[..., 7:], image_hw))


def activate_pose(encoding: Float[Tensor, "*batch 9"], *, min_fov: float = 0.0) -> Float[Tensor, "*batch 9"]:
    """Return the pose encoding of a raw network output: the field of view is rectified, the rest stays.

    Args:
        encoding: Raw output of the network, (..., 9).
        min_fov: Number that is added to the rectified field of view, in radians; defaults to 0.

    Returns:
        Pose encodings, (..., 9), of the same type.
    """
    fov = encoding[..., 7:].relu()
    return torch.cat([encoding[..., :7], fov + min_fov if min_fov else fov], dim=-1)
