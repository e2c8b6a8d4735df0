"""Conditioning of an encoder on known cameras."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from geomtx.checks import check_mask, check_option, check_range, check_shape
from geomtx.geometry.pose_encoding import POSE_DIM, encode_pose
from geomtx.types import Bool, Cameras, Float

__all__ = ["CameraConditioning", "withhold"]

NUM_SCALES = 2


class CameraConditioning(nn.Module):
    """Vectors of known poses and intrinsics, to add to the camera tokens: `encoder(images, camera_shift=…)`.

    A camera is eleven numbers: its pose encoding (9, see `geomtx.encode_pose`) and two for the scale of its
    translation, log(1 + d) for the largest and for the mean distance d of the scene's known camera centres from the
    first view's. Linear, SiLU, Linear make the vector of them. The last layer starts at zero, so that a model starts
    unconditioned.

    Args:
        dim: Number of channels C of the tokens.
        hidden_dim: Number of channels between the two layers; defaults to `dim`.
        drop: Share of the scenes, or views, whose cameras are withheld in training mode, 0 to 1, so that the model
            keeps working without cameras. Their vectors are zero, as those of views of unknown camera.
        drop_by: What is withheld together: all views of a "scene", or each "view" by itself.

    Raises:
        ValueError: For a share outside 0 … 1 or another `drop_by`.

    Source: LagerNVS withholds cameras by scene with probability 0.4. Its two numbers of scale are not published.
    """

    def __init__(
        self,
        dim: int,
        *,
        hidden_dim: int | None = None,
        drop: float = 0.4,
        drop_by: Literal["scene", "view"] = "scene",
    ) -> None:
        super().__init__()
        check_range("drop", drop, 0, 1)
        check_option("drop_by", drop_by, ("scene", "view"))
        self.drop = drop
        self.drop_by = drop_by
        hidden_dim = dim if hidden_dim is None else hidden_dim
        self.expand = nn.Linear(POSE_DIM + NUM_SCALES, hidden_dim)
        self.activation = nn.SiLU()
        self.contract = nn.Linear(hidden_dim, dim)
        nn.init.zeros_(self.contract.weight)
        nn.init.zeros_(self.contract.bias)

    def forward(
        self, cameras: Cameras, image_hw: tuple[int, int], mask: Bool[Tensor, "b s"] | None = None
    ) -> Float[Tensor, "b s c"]:
        """Return the vector to add to every view's camera token.

        Args:
            cameras: Cameras, (B, S, 3, 4) and (B, S, 3, 3), in the frame of the first view and the unit that the model
                is trained with, see `geomtx.normalize_scene` and `geomtx.geometry.relate_cameras`.
            image_hw: Height and width in pixels of the images that the intrinsics belong to.
            mask: Which cameras are known, (B, S) bool; the others are not read. Defaults to all.

        Returns:
            (B, S, C), exactly 0 for views of unknown or withheld camera.

        Raises:
            ValueError: For other shapes, or a mask that isn't bool.
        """
        check_shape("cam_from_world", cameras.cam_from_world, ("B", "S", 3, 4))
        views = cameras.cam_from_world.shape[:2]
        check_shape("intrinsics", cameras.intrinsics, (*views, 3, 3))
        if mask is None:
            mask = torch.ones(views, dtype=torch.bool, device=cameras.cam_from_world.device)
        check_mask("mask", mask, tuple(views))
        with torch.autocast(mask.device.type, enabled=False):
            numbers = self._describe(cameras, image_hw, mask).to(self.expand.weight.dtype)
        shift = self.contract(self.activation(self.expand(numbers)))
        if self.training:
            mask = withhold(mask, self.drop, by=self.drop_by)
        return torch.where(mask[..., None], shift, 0.0)

    def _describe(self, cameras: Cameras, image_hw: tuple[int, int], mask: Tensor) -> Tensor:
        """Return eleven numbers of every view, finite for unknown cameras too."""
        identity = torch.eye(3, 4, dtype=cameras.cam_from_world.dtype, device=mask.device)
        known = mask[..., None, None]
        poses = torch.where(known, cameras.cam_from_world, identity)
        encoding = encode_pose(poses, torch.where(known, cameras.intrinsics, identity[:, :3]), image_hw)
        # In the first view's frame, |t| is how far a camera is from it.
        distance = torch.linalg.vector_norm(poses[..., 3], dim=-1)
        mean = distance.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
        scales = torch.stack([distance.amax(1, keepdim=True), mean], dim=-1).log1p()
        return torch.cat([encoding, scales.expand(-1, mask.shape[1], -1)], dim=-1)

    def extra_repr(self) -> str:
        """Return what is withheld, for `repr`."""
        return f"drop={self.drop}, drop_by={self.drop_by}"


def withhold(mask: Bool[Tensor, "b s"], drop: float, *, by: Literal["scene", "view"] = "scene") -> Bool[Tensor, "b s"]:
    """Return the mask without a share of its scenes, or views, drawn at random."""
    if drop == 0:
        return mask
    shape = mask.shape if by == "view" else (mask.shape[0], 1)
    return mask & (torch.rand(shape, device=mask.device) >= drop)
