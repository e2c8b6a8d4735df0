"""Conditioning of an encoder on known cameras."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from geomtx.checks import check_mask, check_option, check_range, check_shape
from geomtx.geometry.camera import POSE_DIM, encode_pose
from geomtx.types import Bool, Cameras, Float

__all__ = ["CameraConditioning", "withhold"]

NUM_SCALES = 2
"""Number of channels that describe the scale of a scene's cameras."""


class CameraConditioning(nn.Module):
    """Embed known poses and intrinsics as vectors that are added to the camera tokens, `encoder(…, camera_shift=…)`.

    A camera is described by eleven numbers: its pose encoding (9, see `geomtx.encode_pose`), and log(1 + d) for the
    largest and the mean distance d of the scene's known camera centres from the first view's. An MLP with SiLU embeds
    them. Its last layer is initialised with zeros, so that a model starts unconditioned.

    Args:
        dim: Number of channels C of the tokens.
        hidden_dim: Number of channels between the two layers; defaults to `dim`.
        drop: Probability, 0 to 1, that cameras are withheld in training mode, so that the model keeps working without
            cameras. The vectors of withheld and of unknown cameras are zero.
        drop_by: Whether the cameras of a "scene" are withheld together, or each "view" by itself.

    Raises:
        ValueError: If `drop` is outside 0 … 1, or `drop_by` is unknown.

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
            mask: Mask of the known cameras, (B, S) bool; the others are not read. Defaults to all.

        Returns:
            (B, S, C), exactly 0 for views of unknown or withheld camera.

        Raises:
            ValueError: If a shape is another one, or the mask isn't bool.
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
        """Return the eleven numbers of every view, finite for unknown cameras too, (B, S, 11)."""
        identity = torch.eye(3, 4, dtype=cameras.cam_from_world.dtype, device=mask.device)
        known = mask[..., None, None]
        poses = torch.where(known, cameras.cam_from_world, identity)
        encoding = encode_pose(poses, torch.where(known, cameras.intrinsics, identity[:, :3]), image_hw)
        # In the first view's frame, |t| is the distance of a camera from it.
        distance = torch.linalg.vector_norm(poses[..., 3], dim=-1)
        mean = distance.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
        scales = torch.stack([distance.amax(1, keepdim=True), mean], dim=-1).log1p()
        return torch.cat([encoding, scales.expand(-1, mask.shape[1], -1)], dim=-1)

    def extra_repr(self) -> str:
        """Return `drop` and `drop_by`, for `repr`."""
        return f"drop={self.drop}, drop_by={self.drop_by}"


def withhold(mask: Bool[Tensor, "b s"], drop: float, *, by: Literal["scene", "view"] = "scene") -> Bool[Tensor, "b s"]:
    """Return a mask of known cameras without those of scenes, or views, that are drawn at random.

    Args:
        mask: Mask of the known cameras, (B, S) bool.
        drop: Probability of being withheld, 0 to 1.
        by: Whether the cameras of a "scene" are withheld together, or each "view" by itself.
    """
    if drop == 0:
        return mask
    shape = mask.shape if by == "view" else (mask.shape[0], 1)
    return mask & (torch.rand(shape, device=mask.device) >= drop)
