"""Conditioning of an encoder on known depth, intrinsics and poses (Pi3X)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from geomtx.checks import check_mask, check_shape
from geomtx.encoder.patches import Backbone
from geomtx.geometry.camera import compose_rigid, invert_rigid
from geomtx.layers.precision import float32_island
from geomtx.types import Float, show_shapes

__all__ = ["GeometryConditioning", "GeometryHints", "KnownGeometry", "check_geometry", "prepare_geometry"]

_SHORTEST_BASELINE = 0.02  # where no camera is farther from the first, lengths say nothing of the scene's size
_EPSILON = 1e-8


@show_shapes
class KnownGeometry(NamedTuple):
    """What is known of the views of scenes before anything is predicted; what isn't known is None.

    Attributes:
        cam_from_world: Poses (B, S, 3, 4), OpenCV axes, in any frame and unit.
        intrinsics: Intrinsics (B, S, 3, 3) in pixels of the images.
        depth: Depth (B, S, H, W), the z coordinate in the camera, in the unit of the poses; 0 where it is unknown.
        pose_mask: Boolean mask of the views whose pose is known, (B, S); None for all.
        intrinsics_mask: Boolean mask of the views whose intrinsics are known, (B, S); None for all.
        depth_mask: Boolean mask of the views of which some depth is known, (B, S); None for all.
    """

    cam_from_world: Tensor | None = None
    intrinsics: Tensor | None = None
    depth: Tensor | None = None
    pose_mask: Tensor | None = None
    intrinsics_mask: Tensor | None = None
    depth_mask: Tensor | None = None


@show_shapes
class GeometryHints(NamedTuple):
    """Known geometry of scenes as a model is conditioned on it, in the unit and the frame of its training.

    Attributes:
        depth: Depth in the unit of the scene, 0 where it is unknown, (B, S, H, W); None for none.
        depth_mask: Mask of the views whose depth is used, (B, S) bool; None without depth.
        intrinsics: Intrinsics in pixels of the images, (B, S, 3, 3); None for none.
        intrinsics_mask: Mask of the views whose intrinsics are used, (B, S) bool; None without intrinsics.
        poses: Poses `cam_from_world` in the frame of a view of the scene, (B, S, 3, 4); None for none.
        pose_mask: Mask of the views whose pose is used, (B, S) bool; None without poses.
    """

    depth: Tensor | None = None
    depth_mask: Tensor | None = None
    intrinsics: Tensor | None = None
    intrinsics_mask: Tensor | None = None
    poses: Tensor | None = None
    pose_mask: Tensor | None = None

    def take_views(self, views: slice) -> GeometryHints:
        """Return the hints of some views."""
        return tree_map_only(Tensor, lambda each: each[:, views], self)

    def to(self, device: torch.device) -> GeometryHints:
        """Return the hints on a device."""
        return tree_map_only(Tensor, lambda each: each.to(device), self)


class GeometryConditioning(nn.Module):
    """Embed known depth and intrinsics as vectors that are added to the patch tokens, `encoder(…, patch_shift=…)`.

    Depth and where it is known are embedded by a backbone and marked by a learned vector; intrinsics, as the ray of
    each pixel, by a patch embedding.

    Args:
        depth_encoder: Backbone for two channels, depth and whether it is known.
        ray_embedding: Backbone for two channels, x/z and y/z of the pixels' rays.
    """

    def __init__(self, depth_encoder: Backbone, ray_embedding: Backbone) -> None:
        super().__init__()
        self.depth_encoder: Any = depth_encoder
        self.ray_embedding: Any = ray_embedding
        self.depth_token = nn.Parameter(torch.zeros(1, 1, depth_encoder.dim))
        nn.init.normal_(self.depth_token, std=1e-2)

    def forward(
        self, hints: GeometryHints, image_hw: tuple[int, int], patch_mask: Tensor | None = None
    ) -> Float[Tensor, "b s p c"] | None:
        """Return the vector to add to every patch token, exactly 0 for views of which nothing is used.

        Args:
            hints: Known geometry of these views, see `prepare_geometry`.
            image_hw: Height and width of the images in pixels.
            patch_mask: Mask of the valid patches, (B, S, H/patch, W/patch) bool; defaults to all.

        Returns:
            (B, S, patches, C); None without depth and intrinsics.
        """
        shift: Tensor | None = None
        mask = None if patch_mask is None else patch_mask.flatten(2).flatten(0, 1)
        if hints.depth is not None and hints.depth_mask is not None:
            depth = hints.depth.flatten(0, 1)
            pixels = torch.stack([depth, (depth > 0).to(depth.dtype)], dim=1)
            tokens = self.depth_encoder(pixels, mask) + self.depth_token
            shift = _of_views(tokens, hints.depth_mask)
        if hints.intrinsics is not None and hints.intrinsics_mask is not None:
            slopes = pixel_slopes(hints.intrinsics.flatten(0, 1), image_hw)
            tokens = self.ray_embedding(slopes, mask).to(self.depth_token.dtype)
            rays = _of_views(tokens, hints.intrinsics_mask)
            shift = rays if shift is None else shift + rays
        return shift


def _of_views(tokens: Tensor, mask: Tensor) -> Tensor:
    """Return tokens (B·S, P, C) as (B, S, P, C), 0 for views that a mask (B, S) leaves out."""
    return torch.where(mask[..., None, None], tokens.unflatten(0, tuple(mask.shape)), 0.0)


@float32_island
def pixel_slopes(intrinsics: Float[Tensor, "n 3 3"], image_hw: tuple[int, int]) -> Float[Tensor, "n 2 h w"]:
    """Return the ray of every pixel as x/z and y/z, (N, 2, H, W); pixel centres are at integers.

    Args:
        intrinsics: Intrinsics without skew in pixels, (N, 3, 3).
        image_hw: Height and width of the images in pixels.
    """
    columns = torch.arange(image_hw[1], device=intrinsics.device, dtype=intrinsics.dtype)
    rows = torch.arange(image_hw[0], device=intrinsics.device, dtype=intrinsics.dtype)
    x = (columns - intrinsics[:, 0, 2, None]) / intrinsics[:, 0, 0, None]
    y = (rows - intrinsics[:, 1, 2, None]) / intrinsics[:, 1, 1, None]
    size = (-1, len(rows), len(columns))
    return torch.stack([x[:, None].expand(size), y[..., None].expand(size)], dim=1)


def check_geometry(known: KnownGeometry, images: Tensor) -> KnownGeometry:
    """Return known geometry with the B axis and with a mask of views for all that is given.

    Args:
        known: Known depth, intrinsics and poses, with or without the B axis.
        images: Images of the scenes, (B, S, 3, H, W).

    Raises:
        ValueError: For wrong shapes, and for a mask of what isn't given.
    """
    num_scenes, num_views, _, *image_hw = images.shape
    shapes = {"cam_from_world": (3, 4), "intrinsics": (3, 3), "depth": tuple(image_hw)}
    masks = {"cam_from_world": "pose_mask", "intrinsics": "intrinsics_mask", "depth": "depth_mask"}
    checked: dict[str, Tensor | None] = {}
    for name, shape in shapes.items():
        value, mask = getattr(known, name), getattr(known, masks[name])
        if value is None:
            if mask is not None:
                raise ValueError(f"{masks[name]} must be None without {name}, got a mask")
            continue
        value = value[None] if value.ndim == 1 + len(shape) else value
        check_shape(name, value, (num_scenes, num_views, *shape))
        if mask is None:
            mask = torch.ones(num_scenes, num_views, dtype=torch.bool, device=value.device)
        mask = mask[None] if mask.ndim == 1 else mask
        check_mask(masks[name], mask, (num_scenes, num_views))
        checked |= {name: value, masks[name]: mask}
    return KnownGeometry(**checked)


def prepare_geometry(known: KnownGeometry) -> GeometryHints:
    """Return known geometry of all views of scenes in the frame and the unit that the weights are trained with.

    The unit is the mean of a scene's known depths, those of views that are masked out too; where no depth is used, the
    mean distance of the other cameras from the first, unless all are in about the same place. Poses are relative to the
    first view's, masked out or not, or the next one's if that isn't known. A single known pose tells nothing and is
    left out.

    Args:
        known: Checked geometry of all views, see `check_geometry`. Depth that isn't finite or not above 0 is unknown,
            and so are a pose that isn't finite or no rotation, and intrinsics that aren't finite or whose focal lengths
            aren't above 0.
    """
    depth, unit = known.depth, None
    if depth is not None:
        depth = torch.where(depth.isfinite() & (depth > 0), depth, 0.0)
        valid = depth > 0
        unit = _mean(depth.flatten(1), valid.flatten(1), default=1.0)
        depth = depth / (unit[:, None, None, None] + _EPSILON)
    poses, mask = known.cam_from_world, known.pose_mask
    if poses is not None and mask is not None:
        poses, mask = _relate(poses, mask, unit, known.depth_mask)
    intrinsics, given = known.intrinsics, known.intrinsics_mask
    if intrinsics is not None and given is not None:
        focals = intrinsics.diagonal(dim1=-2, dim2=-1)[..., :2]
        given = given & intrinsics.isfinite().flatten(2).all(-1) & (focals > 0).all(-1)
        # Those that aren't used are finite too, which gradients need.
        identity = torch.eye(3, device=intrinsics.device, dtype=intrinsics.dtype)
        intrinsics = torch.where(given[..., None, None], intrinsics, identity)
    return GeometryHints(depth, known.depth_mask, intrinsics, given, poses, mask)


@float32_island
def _mean(values: Tensor, mask: Tensor, default: float) -> Tensor:
    """Return the mean of some values of every row, (B, N) → (B,); a default where there are none."""
    mean = torch.where(mask, values, 0.0).sum(1) / mask.sum(1).clamp(min=1)
    return torch.where(mask.any(1), mean, default)


@float32_island
def _relate(poses: Tensor, mask: Tensor, unit: Tensor | None, depth_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return poses relative to the first known one, in the unit of the scene, and the mask of those that are used."""
    known = poses.isfinite().flatten(2).all(-1) & (torch.linalg.det(poses[..., :3].nan_to_num(0.0, 0.0, 0.0)) > 0.5)
    identity = torch.eye(3, 4, device=poses.device, dtype=poses.dtype)
    poses = torch.where(known[..., None, None], poses, identity)
    first = known.long().argmax(1)
    frame = poses[torch.arange(len(poses), device=poses.device), first][:, None]
    poses = compose_rigid(poses, invert_rigid(frame))
    translation = poses[..., 3:]
    if unit is not None:
        translation = translation / unit[:, None, None, None]
    uses_depth = torch.zeros_like(first, dtype=torch.bool) if depth_mask is None else depth_mask.any(1)
    distance = torch.linalg.vector_norm(translation[..., 0], dim=-1)
    others = known.scatter(1, first[:, None], False)
    farthest = torch.where(others, distance, 0.0).amax(1)
    baseline = torch.where(
        ~uses_depth & (farthest >= _SHORTEST_BASELINE), _mean(distance, others, default=1.0) + _EPSILON, 1.0
    )
    mask = mask & known
    return (
        torch.cat([poses[..., :3], translation / baseline[:, None, None, None]], dim=-1),
        mask & (mask.sum(1, keepdim=True) > 1),
    )
