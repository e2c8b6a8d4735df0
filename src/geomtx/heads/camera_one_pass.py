"""Head that predicts all cameras of a scene in one pass over its special tokens (VGGT-Omega)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from geomtx.geometry.camera import POSE_DIM, activate_pose, decode_pose
from geomtx.heads.special_tokens import SpecialTokenHead
from geomtx.layers.attention import key_mask
from geomtx.layers.block import TransformerBlock
from geomtx.layers.mlp import MLP
from geomtx.layers.precision import Float32Linear, at_least_float32
from geomtx.types import Bool, CameraPrediction, Float, Tokens

__all__ = ["OnePassCameraHead"]


class OnePassCameraHead(SpecialTokenHead):
    """Predict every view's camera from its camera token, after blocks on the special tokens of all views.

    Args:
        dim: Number of channels C of the encoder's output.
        depth: Number of blocks.
        num_heads: Number of attention heads of each block.
        min_fov: Smallest field of view in radians.
        layer: Index of the encoder's layer to read; defaults to the last one that was kept.
        block: Further numbers of the blocks, as for `TransformerBlock`.
    """

    reads_all = True

    def __init__(
        self,
        dim: int = 2048,
        depth: int = 4,
        *,
        num_heads: int = 16,
        min_fov: float = 0.01,
        layer: int | None = None,
        **block: Any,
    ) -> None:
        super().__init__(dim, layer=layer)
        self.min_fov = min_fov
        self.token_norm = nn.LayerNorm(dim)
        self.trunk = nn.ModuleList(TransformerBlock(dim, num_heads, **block) for _ in range(depth))
        self.trunk_norm = nn.LayerNorm(dim)
        self.pose_mlp = MLP(dim, dim // 2, POSE_DIM, out_type=Float32Linear)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start from a camera near the origin without rotation and with a field of view of one radian."""
        with torch.no_grad():
            self.pose_mlp.contract.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0]))

    def select(self, tokens: Tokens) -> Float[Tensor, "b s r c"]:
        """Return the normalised special tokens of every view, (B, S, R, C): all that the head reads.

        Args:
            tokens: Tokens of an encoder that kept the head's layer.
        """
        return self.token_norm(super().select(tokens))

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
        tokens = run_on_views(self.trunk, selected, view_mask)
        raw = at_least_float32(self.pose_mlp(self.trunk_norm(tokens[:, :, 0])))
        encoding = activate_pose(raw, min_fov=self.min_fov)
        with torch.autocast(encoding.device.type, enabled=False):
            return CameraPrediction(decode_pose(encoding, image_hw), encoding[None])


def run_on_views(
    blocks: Iterable[Callable[..., Tensor]],
    tokens: Float[Tensor, "b s r c"],
    view_mask: Bool[Tensor, "b s"] | None,
) -> Float[Tensor, "b s r c"]:
    """Return R tokens a view after blocks on the tokens of all views, of which invalid ones are no keys.

    Args:
        blocks: Blocks, called as `block(x, mask=…)`.
        tokens: Tokens, (B, S, R, C).
        view_mask: Mask of the valid views, (B, S) bool; None for all.
    """
    num_views, num_tokens = tokens.shape[1:3]
    mask = None if view_mask is None else key_mask(view_mask.repeat_interleave(num_tokens, dim=1))
    x = tokens.flatten(1, 2)
    for block in blocks:
        x = block(x, mask=mask)
    return x.unflatten(1, (num_views, num_tokens))
