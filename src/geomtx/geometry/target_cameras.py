"""Cameras of pictures to make, in the frame and the unit of the pictures that there are."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from geomtx.checks import check_shape
from geomtx.geometry.camera import compose_rigid, invert_rigid
from geomtx.layers.float32 import float32_island
from geomtx.types import Cameras, Float

__all__ = ["RelativeCameras", "relate_cameras"]

# Of the farthest input camera's distance, where no depth gives the unit.
REACH = 1.35


class RelativeCameras(NamedTuple):
    """Output of `relate_cameras`.

    Attributes:
        inputs: (B, S, 3, 4) and (B, S, 3, 3); the first is exactly the identity.
        targets: (B, T, 3, 4) and (B, T, 3, 3).
        scale: (B,), the new unit of length in units of the old one.
    """

    inputs: Cameras
    targets: Cameras
    scale: Float[Tensor, " b"]


@float32_island
def relate_cameras(inputs: Cameras, targets: Cameras, *, scale: Float[Tensor, " b"] | None = None) -> RelativeCameras:
    """Make the first input camera the world, and divide lengths by a scale of the inputs alone.

    Args:
        inputs: (B, S, 3, 4) and (B, S, 3, 3), in any world and unit.
        targets: (B, T, 3, 4) and (B, T, 3, 3), in the same.
        scale: (B,), for instance the second output of `normalize_scene` for the input views, whose depth gives the
            unit that VGGT predicts in. None = 1.35 times the largest distance of an input camera's centre from the
            first one's; 1 if there is no other camera, or all are in one place.

    Returns:
        `RelativeCameras`, float32 or better.

    Raises:
        ValueError: For other shapes.

    Source: LagerNVS's rule for inputs without depth, as docs/recipes/nvs.md describes it.
    """
    check_shape("inputs.cam_from_world", inputs.cam_from_world, ("B", "S", 3, 4))
    batch = inputs.cam_from_world.shape[0]
    check_shape("inputs.intrinsics", inputs.intrinsics, (*inputs.cam_from_world.shape[:2], 3, 3))
    check_shape("targets.cam_from_world", targets.cam_from_world, (batch, "T", 3, 4))
    check_shape("targets.intrinsics", targets.intrinsics, (*targets.cam_from_world.shape[:2], 3, 3))
    if scale is not None:
        check_shape("scale", scale, (batch,))
    world_from_first = invert_rigid(inputs.cam_from_world[:, :1])
    others = compose_rigid(inputs.cam_from_world[:, 1:], world_from_first)
    made = compose_rigid(targets.cam_from_world, world_from_first)
    if scale is None:
        scale = _farthest(others)
    identity = torch.eye(3, 4, dtype=others.dtype, device=others.device).expand(batch, 1, 3, 4)
    relative = torch.cat([identity, _shrink(others, scale)], dim=1)
    return RelativeCameras(
        inputs._replace(cam_from_world=relative), targets._replace(cam_from_world=_shrink(made, scale)), scale
    )


def _farthest(others: Tensor) -> Tensor:
    """`REACH` times the largest distance of cameras (B, S - 1, 3, 4) from the world's origin; 1 where there is none."""
    # Rotations keep lengths: |t| is the distance of a camera's centre.
    distance = torch.linalg.vector_norm(others[..., 3], dim=-1)
    farthest = torch.cat([distance.new_zeros(len(distance), 1), distance], dim=1).amax(1)
    return torch.where(farthest > 0, REACH * farthest, 1.0)


def _shrink(cam_from_world: Tensor, scale: Tensor) -> Tensor:
    rotation, translation = cam_from_world.split([3, 1], dim=-1)
    return torch.cat([rotation, translation / scale[:, None, None, None]], dim=-1)
