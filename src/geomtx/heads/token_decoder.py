"""Heads' transformers on the tokens of single views, and maps from tokens by linear layers (Pi3, Wang et al. 2025)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geomtx.checks import check_shape
from geomtx.layers.attention import key_mask
from geomtx.layers.backends import BackendName
from geomtx.layers.block import TransformerBlock
from geomtx.layers.precision import Float32Linear
from geomtx.layers.rope import RotaryTable, grid_positions, rotary_table
from geomtx.types import Float, Tokens

__all__ = ["PixelShuffle", "TokenDecoder", "token_rotations"]


class TokenDecoder(nn.Module):
    """A linear layer, transformer blocks with rotary positions on each view by itself, and a second linear layer.

    Args:
        in_dim: Number of channels of the encoder's tokens.
        dim: Number of channels of the blocks.
        depth: Number of blocks.
        num_heads: Number of attention heads of each block; dim / num_heads must be a multiple of 4.
        out_dim: Number of channels of the result; defaults to `dim`.
        rope_base: Base of the rotary positions.
        layer: Index of the encoder's layer to read; defaults to the last one that was kept.
        backend: Name of the attention backend, see `geomtx.layers.backends`.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        depth: int = 5,
        *,
        num_heads: int = 16,
        out_dim: int | None = None,
        rope_base: float = 100.0,
        layer: int | None = None,
        backend: BackendName = "auto",
    ) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.out_dim = dim if out_dim is None else out_dim
        self.head_dim = dim // num_heads
        self.rope_base = rope_base
        self.layer = layer
        self.project = nn.Linear(in_dim, dim)
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, num_heads, layer_scale=None, norm_eps=1e-6, backend=backend) for _ in range(depth)
        )
        self.out = nn.Linear(dim, self.out_dim)

    def forward(self, tokens: Tokens) -> Float[Tensor, "n p c"]:
        """Return all tokens of every view, special ones too, (B·S, P, out_dim).

        Args:
            tokens: Tokens of an encoder that kept the layer.

        Raises:
            ValueError: If the layer wasn't kept or has another number of channels.
        """
        layer = tokens.layer(max(tokens.layers) if self.layer is None else self.layer)
        check_shape("tokens", layer, ("B", "S", "P", self.in_dim))
        rope = token_rotations(tokens, self.head_dim, base=self.rope_base)
        mask = None if tokens.mask is None else key_mask(tokens.mask.flatten(0, 1))
        x = self.project(layer.flatten(0, 1))
        for block in self.blocks:
            x = block(x, rope=rope, mask=mask)
        return self.out(x)

    @property
    def peak_numbers(self) -> int:
        """Numbers for a token at the peak of a block: the hidden layer before and after its activation, tokens."""
        return 13 * self.project.out_features


def token_rotations(tokens: Tokens, head_dim: int, *, base: float) -> RotaryTable:
    """Return the rotary table of the tokens of a view, in float32 or better.

    Args:
        tokens: Tokens of an encoder.
        head_dim: Number of channels of an attention head.
        base: Base of the frequencies, see `rotary_table`.
    """
    layer = next(iter(tokens.layers.values()))
    positions = grid_positions(tokens.grid_hw, tokens.num_special, layer.device)
    return rotary_table(positions, head_dim, base=base, dtype=torch.promote_types(layer.dtype, torch.float32))


class PixelShuffle(nn.Module):
    """Turn each patch token into the pixels of its patch by one linear layer, computed in float32 or better.

    Args:
        dim: Number of channels of the tokens.
        channels: Number of channels of the map.
        patch_size: Side of a patch in pixels.
    """

    def __init__(self, dim: int, channels: int, *, patch_size: int = 14) -> None:
        super().__init__()
        self.dim = dim
        self.channels = channels
        self.patch_size = patch_size
        self.project = Float32Linear(dim, channels * patch_size**2)

    def forward(
        self, patches: Float[Tensor, "n p c"], grid_hw: tuple[int, int], image_hw: tuple[int, int]
    ) -> Float[Tensor, "n c_out h w"]:
        """Return maps of the images' size, (N, channels, H, W).

        Args:
            patches: Patch tokens, (N, P, dim).
            grid_hw: Numbers of rows and columns of patches.
            image_hw: Height and width of the images in pixels; it follows from the grid here.
        """
        # Channel c·patch² + patch·i + j of a token is channel c of the pixel in row i and column j of its patch.
        return F.pixel_shuffle(self.project(patches).mT.unflatten(2, grid_hw), self.patch_size)

    @property
    def peak_numbers(self) -> int:
        """Numbers for a pixel at the peak, in the precision of the tokens: maps in float32 before and after."""
        return 4 * self.channels
