"""Pixels of two views that show the same point, for losses of descriptors (MASt3R, Leroy et al. 2024)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.checks import check_count, check_finite_positive, check_mask, check_shape
from geomtx.geometry.camera import transform_points
from geomtx.geometry.projection import project
from geomtx.types import Bool, Cameras, Float, Int, show_shapes

__all__ = ["PixelMatches", "match_pixels"]


@show_shapes
class PixelMatches(NamedTuple):
    """Pixels of the two views of B scenes, as `geomtx.losses.matching_loss` takes them.

    Attributes:
        first: Pixels (x, y) of the first views, (B, N, 2) int64, each at most once in a scene.
        second: Pixels (x, y) of the second views, (B, N, 2) int64.
        valid: Mask of the pairs of pixels that show the same point, (B, N) bool. The others are further pixels of
            both views, which match none of these.
    """

    first: Int[Tensor, "b n 2"]
    second: Int[Tensor, "b n 2"]
    valid: Bool[Tensor, "b n"]


def match_pixels(
    points: Float[Tensor, "b s h w 3"],
    cameras: Cameras,
    mask: Bool[Tensor, "b s h w"],
    *,
    num_matches: int = 4096,
    tolerance: float = 0.05,
) -> PixelMatches:
    """Draw matching pixels of two views from known geometry, and as many further pixels, by torch's global generator.

    The point of a pixel of the first view is projected into the second, to the nearest pixel there. The two match if
    that pixel's own depth agrees. No pixel of either view is in two matches.

    Args:
        points: Points of every pixel, in the world of the cameras, (B, 2, H, W, 3).
        cameras: Cameras of both views, `cam_from_world` (B, 2, 3, 4) and `intrinsics` (B, 2, 3, 3).
        mask: Mask of the pixels with known points, (B, 2, H, W) bool.
        num_matches: Largest number of matches M of a scene, at most half of an image's pixels; defaults to 4096.
        tolerance: Largest difference of the two depths relative to both of them; defaults to 0.05.

    Returns:
        2 M pairs of pixels, (B, 2 M, 2) each; the matches of a scene come first.

    Raises:
        ValueError: For other shapes, or numbers out of range.
    """
    check_shape("points", points, ("B", 2, "H", "W", 3))
    check_mask("mask", mask, tuple(points.shape[:-1]))
    check_count("num_matches", num_matches)
    check_finite_positive("tolerance", tolerance)
    height, width = mask.shape[-2:]
    known = torch.where(mask[..., None], points, 0.0).flatten(2, 3)
    into, intrinsics = cameras.cam_from_world[:, 1], cameras.intrinsics[:, 1]
    coords, depth = project(known[:, 0], intrinsics, into)
    x, y = coords.round().unbind(-1)
    inside = (depth > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height) & mask[:, 0].flatten(1)
    target = torch.where(inside, y * width + x, 0.0).long()
    there = transform_points(into, known[:, 1])[..., 2].gather(1, target)
    close = (depth - there).abs() < tolerance * torch.minimum(depth, there)
    seen = inside & close & mask[:, 1].flatten(1).gather(1, target)
    # Of several pixels that fall on one, the one with the highest of random ranks matches it.
    rank = _draw_ranks(seen)
    highest = torch.full_like(rank, -1).scatter_reduce(1, target, torch.where(seen, rank, -1), "amax")
    matched = seen & (rank == highest.gather(1, target))
    return _choose(matched, seen & ~matched, target, min(num_matches, height * width // 2), width)


def _choose(matched: Tensor, beaten: Tensor, target: Tensor, most: int, width: int) -> PixelMatches:
    """Draw at most `most` of the matches, and further pixels up to twice as many; masks and indices are (B, H·W)."""
    count = matched.shape[1]
    # Matches first; pixels that show what another pixel's match shows come last.
    first = (_draw_ranks(matched) + count * (matched.long() - beaten.long())).topk(2 * most).indices
    valid = matched.gather(1, first) & (torch.arange(2 * most, device=first.device) < most)
    second = target.gather(1, first)
    taken = torch.zeros_like(target).scatter_reduce(1, second, valid.long(), "amax")
    others = (_draw_ranks(matched) - count * taken).topk(2 * most).indices
    place = ((~valid).cumsum(1) - 1).clamp(min=0)
    second = torch.where(valid, second, others.gather(1, place))
    return PixelMatches(_to_coords(first, width), _to_coords(second, width), valid)


def _draw_ranks(like: Tensor) -> Tensor:
    """Return a random order of the entries of each row, (B, N) int64."""
    return torch.rand(like.shape, device=like.device).argsort(1)


def _to_coords(index: Tensor, width: int) -> Tensor:
    return torch.stack([index % width, index // width], dim=-1)
