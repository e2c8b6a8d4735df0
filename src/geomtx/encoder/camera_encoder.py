"""Camera tokens of known cameras, by a transformer over the views of a scene (Depth Anything 3, Lin et al. 2025)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geomtx.checks import check_shape
from geomtx.geometry.camera import POSE_DIM, encode_pose, invert_rigid
from geomtx.layers.backends import BackendName
from geomtx.layers.block import TransformerBlock
from geomtx.layers.mlp import MLP
from geomtx.layers.precision import float32_island
from geomtx.types import Cameras, Float

__all__ = ["CameraEncoder", "to_first_camera"]

_SHORTEST_UNIT = 0.1  # of the cameras' own unit


class CameraEncoder(nn.Module):
    """Turn the known cameras of all views of a scene into camera tokens, `encoder(…, camera_tokens=…)`.

    A camera is described by the pose encoding of its inverse: position, rotation from the camera to the world, and
    field of view, see `geomtx.encode_pose`. The principal point isn't used.

    Args:
        dim: Number of channels C of the tokens.
        depth: Number of transformer blocks.
        num_heads: Number of attention heads of each block.
        backend: Name of the attention backend, see `geomtx.layers.backends`.
    """

    def __init__(self, dim: int, depth: int = 4, *, num_heads: int = 16, backend: BackendName = "auto") -> None:
        super().__init__()
        self.pose_mlp = MLP(POSE_DIM, dim // 2, dim)
        self.token_norm = nn.LayerNorm(dim)
        self.trunk = nn.ModuleList(
            TransformerBlock(dim, num_heads, layer_scale=0.01, backend=backend) for _ in range(depth)
        )
        self.trunk_norm = nn.LayerNorm(dim)

    def forward(self, cameras: Cameras, image_hw: tuple[int, int]) -> Float[Tensor, "b s c"]:
        """Return the camera token of every view, (B, S, C).

        Args:
            cameras: Cameras of all views, (B, S, 3, 4) and (B, S, 3, 3), in the frame and unit that the weights are
                trained with, see `to_first_camera`.
            image_hw: Height and width in pixels of the images that the intrinsics belong to.

        Raises:
            ValueError: If a shape is another one.
        """
        check_shape("cam_from_world", cameras.cam_from_world, ("B", "S", 3, 4))
        check_shape("intrinsics", cameras.intrinsics, (*cameras.cam_from_world.shape[:2], 3, 3))
        with torch.autocast(cameras.intrinsics.device.type, enabled=False):
            encoding = encode_pose(invert_rigid(cameras.cam_from_world), cameras.intrinsics, image_hw)
        x = self.token_norm(self.pose_mlp(encoding.to(self.token_norm.weight.dtype)))
        for block in self.trunk:
            x = block(x)
        return self.trunk_norm(x)


@float32_island
def to_first_camera(cam_from_world: Float[Tensor, "b s 3 4"]) -> Float[Tensor, "b s 3 4"]:
    """Return poses in the frame of the first view, in the unit of the median distance of the views from it.

    The median is the lower one, over all views, the first with its distance 0 among them; a shorter unit than 0.1 is
    taken for 0.1.

    Args:
        cam_from_world: Poses, (B, S, 3, 4).

    Raises:
        ValueError: If the shape is another one.
    """
    check_shape("cam_from_world", cam_from_world, ("B", "S", 3, 4))
    rotation, translation = cam_from_world[..., :3], cam_from_world[..., 3:]
    rotation = rotation @ rotation[:, :1].transpose(-1, -2)
    translation = translation - rotation @ translation[:, :1]
    # The centre of a camera is -Rᵀt, so |t| is its distance from the origin, the first camera.
    distance = torch.linalg.vector_norm(translation[..., 0], dim=-1)
    unit = distance.median(dim=1).values.clamp(min=_SHORTEST_UNIT)
    return torch.cat([rotation, translation / unit[:, None, None, None]], dim=-1)
