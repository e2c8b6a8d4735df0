"""Vision transformer with the structure of DINOv2 with registers (Oquab et al. 2023; Darcet et al. 2023)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geomtx.checks import check_divisible
from geomtx.encoder.patches import PatchEmbedding, grid_of
from geomtx.layers.attention import key_mask
from geomtx.layers.backends import BackendName
from geomtx.layers.block import TransformerBlock
from geomtx.layers.float32 import at_least_float32
from geomtx.layers.position import grid_signal
from geomtx.types import Bool, Float

__all__ = ["ViTFeatures", "VisionTransformer"]

_POSITION_SCALE = 0.3  # of the first positions: less than a patch's content


class ViTFeatures(NamedTuple):
    """Normed tokens of the last block: `cls` (N, C), `registers` (N, R, C), `patches` (N, P, C)."""

    cls: Tensor
    registers: Tensor
    patches: Tensor


class VisionTransformer(nn.Module):
    """Patches, a class token and registers through pre-norm blocks. Usable as the backbone of an `AlternatingEncoder`.

    The position table is learned on one square grid and resized, in float32, to the grid of the images.

    Args:
        dim: Width C.
        depth: Number of blocks.
        num_heads: Heads of each.
        patch_size: Pixels.
        image_size: Side of the square images that the position table is for, pixels.
        num_registers: Register tokens, which have no position.
        mlp_ratio: Of the blocks.
        layer_scale: Initial factor of the blocks' branches.
        backend: See `geomtx.layers.backends`.
    """

    unused_parameters = ("mask_token",)
    """Parameters that no output depends on; a checkpoint may be without them."""

    def __init__(
        self,
        dim: int = 1024,
        depth: int = 24,
        *,
        num_heads: int = 16,
        patch_size: int = 14,
        image_size: int = 518,
        num_registers: int = 4,
        mlp_ratio: float = 4.0,
        layer_scale: float = 1.0,
        backend: BackendName = "auto",
    ) -> None:
        super().__init__()
        check_divisible("image_size", image_size, patch_size)
        self.dim = dim
        self.patch_size = patch_size
        self.table_side = image_size // patch_size
        self.num_registers = num_registers
        self.patch_embedding = PatchEmbedding(dim, patch_size=patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.registers = nn.Parameter(torch.zeros(1, num_registers, dim)) if num_registers else None
        self.position_table = nn.Parameter(torch.zeros(1, 1 + self.table_side**2, dim))
        # Part of published checkpoints, of no use here: kept without a gradient, so that DDP doesn't wait for one.
        self.mask_token = nn.Parameter(torch.zeros(1, dim), requires_grad=False)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                dim, num_heads, mlp_ratio=mlp_ratio, layer_scale=layer_scale, norm_eps=1e-6, backend=backend
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the learned tokens and start the positions (the layers inside draw theirs themselves).

        The positions start as waves of a quarter of the table to four tables: places that are already told apart need
        not be learned first, which in small models takes most of the time.
        """
        for parameter in (self.cls_token, self.registers, self.position_table):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)
        if self.dim % 4 == 0:
            side = self.table_side
            phase = torch.arange(side, device=self.position_table.device) * (8 * torch.pi / side)
            with torch.no_grad():
                signal = grid_signal(phase, phase, self.dim, base=16.0)
                self.position_table[0, 1:] = _POSITION_SCALE * signal.flatten(1).T

    def forward(
        self, images: Float[Tensor, "n 3 h w"], patch_mask: Bool[Tensor, "n p"] | None = None
    ) -> Float[Tensor, "n p c"]:
        """Normed patch tokens, row by row; see `forward_features`."""
        return self.forward_features(images, patch_mask).patches

    def forward_features(
        self, images: Float[Tensor, "n 3 h w"], patch_mask: Bool[Tensor, "n p"] | None = None
    ) -> ViTFeatures:
        """All normed tokens.

        Args:
            images: (N, 3, H, W), normalised, H and W multiples of the patch size.
            patch_mask: (N, P) bool, True = takes part; the others are no keys in any attention.

        Raises:
            ValueError: For other sizes.
        """
        patches = self.patch_embedding(images, patch_mask)
        num, start = patches.shape[0], 1 + self.num_registers
        cls_position, positions = self._positions(grid_of((images.shape[-2], images.shape[-1]), self.patch_size))
        special = [self.cls_token + cls_position, *(() if self.registers is None else (self.registers,))]
        special = [token.to(patches.dtype).expand(num, -1, -1) for token in special]
        x = torch.cat([*special, patches + positions], dim=1)
        mask = None if patch_mask is None else key_mask(F.pad(patch_mask, (start, 0), value=True))
        for block in self.blocks:
            x = block(x, mask=mask)
        x = self.norm(x)
        return ViTFeatures(x[:, 0], x[:, 1:start], x[:, start:])

    def _positions(self, grid_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Position of the class token (1, 1, C) and of the patches (1, P, C)."""
        table = at_least_float32(self.position_table)
        square = table[:, 1:].unflatten(1, (self.table_side, self.table_side)).movedim(-1, 1)
        # On the table's own grid this is the identity, to the last bit: every filter weight is 0 or 1.
        resized = F.interpolate(square, size=grid_hw, mode="bicubic", align_corners=False, antialias=True)
        dtype = self.position_table.dtype
        return table[:, :1].to(dtype), resized.flatten(2).transpose(1, 2).to(dtype)
