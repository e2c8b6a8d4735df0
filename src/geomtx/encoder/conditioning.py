"""What is known of the cameras, told to an encoder that does without."""

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
    """Known poses and intrinsics as something to add to the camera tokens: `encoder(images, camera_shift=…)`.

    A camera is eleven numbers: its pose encoding (9, see `geomtx.encode_pose`) and two that say how long the unit of
    its translation is, log(1 + d) for the largest and for the mean distance d of the scene's known camera centres from
    the first view's. Linear, SiLU, Linear make the shift of them. The last layer starts at zero, so that a model begins
    as the one without.

    Args:
        dim: Width C of the tokens.
        hidden_dim: Between the two layers; None = `dim`.
        drop: Share of the scenes, or views, whose cameras are withheld in training mode, so that the model still does
            without. They get no shift, as views of unknown camera.
        drop_by: "scene" or "view".

    Raises:
        ValueError: For a share outside 0 … 1 or another `drop_by`.

    Source: LagerNVS withholds them by scene with p = 0.4. Which two numbers of scale it takes isn't published.
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
        """The shift of every view's camera token.

        Args:
            cameras: (B, S, 3, 4) and (B, S, 3, 3), in the frame of the first view and the unit that the model is
                trained with, see `geomtx.normalize_scene` and `geomtx.geometry.relate_cameras`.
            image_hw: Height and width of the images that the intrinsics belong to, pixels.
            mask: (B, S), True = the camera is known; what the others hold is not read. None = all are.

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
        """Eleven numbers a view, finite for unknown cameras too."""
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
        """What is withheld."""
        return f"drop={self.drop}, drop_by={self.drop_by}"


def withhold(mask: Bool[Tensor, "b s"], drop: float, *, by: Literal["scene", "view"] = "scene") -> Bool[Tensor, "b s"]:
    """The mask without a share of its scenes, or views, drawn at random."""
    if drop == 0:
        return mask
    shape = mask.shape if by == "view" else (mask.shape[0], 1)
    return mask & (torch.rand(shape, device=mask.device) >= drop)
