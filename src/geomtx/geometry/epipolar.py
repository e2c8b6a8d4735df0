"""Epipolar geometry of two views: fundamental matrices and the Sampson distance.

kornia has both functions. Across the versions that are allowed (0.8 and later) its distance is not finite, or has no
finite gradient, where it is undefined, and its matrix needs a general inverse; the tests of this module need neither.
"""

from __future__ import annotations

import torch
from torch import Tensor

from geomtx.checks import check_shape
from geomtx.layers.precision import float32_island
from geomtx.types import Float

__all__ = ["fundamental_matrix", "sampson_distance"]


@float32_island
def fundamental_matrix(
    intrinsics_a: Float[Tensor, "*#batch 3 3"],
    intrinsics_b: Float[Tensor, "*#batch 3 3"],
    b_from_a: Float[Tensor, "*#batch 3 4"],
) -> Float[Tensor, "*out 3 3"]:
    """Compute the matrix F with x_bᵀ F x_a = 0 for the pixels (x, y, 1) of one point in cameras a and b.

    F = K_b⁻ᵀ [t]ₓ R K_a⁻¹ (Hartley & Zisserman, section 9.2). Its scale is that of t: without a baseline it is 0.

    Args:
        intrinsics_a: Intrinsics of camera a, (…, 3, 3), pixels.
        intrinsics_b: Intrinsics of camera b, (…, 3, 3), pixels.
        b_from_a: Pose [R | t] from the frame of camera a to that of camera b, (…, 3, 4).

    Returns:
        Fundamental matrix, (…, 3, 3), float32 or float64.

    Raises:
        ValueError: For other shapes.
    """
    check_shape("intrinsics_a", intrinsics_a, ("...", 3, 3))
    check_shape("intrinsics_b", intrinsics_b, ("...", 3, 3))
    check_shape("b_from_a", b_from_a, ("...", 3, 4))
    rotation, translation = b_from_a[..., :3], b_from_a[..., 3:]
    # The columns of [t]ₓ R are t × the columns of R.
    essential = torch.linalg.cross(translation.expand_as(rotation), rotation, dim=-2)
    return _inverse(intrinsics_b).transpose(-1, -2) @ essential @ _inverse(intrinsics_a)


def _inverse(intrinsics: Tensor) -> Tensor:
    """Return K⁻¹ in closed form; a general inverse makes the host wait for the device's error code."""
    f_x, f_y, skew = intrinsics[..., 0, 0], intrinsics[..., 1, 1], intrinsics[..., 0, 1]
    c_x, c_y = intrinsics[..., 0, 2], intrinsics[..., 1, 2]
    zero, one = torch.zeros_like(f_x), torch.ones_like(f_x)
    rows = (
        *(1 / f_x, -skew / (f_x * f_y), (skew * c_y / f_y - c_x) / f_x),
        *(zero, 1 / f_y, -c_y / f_y),
        *(zero, zero, one),
    )
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


@float32_island
def sampson_distance(
    coords_a: Float[Tensor, "*#batch n 2"],
    coords_b: Float[Tensor, "*#batch n 2"],
    fundamental: Float[Tensor, "*#batch 3 3"],
) -> Float[Tensor, "*out n"]:
    """Compute the first-order distance of pixel pairs from the nearest pairs that satisfy a fundamental matrix.

    The distance is |x_bᵀ F x_a| over the norm of its gradient with respect to the four coordinates (Hartley &
    Zisserman, section 11.4.3): a length, the root of what is often called the Sampson error.

    Args:
        coords_a: Pixels of camera a, (…, N, 2).
        coords_b: Pixels of camera b, (…, N, 2).
        fundamental: Fundamental matrix, (…, 3, 3), of any scale.

    Returns:
        Distance, (…, N), pixels, float32 or float64. Where it is undefined, for F = 0 or with both pixels on the
        epipoles, it is 0 with a gradient of 0.

    Raises:
        ValueError: For other shapes.
    """
    check_shape("coords_a", coords_a, ("...", "N", 2))
    check_shape("coords_b", coords_b, ("...", "N", 2))
    check_shape("fundamental", fundamental, ("...", 3, 3))
    a, b = (torch.cat([coords, torch.ones_like(coords[..., :1])], dim=-1) for coords in (coords_a, coords_b))
    # The distance doesn't depend on the scale of the matrix, but the squares below do and would underflow.
    size = fundamental.detach().abs().amax((-2, -1), keepdim=True)
    fundamental = fundamental / torch.where(size > 0, size, 1.0)
    line_b, line_a = a @ fundamental.transpose(-1, -2), b @ fundamental
    residual = (b * line_b).sum(-1)
    slope_sq = line_a[..., :2].square().sum(-1) + line_b[..., :2].square().sum(-1)
    # Smaller slopes are zero up to rounding.
    has_value = slope_sq > torch.finfo(slope_sq.dtype).eps ** 2
    distance = torch.where(has_value, residual, 0.0).abs() * torch.where(has_value, slope_sq, 1.0).rsqrt()
    return torch.where(has_value, distance, 0.0)
