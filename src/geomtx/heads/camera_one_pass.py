"""Head that predicts all cameras of a scene in one pass over its special tokens (VGGT-Omega)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from geomtx.geometry.camera import POSE_DIM, activate_pose, decode_pose
from geomtx.heads.special_tokens import TrunkHead
from geomtx.layers.mlp import MLP
from geomtx.layers.precision import Float32Linear, at_least_float32
from geomtx.types import Bool, CameraPrediction, Float

__all__ = ["OnePassCameraHead"]


class OnePassCameraHead(TrunkHead):
    """Predict every view's camera from its camera token, after blocks on the special tokens of all views.

    Args:
        dim: Number of channels C of the encoder's output.
        depth: Number of blocks.
        min_fov: Smallest field of view in radians.
        trunk: `num_heads`, `layer` and numbers of the blocks, as for `TrunkHead`.
    """

    def __init__(self, dim: int = 2048, depth: int = 4, *, min_fov: float = 0.01, **trunk: Any) -> None:
        super().__init__(dim, depth, **trunk)
        self.min_fov = min_fov
        self.pose_mlp = MLP(dim, dim // 2, POSE_DIM, out_type=Float32Linear)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start from a camera near the origin without rotation and with a field of view of one radian."""
        with torch.no_grad():
            self.pose_mlp.contract.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0]))

    def predict(
        self,
        selected: Float[Tensor, "b s r c"],
        image_hw: tuple[int, int],
        view_mask: Bool[Tensor, "b s"] | None = None,
    ) -> CameraPrediction:
        """Predict cameras from the normalised special tokens of all views of the scenes.

        Args:
            selected: Result of `select`, (B, S, R, C).
            image_hw: Height and width of the images in pixels.
            view_mask: Mask of the valid views, (B, S) bool; defaults to all.

        Returns:
            Cameras, and their pose encodings, (1, B, S, 9), in float32 or better.
        """
        tokens = self.run_trunk(selected, view_mask).unflatten(1, selected.shape[1:3])
        raw = at_least_float32(self.pose_mlp(self.trunk_norm(tokens[:, :, 0])))
        encoding = activate_pose(raw, min_fov=self.min_fov)
        with torch.autocast(encoding.device.type, enabled=False):
            return CameraPrediction(decode_pose(encoding, image_hw), encoding[None])
