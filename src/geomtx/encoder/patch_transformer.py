"""Encoder of single images by patches and their positions alone, without special tokens (CroCo)."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from geomtx.checks import check_divisible, check_mask
from geomtx.encoder.patches import PatchEmbedding, grid_of
from geomtx.layers.backends import BackendName
from geomtx.layers.block import TransformerBlock
from geomtx.layers.position import grid_signal
from geomtx.layers.rope import RotaryTable, grid_positions, rotary_table
from geomtx.types import Bool, Float, Tokens

__all__ = ["PatchPositions", "PatchTransformer", "take_tokens"]


class PatchPositions(nn.Module):
    """Where patches are: rotary positions for any grid, or a fixed table of sines and cosines for one (CroCo v1).

    Args:
        dim: Number of channels C of the tokens.
        num_heads: Number of attention heads; dim / num_heads must be a multiple of 4.
        rope_base: Base of the rotary positions; None for a table.
        table_side: Number of rows, and of columns, of the table's grid.
    """

    def __init__(self, dim: int, num_heads: int, *, rope_base: float | None = 100.0, table_side: int = 14) -> None:
        super().__init__()
        self.head_dim = dim // num_heads
        self.rope_base = rope_base
        self.table_side = table_side
        self.table: nn.Parameter | None = None
        if rope_base is not None:
            check_divisible("dim / num_heads", dim / num_heads, 4)
        else:
            check_divisible("dim", dim, 4)
            self.table = nn.Parameter(torch.zeros(table_side**2, dim), requires_grad=False)
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill the table with sines and cosines of the columns, then of the rows."""
        if self.table is None or self.table.is_meta:
            return
        steps = torch.arange(self.table_side, device=self.table.device, dtype=torch.float32)
        signal = grid_signal(steps, steps, self.table.shape[1], base=10000.0)
        with torch.no_grad():
            self.table.copy_(rearrange(signal, "c r q -> (r q) c"))

    def add(self, x: Float[Tensor, "n p c"], grid_hw: tuple[int, int]) -> Float[Tensor, "n p c"]:
        """Return the tokens of all patches of a grid with the table added, (N, P, C); as they are for rotary positions.

        Args:
            x: Tokens, (N, P, C).
            grid_hw: Numbers of rows and columns of patches.

        Raises:
            ValueError: For another grid than the table's.
        """
        if self.table is None:
            return x
        if grid_hw != (self.table_side, self.table_side):
            size = "x".join(map(str, grid_hw))
            raise ValueError(f"grid must be {self.table_side}x{self.table_side} for a table of positions, got {size}")
        return x + self.table.to(x.dtype)

    def rotations(
        self, x: Float[Tensor, "n p c"], grid_hw: tuple[int, int], keep: Bool[Tensor, "n p2"] | None = None
    ) -> RotaryTable | None:
        """Return the rotary table of the patches of a grid, in float32 or better; None for a table of positions.

        Args:
            x: Tokens, whose device and precision count, (N, P, C).
            grid_hw: Numbers of rows and columns of patches.
            keep: Mask of the patches that the table is for, the same number in each image, (N, rows · columns) bool;
                defaults to all.
        """
        if self.rope_base is None:
            return None
        positions = grid_positions(grid_hw, 0, x.device)
        if keep is not None:
            positions = take_tokens(positions.expand(len(keep), -1, -1), keep)
        dtype = torch.promote_types(x.dtype, torch.float32)
        return rotary_table(positions, self.head_dim, base=self.rope_base, dtype=dtype)


def take_tokens(x: Tensor, keep: Bool[Tensor, "n p"]) -> Tensor:
    """Return the tokens where a mask with the same number of True in each row is True, (N, P, C) → (N, P', C)."""
    return x[keep].unflatten(0, (len(x), -1))


class PatchTransformer(nn.Module):
    """Patch embedding, pre-norm transformer blocks with positions of the patches, and a norm.

    Args:
        dim: Number of channels C of the tokens.
        depth: Number of blocks.
        num_heads: Number of attention heads of each block; dim / num_heads must be a multiple of 4.
        patch_size: Side of a patch in pixels.
        rope_base: Base of the rotary positions; None for a fixed table of positions.
        table_side: Number of rows, and of columns, of the grid of such a table.
        backend: Name of the attention backend, see `geomtx.layers.backends`.
    """

    def __init__(
        self,
        dim: int = 1024,
        depth: int = 24,
        *,
        num_heads: int = 16,
        patch_size: int = 16,
        rope_base: float | None = 100.0,
        table_side: int = 14,
        backend: BackendName = "auto",
    ) -> None:
        super().__init__()
        self.dim = dim
        self.patch_size = patch_size
        self.patch_embedding = PatchEmbedding(dim, patch_size=patch_size)
        self.positions = PatchPositions(dim, num_heads, rope_base=rope_base, table_side=table_side)
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, num_heads, layer_scale=None, norm_eps=1e-6, backend=backend) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, images: Float[Tensor, "n 3 h w"], hidden: Bool[Tensor, "n p"] | None = None) -> Tokens:
        """Encode every image by itself.

        Args:
            images: Normalised images, (N, 3, H, W), H and W multiples of the patch size.
            hidden: Mask of the patches that are left out, (N, patches) bool, as many in each image; defaults to none.

        Returns:
            `Tokens` with N scenes of one view, without special tokens: layer 0 is (N, 1, P, C), row by row, or the
            (N, 1, P', C) that are not hidden.

        Raises:
            ValueError: If a side is not a multiple of the patch size, images hide different numbers of patches, or the
                grid is another one than that of a table of positions.
        """
        image_hw = (images.shape[-2], images.shape[-1])
        grid_hw = grid_of(image_hw, self.patch_size)
        x = self.positions.add(self.patch_embedding(images), grid_hw)
        keep = None
        if hidden is not None:
            check_mask("hidden", hidden, (len(images), grid_hw[0] * grid_hw[1]))
            keep = ~hidden
            counts = keep.sum(1)
            if (counts != counts[0]).any():
                raise ValueError("hidden must have as many patches in each image, got other numbers in some")
            x = take_tokens(x, keep)
        rope = self.positions.rotations(x, grid_hw, keep)
        for block in self.blocks:
            x = block(x, rope=rope)
        return Tokens({0: self.norm(x)[:, None]}, 0, image_hw, grid_hw)
