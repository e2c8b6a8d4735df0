"""How sure alignment is of each pixel, and points that hide what other images see."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from geomtx.geometry.camera import transform_points
from geomtx.geometry.projection import project, unproject
from geomtx.inference.pair_maps import PairMaps
from geomtx.types import Cameras

__all__ = ["clean_confidence", "image_confidence", "leave_out_pixels"]


def leave_out_pixels(maps: PairMaps, masks: Sequence[Tensor] | None = None) -> PairMaps:
    """Return the maps with the confidence 0 where a pixel is masked, or its point or its confidence is not finite.

    Points that are not finite become 0; maps in which nothing is left out are not copied.

    Args:
        maps: Point maps of the pairs.
        masks: Pixels of each image that take part, (H, W) bool each; defaults to all.
    """
    kept: tuple[list[Tensor], ...] = ([], [], [], [])
    for index, images in enumerate(maps.pairs.tolist()):
        for side, image in enumerate(images):
            points, confidence = maps.side(index, side)
            finite = points.isfinite().all(-1) & confidence.isfinite()
            counts = finite if masks is None else finite & masks[image].to(finite.device)
            kept[side].append(points if finite.all() else torch.where(finite[..., None], points, 0.0))
            kept[2 + side].append(confidence if counts.all() else torch.where(counts, confidence, 0.0))
    return PairMaps(maps.pairs, *(tuple(each) for each in kept))


def image_confidence(maps: PairMaps, num_images: int) -> tuple[Tensor, ...]:
    """Return the largest confidence of each pixel among all pairs of its image, S tensors (H, W).

    Args:
        maps: Point maps of the pairs.
        num_images: Number of images, each in a pair.
    """
    found: list[Tensor | None] = [None] * num_images
    for index, images in enumerate(maps.pairs.tolist()):
        for side, image in enumerate(images):
            own, other = maps.side(index, side)[1], found[image]
            own = own.to(torch.promote_types(own.dtype, torch.float32))
            found[image] = own if other is None else torch.maximum(own, other)
    return tuple(each for each in found if each is not None)


def clean_confidence(
    cameras: Cameras, depth: Sequence[Tensor], confidence: Sequence[Tensor], *, tolerance: float = 1e-3
) -> tuple[Tensor, ...]:
    """Return confidences that are at most 0 for points in front of what a surer pixel of another image sees.

    For all images i, and for all other images j: a point of i that lies in j's image, nearer to j than the share
    1 - `tolerance` of j's depth at the pixel next to its projection, and of less confidence than that pixel, is wrong.
    Confidences that are lowered so count as such in what follows.

    Args:
        cameras: Cameras of the images, (S, 3, 4) and (S, 3, 3) in pixels of the depth maps.
        depth: Depth of each image, S tensors (H, W).
        confidence: Confidence of each image, S tensors (H, W).
        tolerance: Share of the depth by which a point must be nearer.
    """
    cleaned = [each.clone() for each in confidence]
    for i, own in enumerate(depth):
        pose, intrinsics = cameras.cam_from_world[i], cameras.intrinsics[i]
        world = unproject(own, intrinsics, pose).flatten(0, 1)
        for j, other in enumerate(depth):
            if i == j:
                continue
            seen = transform_points(cameras.cam_from_world[j], world)
            coords, z = project(seen, cameras.intrinsics[j])
            x, y = coords.round().unbind(-1)
            height, width = other.shape
            inside = (z > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
            column, row = (torch.where(inside, each, 0.0).long() for each in (x, y))
            hides = inside & (z < (1 - tolerance) * other[row, column])
            flat = cleaned[i].flatten()
            hides &= flat < cleaned[j][row, column]
            cleaned[i] = torch.where(hides, flat.clamp(max=0), flat).view_as(own)
    return tuple(cleaned)
