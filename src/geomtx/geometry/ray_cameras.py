"""Cameras from maps of rays (Depth Anything 3, Lin et al. 2025, "ray pose")."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from geomtx.checks import check_option, check_shape
from geomtx.geometry.camera import invert_rigid
from geomtx.layers.precision import float32_island
from geomtx.types import Cameras, Float, Int

__all__ = ["Decomposition", "cameras_from_rays"]

Decomposition = Literal["qr", "ql"]
"""How rotation and intrinsics are told apart, see `cameras_from_rays`."""

_LEAST_Z = 1e-4  # rays across the optical axis of the world have no point in its image plane
_NUM_DRAWS, _POINTS_A_DRAW = 100, 8
_CANDIDATES = 0.3  # the most confident share of the pixels, which draws are made from
_THRESHOLD = 0.2  # largest distance of an inlier, in the plane z = 1
_MOST_POINTS = 8000  # of the last fit
_KEPT = 0.95  # share of the inliers that the points of the last fit are drawn from


@float32_island
def cameras_from_rays(
    rays: Float[Tensor, "b s h w 6"],
    confidence: Float[Tensor, "b s h w"],
    image_hw: tuple[int, int],
    *,
    decomposition: Decomposition = "qr",
    samples: Int[Tensor, "draws points"] | None = None,
) -> Cameras:
    """Fit a camera to the rays of every view.

    A ray's direction at the pixel p is R K⁻¹ p, with R the rotation from the camera to the world. The homography R K⁻¹
    is fitted to the directions by RANSAC and least squares, and taken apart; the centre is the mean of the rays'
    origins, weighted by their confidence.

    Args:
        rays: Direction (3) and origin (3) of the ray through each pixel, (B, S, h, w, 6), in one world.
        confidence: Confidence of the rays, (B, S, h, w), at least 0.
        image_hw: Height and width in pixels of the images that the intrinsics shall belong to.
        decomposition: "qr" takes the homography apart exactly, as the inverse of intrinsics is upper triangular. "ql"
            is the published way, which is exact for principal points in the middle of the image only.
        samples: Ranks of the pixels of each draw of RANSAC, (draws, 8 or more), where 0 is the most confident pixel;
            the same for all views. Defaults to 100 draws of 8, which are the same in every call.

    Returns:
        Cameras, (B, S, 3, 4) and (B, S, 3, 3), in float32 or better.

    Raises:
        ValueError: If a shape is another one, or the decomposition is unknown.
    """
    check_option("decomposition", decomposition, ("qr", "ql"))
    check_shape("rays", rays, ("B", "S", "h", "w", 6))
    check_shape("confidence", confidence, tuple(rays.shape[:-1]))
    plane = _image_plane((rays.shape[2], rays.shape[3]), rays)
    if samples is None:
        samples = _draw_samples(len(plane)).to(rays.device)
    views = zip(rays.flatten(0, 1).flatten(1, 2), confidence.flatten(0, 1).flatten(1), strict=True)
    fitted = [_fit_view(plane, each, weight, samples) for each, weight in views]
    homography = torch.stack([each for each, _ in fitted])
    center = torch.stack([each for _, each in fitted])
    rotation, intrinsics = (_decompose_qr if decomposition == "qr" else _decompose_ql)(homography)
    poses = invert_rigid(torch.cat([rotation, center[..., None]], dim=-1))
    # From an image plane of size 2 x 2 with its corner at 0 to pixels.
    size = intrinsics.new_tensor([image_hw[1] / 2, image_hw[0] / 2, 1.0])
    return Cameras(*(each.unflatten(0, rays.shape[:2]) for each in (poses, size[:, None] * intrinsics)))


def _image_plane(map_hw: tuple[int, int], like: Tensor) -> Float[Tensor, "n 3"]:
    """Return the pixels' centres on an image plane of size 2 x 2 around (0, 0), as (x, y, 1)."""
    y, x = (torch.arange(1 - size, size, 2, device=like.device, dtype=like.dtype) / size for size in map_hw)
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([columns, rows, torch.ones_like(rows)], dim=-1).flatten(0, 1)


def _num_candidates(num_pixels: int) -> int:
    return max(_POINTS_A_DRAW, int(_CANDIDATES * num_pixels))


def _draw_samples(num_pixels: int) -> Int[Tensor, "draws points"]:
    keys = torch.rand(_NUM_DRAWS, _num_candidates(num_pixels), generator=torch.Generator().manual_seed(0))
    return keys.topk(_POINTS_A_DRAW, dim=1).indices


def _fit_view(plane: Tensor, rays: Tensor, confidence: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Return the homography (3, 3) from the image plane to directions, and the centre (3,), of one view."""
    directions, origins = rays.split(3, dim=-1)
    usable = directions[:, 2].abs() > _LEAST_Z
    weight = confidence * usable
    target = directions[:, :2] / torch.where(usable, directions[:, 2], 1.0)[:, None]
    order = weight.argsort(descending=True, stable=True)
    drawn = order[samples]
    trials = _fit_homography(plane[drawn], target[drawn], weight[drawn])
    inliers = _find_inliers(trials, plane, target)
    best = (inliers * weight).sum(dim=-1).argmax()
    chosen = order[inliers[best][order]]  # the most confident first
    if len(chosen) > _MOST_POINTS:
        chosen = chosen[: max(int(_KEPT * len(chosen)), _MOST_POINTS)]
        kept = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))[:_MOST_POINTS]
        chosen = chosen[kept.to(chosen.device)]
    homography = _fit_homography(plane[chosen], target[chosen], weight[chosen])
    homography = torch.where(torch.linalg.det(homography) < 0, -homography, homography)
    return homography, (weight[:, None] * origins).sum(dim=0) / weight.sum()


def _find_inliers(homographies: Tensor, plane: Tensor, target: Tensor) -> Tensor:
    """Return which points each homography maps near to their targets, (draws, N) bool."""
    mapped = plane @ homographies.mT
    return (mapped[..., :2] / mapped[..., 2:] - target).square().sum(dim=-1) < _THRESHOLD**2


def _fit_homography(plane: Tensor, target: Tensor, weight: Tensor) -> Float[Tensor, "*batch 3 3"]:
    """Return the homographies that map points (..., n, 3) to targets (..., n, 2), by the weighted linear method."""
    zero = torch.zeros_like(plane)
    rows = [
        torch.cat([-plane, zero, target[..., :1] * plane], -1),
        torch.cat([zero, -plane, target[..., 1:] * plane], -1),
    ]
    system = torch.cat([weight.sqrt()[..., None] * each for each in rows], dim=-2)
    solution = torch.linalg.svd(system, full_matrices=False).Vh[..., -1, :]
    return (solution / solution[..., -1:]).unflatten(-1, (3, 3))


def _decompose_qr(homography: Tensor) -> tuple[Tensor, Tensor]:
    """Return rotation and intrinsics of R K⁻¹, as the inverse of intrinsics is upper triangular."""
    rotation, upper = torch.linalg.qr(homography)
    sign = upper.diagonal(dim1=-2, dim2=-1).sign()
    rotation, upper = rotation * sign[..., None, :], upper * sign[..., None]
    upper = upper / upper[..., 2:, 2:]
    focal = 1 / upper[..., :2, :2].diagonal(dim1=-2, dim2=-1)
    return rotation, _intrinsics(focal, 1 - upper[..., :2, 2] * focal)


def _decompose_ql(homography: Tensor) -> tuple[Tensor, Tensor]:
    """Return rotation and intrinsics as if K⁻¹ were lower triangular."""
    rotation, upper = torch.linalg.qr(homography.flip(-1))
    rotation, lower = rotation.flip(-1), upper.flip(-1, -2)
    sign = lower.diagonal(dim1=-2, dim2=-1).sign()
    rotation, lower = rotation * sign[..., None, :], lower * sign[..., None]
    lower = lower / lower[..., 2:, 2:]
    focal = 1 / lower[..., :2, :2].diagonal(dim1=-2, dim2=-1)
    return rotation, _intrinsics(focal, lower[..., 2, :2] + 1)


def _intrinsics(focal: Tensor, center: Tensor) -> Float[Tensor, "*batch 3 3"]:
    ones = torch.ones_like(focal[..., :1])
    intrinsics = torch.diag_embed(torch.cat([focal, ones], dim=-1))
    return torch.cat([intrinsics[..., :2], torch.cat([center, ones], dim=-1)[..., None]], dim=-1)
