"""Cameras that fit points to pixels: focal lengths from point maps, and poses from points and where they are seen."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from geomtx.checks import check_count, check_finite_positive, check_option, check_shape
from geomtx.layers.precision import float32_island
from geomtx.types import Float, Int, show_shapes

__all__ = ["PoseFit", "fit_focal", "fit_pose"]

_FOCAL_ROUNDS = 10
_FARTHEST = 4.0  # times the distance of the image's corner, in which a point is seen that has a say in the focal length
_TINY = 1e-8
_SAMPLE = 4  # points that determine a pose
_STARTS = 4  # eigenvectors that rotations are started from, each with both signs
_ROUNDS, _LAST_ROUNDS = 10, 30
_TESTED = 1 << 13  # points that a sample's pose is tested with


@float32_island
def fit_focal(
    points: Float[Tensor, "*batch h w 3"], *, method: Literal["weiszfeld", "median"] = "weiszfeld"
) -> Float[Tensor, "*batch"]:
    """Return the focal length in pixels by which each pixel's point projects to that pixel best, (...).

    The principal point is (W/2, H/2).

    Args:
        points: Point of each pixel in the camera's frame, (..., H, W, 3).
        method: "weiszfeld" minimises the sum of distances in pixels by ten rounds of reweighted least squares
            (Weiszfeld 1937), with a point taken for one on the axis whose image is not finite, or which the median of
            the pixels' focal lengths puts more than four times as far away as the image's corner: a point close to the
            camera's plane would outweigh all others; "median" is the median of the focal lengths of single pixels along
            x and along y.

    Raises:
        ValueError: If a shape is another one, or the method is unknown.
    """
    check_shape("points", points, ("...", "H", "W", 3))
    check_option("method", method, ("weiszfeld", "median"))
    height, width = points.shape[-3:-1]
    grid = _pixels(height, width, points)
    pixels = (grid - grid.new_tensor([width / 2, height / 2])).flatten(-3, -2)
    if method == "median":
        flat = points.flatten(-3, -2)
        return (pixels * flat[..., 2:] / flat[..., :2]).flatten(-2).nanmedian(-1).values
    rays = (points[..., :2] / points[..., 2:]).flatten(-3, -2)
    rays = torch.where(rays.isfinite(), rays, 0.0)
    along, square = (rays * pixels).sum(-1), rays.square().sum(-1)
    usual = (along / square).nanmedian(-1, keepdim=True).values
    limit = _FARTHEST * torch.linalg.vector_norm(pixels, dim=-1).amax()
    near = ~(usual * square.sqrt() > limit)
    rays, along, square = rays * near[..., None], along * near, square * near
    focal = along.mean(-1) / square.mean(-1)
    for _ in range(_FOCAL_ROUNDS):
        distance = torch.linalg.vector_norm(pixels - focal[..., None, None] * rays, dim=-1)
        weight = 1 / distance.clamp(min=_TINY)
        focal = (weight * along).mean(-1) / (weight * square).mean(-1)
    return focal


def _pixels(height: int, width: int, like: Tensor) -> Tensor:
    """Return (x, y) of each pixel, (H, W, 2)."""
    x = torch.arange(width, dtype=like.dtype, device=like.device).expand(height, width)
    y = torch.arange(height, dtype=like.dtype, device=like.device)[:, None].expand(height, width)
    return torch.stack([x, y], dim=-1)


@show_shapes
class PoseFit(NamedTuple):
    """Pose of a camera, fitted to points and pixels.

    Attributes:
        cam_from_world: Pose, (3, 4).
        focal: Focal length in pixels, chosen among those that were given, ().
        num_inliers: Number of points that project to within the tolerance, () int64.
    """

    cam_from_world: Float[Tensor, "3 4"]
    focal: Float[Tensor, ""]
    num_inliers: Int[Tensor, ""]


@float32_island
def fit_pose(
    points: Float[Tensor, "n 3"],
    coords_px: Float[Tensor, "n 2"],
    focals: Float[Tensor, " f"],
    *,
    num_samples: int = 10,
    tolerance_px: float = 5.0,
) -> PoseFit:
    """Return the pose in which a camera sees points at given pixels, whatever some of them show.

    Samples of four points each give a pose (RANSAC with fixed random numbers), the one with most inliers is kept, and
    the pose is solved again from all of its inliers: the rotation that minimises the squared error in the image plane
    times the depth, with the translation eliminated. Points on a plane are no exception.

    Args:
        points: Points in the world, (N, 3), at least four.
        coords_px: Pixels in which the camera sees the points, (x, y) relative to the principal point, (N, 2).
        focals: Focal lengths in pixels that are tried, (F,); the one with most inliers is chosen.
        num_samples: Number of samples for each focal length.
        tolerance_px: Largest distance in pixels of an inlier's projection.

    Raises:
        ValueError: If a shape is another one, or there are fewer than four points.

    Source: Terzakis & Lourakis 2020 (SQPnP), whose error this minimises by Gauss-Newton steps on rotations.
    """
    check_shape("points", points, ("N", 3))
    check_shape("coords_px", coords_px, (len(points), 2))
    check_shape("focals", focals, ("F",))
    check_count("num_samples", num_samples)
    check_finite_positive("tolerance_px", tolerance_px)
    num = len(points)
    if num < _SAMPLE:
        raise ValueError(f"points must be at least {_SAMPLE}, got {num}")
    middle = points.mean(0)
    centered, rays = points - middle, coords_px / focals[:, None, None]
    generator = torch.Generator().manual_seed(0)
    chosen = torch.rand(num_samples, min(num, _TESTED), generator=generator).topk(_SAMPLE, dim=1).indices
    chosen = (chosen * (num // min(num, _TESTED))).to(points.device)
    pose = _solve(centered[chosen].expand(len(focals), -1, -1, -1), rays[:, chosen], _ROUNDS)
    some = slice(None, None, -(-num // _TESTED))
    near = _distances(pose, centered[some], rays[:, None, some]) * focals[:, None, None] <= tolerance_px
    best = near.sum(-1).flatten().argmax()
    focal_index = best // num_samples
    focal, rays = focals[focal_index], rays[focal_index]
    inlier = _distances(pose.flatten(0, 1)[best], centered, rays) * focal <= tolerance_px
    enough = inlier.sum() >= _SAMPLE
    weights = torch.where(enough, inlier, torch.ones_like(inlier)).to(points.dtype)
    found = _solve(centered, rays, _LAST_ROUNDS, weights)
    count = (_distances(found, centered, rays) * focal <= tolerance_px).sum()
    rotation = found[:, :3]
    return PoseFit(torch.cat([rotation, (found[:, 3] - rotation @ middle)[:, None]], dim=1), focal, count)


def _distances(pose: Tensor, points: Tensor, rays: Tensor) -> Tensor:
    """Return distances on the plane at depth 1, (..., N); infinite behind the camera."""
    seen = points @ pose[..., :3].mT + pose[..., None, :, 3]
    distance = torch.linalg.vector_norm(seen[..., :2] / seen[..., 2:] - rays, dim=-1)
    return torch.where(seen[..., 2] > 0, distance, torch.inf)


def _solve(points: Tensor, rays: Tensor, rounds: int, weights: Tensor | None = None) -> Tensor:
    """Return poses (..., 3, 4) of points (..., N, 3) and rays (..., N, 2), of which those weighted 0 don't count."""
    zero, one = torch.zeros_like(points), torch.ones_like(points[..., :1])
    u, v = rays[..., :1], rays[..., 1:]
    rows = torch.stack(
        [torch.cat([points, zero, -u * points], dim=-1), torch.cat([zero, points, -v * points], dim=-1)], dim=-2
    )
    none = torch.zeros_like(one)
    shifts = torch.stack([torch.cat([one, none, -u], dim=-1), torch.cat([none, one, -v], dim=-1)], dim=-2)
    if weights is not None:
        rows, shifts = rows * weights[..., None, None], shifts * weights[..., None, None]
    rows, shifts = rows.flatten(-3, -2), shifts.flatten(-3, -2)
    # The best translation is linear in the rotation's nine numbers.
    square = shifts.mT @ shifts
    square = square + torch.finfo(square.dtype).eps * torch.eye(3, dtype=square.dtype, device=square.device)
    shift_of = -torch.linalg.solve(square, shifts.mT @ rows)
    cost = rows.mT @ rows + (rows.mT @ shifts) @ shift_of
    rotation = _minimise(0.5 * (cost + cost.mT), rounds)
    nine = rotation.flatten(-2)
    shift = (shift_of[..., None, :, :] @ nine[..., None]).squeeze(-1)
    error = (nine * (cost[..., None, :, :] @ nine[..., None]).squeeze(-1)).sum(-1)
    # Points are around the origin, which must lie in front.
    best = torch.where(shift[..., 2] > 0, error, torch.inf).argmin(-1)
    pose = torch.cat([rotation, shift[..., None]], dim=-1)
    return pose.gather(-3, best[..., None, None, None].expand(*best.shape, 1, 3, 4)).squeeze(-3)


def _minimise(cost: Tensor, rounds: int) -> Tensor:
    """Return rotations that locally minimise rᵀ C r of their nine numbers r, (..., 8, 3, 3) of costs C (..., 9, 9)."""
    import roma

    vectors = torch.linalg.eigh(cost).eigenvectors[..., :_STARTS].mT
    rotation = roma.special_procrustes(torch.cat([vectors, -vectors], dim=-2).unflatten(-1, (3, 3)))
    turns = cost.new_zeros(3, 3, 3)
    for axis in range(3):
        turns[axis, (axis + 2) % 3, (axis + 1) % 3] = 1
        turns[axis, (axis + 1) % 3, (axis + 2) % 3] = -1
    cost, eye = cost[..., None, :, :], torch.eye(3, dtype=cost.dtype, device=cost.device)
    for _ in range(rounds):
        nine, change = rotation.flatten(-2), (turns @ rotation[..., None, :, :]).flatten(-2)
        product = change @ cost
        system = product @ change.mT
        size = system.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
        system = system + (1e-9 * size + torch.finfo(size.dtype).tiny) * eye
        step = torch.linalg.solve(system, -(product @ nine[..., None])).squeeze(-1)
        rotation = roma.rotvec_to_rotmat(step) @ rotation
    return rotation
