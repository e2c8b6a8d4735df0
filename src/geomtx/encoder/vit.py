"""Vision transformer with the structure of DINOv2 with registers (Oquab et al. 2023; Darcet et al. 2023) or DINOv3."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from geomtx.checks import check_divisible
from geomtx.encoder.patches import PatchEmbedding, grid_of
from geomtx.layers.attention import key_mask
from geomtx.layers.block import TransformerBlock
from geomtx.layers.position import grid_signal
from geomtx.layers.precision import at_least_float32
from geomtx.types import Bool, Float, show_shapes

__all__ = ["ViTFeatures", "ViTStem", "VisionTransformer"]

_POSITION_SCALE = 0.3  # initial positions are weaker than the content of a patch


@show_shapes
class ViTFeatures(NamedTuple):
    """Normalised tokens of the last block.

    Attributes:
        cls: Class tokens, (N, C).
        registers: Register tokens, (N, R, C).
        patches: Patch tokens, (N, P, C).
    """

    cls: Tensor
    registers: Tensor
    patches: Tensor


class VisionTransformer(nn.Module):
    """Pre-norm transformer blocks on patch tokens, a class token and register tokens.

    Usable as the backbone of an `AlternatingEncoder`. The position table is learned on one square grid and resized, in
    float32, to the grid of the images; or the blocks have rotary positions, as in DINOv3.

    Args:
        dim: Number of channels C of the tokens.
        depth: Number of blocks.
        num_heads: Number of attention heads of each block.
        patch_size: Side of a patch in pixels.
        image_size: Side in pixels of the square images that the position table is for; without effect with `rope`.
        num_registers: Number of register tokens, which have no position.
        rope: Module that returns the rotary table of a grid, for instance `GridRotary`, in place of a position table.
            Defaults to a position table.
        in_channels: Number of channels of the images.
        mask_token: Whether there is a mask token, which published checkpoints have and nothing uses.
        antialias: Whether the position table is resized to the size of the grid with an antialiasing filter, as in
            DINOv2 with registers; or by the scale (grid + 0.1) / table without one, as in DINOv2 without registers.
        block: Numbers of the blocks, as for `TransformerBlock`; `layer_scale` defaults to 1 and `norm_eps`, which is
            that of the last norm too, to 1e-6.
    """

    def __init__(
        self,
        dim: int = 1024,
        depth: int = 24,
        *,
        num_heads: int = 16,
        patch_size: int = 14,
        image_size: int = 518,
        num_registers: int = 4,
        rope: nn.Module | None = None,
        in_channels: int = 3,
        mask_token: bool = True,
        antialias: bool = True,
        **block: Any,
    ) -> None:
        super().__init__()
        block = {"layer_scale": 1.0, "norm_eps": 1e-6, **block}
        self.antialias = antialias
        self.dim = dim
        self.patch_size = patch_size
        self.num_registers = num_registers
        self.patch_embedding = PatchEmbedding(dim, patch_size=patch_size, in_channels=in_channels)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.registers = nn.Parameter(torch.zeros(1, num_registers, dim)) if num_registers else None
        self.rope = rope
        self.position_table: nn.Parameter | None = None
        if rope is None:
            check_divisible("image_size", image_size, patch_size)
            self.table_side = image_size // patch_size
            self.position_table = nn.Parameter(torch.zeros(1, 1 + self.table_side**2, dim))
        # Without a gradient, so that DDP doesn't wait for one.
        self.mask_token = nn.Parameter(torch.zeros(1, dim), requires_grad=False) if mask_token else None
        self.unused_parameters = ("mask_token",) if mask_token else ()
        """Parameters that no output depends on; a checkpoint may be without them."""
        self.blocks = nn.ModuleList(TransformerBlock(dim, num_heads, **block) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=block["norm_eps"])
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial tokens and positions; the layers inside initialise themselves.

        Positions start as sine waves with periods from a quarter of the table to four tables, so that small models
        need not spend most of their training on learning positions.
        """
        if self.cls_token.is_meta:
            return  # values are loaded later, and computing on the meta device would import torch's compiler
        for parameter in (self.cls_token, self.registers, self.position_table):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)
        if self.position_table is not None and self.dim % 4 == 0:
            side = self.table_side
            phase = torch.arange(side, device=self.position_table.device) * (8 * torch.pi / side)
            with torch.no_grad():
                signal = grid_signal(phase, phase, self.dim, base=16.0)
                self.position_table[0, 1:] = _POSITION_SCALE * rearrange(signal, "c r q -> (r q) c")

    def forward(
        self,
        images: Float[Tensor, "n c_in h w"],
        patch_mask: Bool[Tensor, "n p"] | None = None,
        *,
        run_block: Callable[[nn.Module], Callable[..., Tensor]] | None = None,
    ) -> Float[Tensor, "n p c"]:
        """Return the normalised patch tokens, (N, P, C), row by row; arguments as for `forward_features`."""
        return self.forward_features(images, patch_mask, run_block=run_block).patches

    def forward_features(
        self,
        images: Float[Tensor, "n c_in h w"],
        patch_mask: Bool[Tensor, "n p"] | None = None,
        *,
        run_block: Callable[[nn.Module], Callable[..., Tensor]] | None = None,
    ) -> ViTFeatures:
        """Return the normalised class, register and patch tokens.

        Args:
            images: Normalised images, (N, in_channels, H, W), H and W multiples of the patch size.
            patch_mask: Mask of the valid patches, (N, P) bool; the others are no keys of attention. Defaults to all.
            run_block: Function that returns, for a block, a function with the same result that is called in its place,
                for instance with gradient checkpointing. Defaults to the block itself.

        Raises:
            ValueError: If a side is not a multiple of the patch size.
        """
        start = 1 + self.num_registers
        x, options = self._embed(images, patch_mask)
        for block in self.blocks:
            x = (block if run_block is None else run_block(block))(x, **options)
        x = self.norm(x)
        return ViTFeatures(x[:, 0], x[:, 1:start], x[:, start:])

    def _embed(self, images: Tensor, patch_mask: Tensor | None) -> tuple[Tensor, dict[str, Any]]:
        """Return the tokens before the first block, (N, 1 + R + P, C), and what every block is called with."""
        patches = self.patch_embedding(images, patch_mask)
        num, start = patches.shape[0], 1 + self.num_registers
        grid_hw = grid_of((images.shape[-2], images.shape[-1]), self.patch_size)
        mask = None if patch_mask is None else key_mask(F.pad(patch_mask, (start, 0), value=True))
        options: dict[str, Any] = {"mask": mask}
        cls_token: Tensor = self.cls_token
        if self.rope is None:
            cls_position, positions = self._positions(grid_hw)
            cls_token, patches = cls_token + cls_position, patches + positions
        else:
            options["rope"] = self.rope(grid_hw, start, torch.promote_types(patches.dtype, torch.float32))
        special = [cls_token, *(() if self.registers is None else (self.registers,))]
        special = [token.to(patches.dtype).expand(num, -1, -1) for token in special]
        return torch.cat([*special, patches], dim=1), options

    def _positions(self, grid_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the positions of the class token (1, 1, C) and of the patches (1, P, C)."""
        assert self.position_table is not None, "asked for without rotary positions only"
        table = at_least_float32(self.position_table)
        square = rearrange(table[:, 1:], "1 (r q) c -> 1 c r q", r=self.table_side)
        if self.antialias:
            # On the table's own grid this is the identity, bit for bit: every filter weight is 0 or 1.
            resized = F.interpolate(square, size=grid_hw, mode="bicubic", align_corners=False, antialias=True)
        else:
            # As published: for another grid the table is enlarged (size + 0.1) / side times about its first edge. Sizes
            # are tensors, so that one exported program serves all of them.
            counts = [table.new_ones(size).sum() for size in grid_hw]
            stretch = 0.1 * torch.stack(counts).ne(self.table_side).any().to(table)
            rows, columns = (cubic_weights(size, self.table_side, stretch) for size in grid_hw)
            resized = torch.einsum("hr,wq,bcrq->bchw", rows, columns, square)
        dtype = self.position_table.dtype
        return table[:, :1].to(dtype), rearrange(resized, "1 c r q -> 1 (r q) c").to(dtype)


def cubic_weights(size: int, side: int, stretch: Tensor) -> Tensor:
    """Return the weights of bicubic interpolation (a = -0.75, borders repeated) from a side to a size, (size, side).

    Args:
        size: Number of places that values are wanted at.
        side: Number of values.
        stretch: Number that is added to the size in the scale, a scalar.
    """
    places = torch.arange(size, device=stretch.device, dtype=stretch.dtype)
    x = (places + 0.5) * side / (places[-1] + 1 + stretch) - 0.5
    neighbours = x.floor()[:, None] + torch.arange(-1, 3, device=x.device, dtype=x.dtype)
    d = (x[:, None] - neighbours).abs()
    near, far = (1.25 * d - 2.25) * d * d + 1, ((-0.75 * d + 3.75) * d - 6) * d + 3
    index = neighbours.clamp(0, side - 1).long()
    return d.new_zeros(size, side).scatter_add(1, index, torch.where(d <= 1, near, far))


class ViTStem(VisionTransformer):
    """The first blocks of a vision transformer without registers: its other blocks are the encoder's.

    Usable as the backbone of a `ClassTokenEncoder`. Without a final norm and a mask token.

    Args:
        dim: Number of channels C of the tokens.
        depth: Number of blocks; 0 for the embedding alone.
        options: Numbers of the blocks and of the position table, as for `VisionTransformer`.
    """

    def __init__(self, dim: int, depth: int, **options: Any) -> None:
        super().__init__(dim, depth, num_registers=0, mask_token=False, **options)
        del self.norm

    def forward(
        self,
        images: Float[Tensor, "n 3 h w"],
        patch_mask: Bool[Tensor, "n p"] | None = None,
        *,
        run_block: Callable[[nn.Module], Callable[..., Tensor]] | None = None,
    ) -> Float[Tensor, "n p2 c"]:
        """Return class token and patch tokens, (N, 1 + P, C).

        The patch tokens are those after the last block, the class token is that before it, from which the reference
        view of a scene is chosen; without blocks both are those of the embedding.

        Args:
            images: Normalised images, (N, 3, H, W), H and W multiples of the patch size.
            patch_mask: Mask of the valid patches, see `forward_features`.
            run_block: Function that returns what is called in place of a block, see `forward_features`.

        Raises:
            ValueError: If a side is not a multiple of the patch size.
        """
        x, options = self._embed(images, patch_mask)
        class_token = x[:, :1]
        for block in self.blocks:
            class_token = x[:, :1]
            x = (block if run_block is None else run_block(block))(x, **options)
        return torch.cat([class_token, x[:, 1:]], dim=1) if len(self.blocks) else x
