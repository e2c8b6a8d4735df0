"""Track labels from depth and cameras, and negative tracks, which follow no point (VGGT, released data pipeline).

The world point of a pixel of view 0 is projected into the other views. It is visible where their depth agrees.
"""

from __future__ import annotations

import torch
from torch import Tensor

from geomtx.checks import check_floating, check_positive, check_range, check_shape
from geomtx.geometry.camera import compose_rigid, invert_rigid
from geomtx.geometry.epipolar import fundamental_matrix, sampson_distance
from geomtx.geometry.projection import project, unproject
from geomtx.types import Bool, Cameras, Float, TrackLabels

__all__ = [
    "build_track_labels",
    "choose_tracks",
    "draw_negatives",
]

_MIN_DISTANCE_PX = 4.0
_MAX_CANDIDATES = 65536  # pixels of view 0 from which tracks are chosen


def draw_negatives(
    intrinsics: Float[Tensor, "s 3 3"],
    cam_from_first: Float[Tensor, "s 3 4"],
    image_hw: tuple[int, int] | torch.Size,
    num_tracks: int,
    *,
    border: int,
    generator: torch.Generator | None,
) -> Float[Tensor, "s n 2"]:
    """Draw at most `num_tracks` random tracks that are over 4 px from the epipolar line in every view but the first.

    They start at random pixels of view 0 and are displaced by up to half the image in each other view. For two cameras
    with the same centre, the distance is to the pixel of the same ray instead of an epipolar line.
    """
    if num_tracks == 0 or len(intrinsics) < 2:
        return intrinsics.new_zeros(len(intrinsics), 0, 2)
    height, width = image_hw
    num_drawn = 4 * num_tracks
    device = intrinsics.device if generator is None else generator.device
    draws = torch.rand(len(intrinsics), num_drawn, 2, generator=generator, device=device, dtype=intrinsics.dtype)
    draws = draws.to(intrinsics.device)
    extent = intrinsics.new_tensor([width - 1 - 2 * border, height - 1 - 2 * border]).clamp(min=0)
    start = (border + draws[0] * extent).round()
    others = start + (draws[1:] - 0.5) * intrinsics.new_tensor([width, height])
    far = (_epipolar_distance(start, others, intrinsics, cam_from_first) > _MIN_DISTANCE_PX).all(0)
    coords_px = torch.cat([start[None], others])
    return coords_px[:, far.nonzero()[:num_tracks, 0]]


def _epipolar_distance(start: Tensor, others: Tensor, intrinsics: Tensor, cam_from_first: Tensor) -> Tensor:
    """Return the distance to the epipolar line in pixels, (S - 1, M)."""
    rotation, translation = cam_from_first[1:, :, :3], cam_from_first[1:, :, 3:]
    length = translation.norm(dim=1, keepdim=True)
    same_place = length <= 1e-6
    direction = torch.where(same_place, torch.ones_like(translation), translation / length.clamp(min=1e-12))
    b_from_a = torch.cat([rotation, direction], dim=-1)
    fundamental = fundamental_matrix(intrinsics[:1].expand_as(intrinsics[1:]), intrinsics[1:], b_from_a)
    distance = sampson_distance(start.expand_as(others), others, fundamental)
    rays = _cast_rays(start, intrinsics[0])
    match, depth = project(rays @ rotation.transpose(-1, -2), intrinsics[1:])
    apart = torch.where(depth > 0, (others - match).norm(dim=-1), torch.inf)
    return torch.where(same_place[..., 0], apart, distance)


def _cast_rays(coords_px: Float[Tensor, "n 2"], intrinsics: Float[Tensor, "3 3"]) -> Float[Tensor, "n 3"]:
    """Return the points of depth 1 on the rays of pixels, in the camera's frame."""
    homogeneous = torch.cat([coords_px, torch.ones_like(coords_px[:, :1])], dim=-1)
    return homogeneous @ intrinsics.inverse().T


# Rounding may leave a coordinate this much below a whole pixel, in pixels.
_ROUNDING_PX = 1e-3


def build_track_labels(
    depth: Float[Tensor, "b s h w"],
    cameras: Cameras,
    mask: Bool[Tensor, "b s h w"] | None = None,
    *,
    num_tracks: int = 1024,
    neg_ratio: float = 0.0,
    border: int = 4,
    tolerance: float = 0.05,
    generator: torch.Generator | None = None,
) -> TrackLabels:
    """Build tracks of pixels of view 0.

    A point is visible in a view if it projects at least `border` pixels inside of it and its depth differs by less than
    `tolerance` from that of one of the four surrounding pixels. Tracks are drawn from the pixels that are visible in
    view 0 and another view; if the half of them that most views see is more than enough, from that half. If there are
    too few, tracks are repeated; if there are none, all tracks are invalid.

    Args:
        depth: z-depth (B, S, H, W) in the unit of the translations.
        cameras: `cam_from_world` (B, S, 3, 4) and `intrinsics` (B, S, 3, 3) in pixels of the depth maps.
        mask: (B, S, H, W) bool, True where depth is known; defaults to where it is positive. Unknown depth may be NaN.
        num_tracks: Number of tracks N; defaults to 1024.
        neg_ratio: Share of negative tracks in 0 … 1, which follow no point: over 4 px from the epipolar line in
            every other view, never visible and never valid. There are fewer if not enough are found. Defaults to 0.
        border: Smallest distance from the border in pixels, at least 1; defaults to 4.
        tolerance: Largest difference of the depths relative to both of them; defaults to 0.05.
        generator: Source of random numbers on any device; defaults to the global one of the depth's device.

    Returns:
        Labels of N tracks on the depth's device, with coordinates in the depth's dtype, float32 or better.

    Raises:
        ValueError: For other shapes, integer depth, or options out of range.
    """
    _check_arguments(depth, cameras, mask)
    for name, value in (("num_tracks", num_tracks), ("border", border), ("tolerance", tolerance)):
        check_positive(name, value)
    check_range("neg_ratio", neg_ratio, 0, 1)
    known = depth.isfinite() & (depth > 1e-8) if mask is None else mask & depth.isfinite() & (depth > 1e-8)
    dtype = torch.promote_types(depth.dtype, torch.float32)
    depth = torch.where(known, depth, torch.zeros_like(depth)).to(dtype)
    intrinsics = cameras.intrinsics.to(dtype)
    # Relative to view 0 before the cast: cameras in float64 may be far from the origin of their world.
    poses = cameras.cam_from_world.to(torch.promote_types(cameras.cam_from_world.dtype, dtype))
    with torch.autocast(depth.device.type, enabled=False):
        cam_from_first = compose_rigid(poses, invert_rigid(poses[:, :1]).expand_as(poses)).to(dtype)
        scenes = []
        for index, scene in enumerate(zip(depth, intrinsics, cam_from_first, strict=True)):
            pixels = _draw_pixels(known[index, 0], generator)
            coords_px, visible = _follow_pixels(pixels, *scene, border, tolerance)
            num_negatives = round(num_tracks * neg_ratio)
            negatives = draw_negatives(*scene[1:], depth.shape[-2:], num_negatives, border=border, generator=generator)
            positives = _draw_positives(coords_px, visible, num_tracks - negatives.shape[1], generator)
            scenes.append(_join(positives, negatives))
    return TrackLabels(*(torch.stack(parts) for parts in zip(*scenes, strict=True)))


def choose_tracks(tracks: TrackLabels, num_tracks: int, *, generator: torch.Generator | None = None) -> TrackLabels:
    """Choose tracks that are visible in view 0 from the tracks of a dataset.

    Args:
        tracks: Labels of M tracks, (B, S, M, 2).
        num_tracks: Number N of tracks to choose; with replacement if there are fewer.
        generator: Source of random numbers on any device; defaults to the global one.

    Returns:
        Labels of N tracks, (B, S, N, 2). In a scene without such tracks all are invalid.

    Raises:
        ValueError: If `num_tracks` is not positive.
    """
    check_positive("num_tracks", num_tracks)
    scenes = []
    for coords_px, visible, valid in zip(*tracks, strict=True):
        pool = (visible[0] & valid).nonzero()[:, 0]
        order = _permute(len(pool), generator, coords_px.device)
        if len(pool) < num_tracks and len(pool):
            device = coords_px.device if generator is None else generator.device
            order = torch.randint(len(pool), (num_tracks,), generator=generator, device=device).to(coords_px.device)
        picked = pool[order[:num_tracks]]
        scenes.append(_take(coords_px, visible, picked, num_tracks))
    return TrackLabels(*(torch.stack(parts) for parts in zip(*scenes, strict=True)))


def _check_arguments(depth: Tensor, cameras: Cameras, mask: Tensor | None) -> None:
    check_shape("depth", depth, ("B", "S", "H", "W"))
    check_floating("depth", depth)
    check_shape("cam_from_world", cameras.cam_from_world, (*depth.shape[:2], 3, 4))
    check_shape("intrinsics", cameras.intrinsics, (*depth.shape[:2], 3, 3))
    if mask is not None:
        check_shape("mask", mask, tuple(depth.shape))


def _draw_pixels(known: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw at most 65536 known pixels, (M, 2) as row and column."""
    pixels = known.nonzero()
    if len(pixels) <= _MAX_CANDIDATES:
        return pixels
    return pixels[_permute(len(pixels), generator, known.device)[:_MAX_CANDIDATES]]


def _follow_pixels(
    pixels: Tensor,
    depth: Tensor,
    intrinsics: Tensor,
    cam_from_first: Tensor,
    border: int,
    tolerance: float,
) -> tuple[Tensor, Tensor]:
    """Project M pixels of view 0 into all views: positions (S, M, 2) and whether they are visible (S, M)."""
    height, width = depth.shape[-2:]
    y, x = pixels.unbind(-1)
    points = unproject(depth[0], intrinsics[0])[y, x]
    coords_px, z = project(points.expand(len(depth), -1, -1), intrinsics, cam_from_first)
    # In view 0 they are the pixels themselves, without the rounding errors of unprojection and projection.
    coords_px[0] = pixels.flip(-1).to(depth.dtype)
    base = (coords_px + _ROUNDING_PX).floor()
    x, y = base.unbind(-1)
    inside = (x >= border) & (x < width - border) & (y >= border) & (y < height - border)
    # Selected before the cast to integers, because coordinates outside of the image may be arbitrarily large.
    corner = torch.where(inside[..., None], base, torch.zeros_like(base)).long()
    # Unknown depth, which is 0, agrees with nothing, and neither does a point behind the camera, whose z is negative.
    agrees = torch.zeros_like(inside)
    for step_x, step_y in ((0, 0), (1, 0), (0, 1), (1, 1)):
        index = (corner[..., 1] + step_y) * width + corner[..., 0] + step_x
        there = depth.flatten(1).gather(1, index)
        difference = (z - there).abs()
        agrees |= (difference < tolerance * z) & (difference < tolerance * there)
    return coords_px, inside & agrees


def _draw_positives(
    coords_px: Tensor, visible: Tensor, num_tracks: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    counts = visible.sum(0)
    pool = (visible[0] & (counts >= 2)).nonzero()[:, 0]
    if len(pool) // 2 > num_tracks:
        pool = pool[counts[pool].argsort(descending=True, stable=True)[: len(pool) // 2]]
    picked = pool[_permute(len(pool), generator, coords_px.device)[:num_tracks]]
    return _take(coords_px, visible, picked, num_tracks)


def _take(coords_px: Tensor, visible: Tensor, picked: Tensor, num_tracks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Take the tracks `picked`, repeated up to `num_tracks`; all tracks are invalid if there are none."""
    if len(picked) == 0:
        shape = (len(coords_px), num_tracks)
        return coords_px.new_zeros(*shape, 2), visible.new_zeros(shape), visible.new_zeros(num_tracks)
    picked = picked.repeat(-(-num_tracks // len(picked)))[:num_tracks]
    return coords_px[:, picked], visible[:, picked], visible.new_ones(num_tracks)


def _join(positives: tuple[Tensor, Tensor, Tensor], negatives: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    coords_px, visible, valid = positives
    unseen = visible.new_zeros(negatives.shape[:2])
    return (
        torch.cat([coords_px, negatives], dim=1),
        torch.cat([visible, unseen], dim=1),
        torch.cat([valid, unseen[0]]),
    )


def _permute(size: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    return torch.randperm(size, generator=generator, device=generator.device if generator else device).to(device)
