"""Decoders that relate two encoded images: both at once (DUSt3R), or one that is completed from the other (CroCo)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geomtx.checks import check_mask, check_option, check_shape
from geomtx.encoder.patch_transformer import PatchPositions
from geomtx.layers.backends import BackendName
from geomtx.layers.block import DecoderBlock
from geomtx.types import Bool, Float, Tokens

__all__ = ["CompletionDecoder", "PairDecoder"]


class PairDecoder(nn.Module):
    """Two streams of blocks, one an image, each of which attends to the other's tokens before the same block.

    Args:
        in_dim: Number of channels of the encoder's tokens.
        dim: Number of channels C of the blocks.
        depth: Number of blocks of each stream.
        num_heads: Number of attention heads of each block; dim / num_heads must be a multiple of 4.
        rope_base: Base of the rotary positions.
        backend: Name of the attention backend, see `geomtx.layers.backends`.
    """

    def __init__(
        self,
        in_dim: int = 1024,
        dim: int = 768,
        depth: int = 12,
        *,
        num_heads: int = 12,
        rope_base: float = 100.0,
        backend: BackendName = "auto",
    ) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.embed = nn.Linear(in_dim, dim)
        self.positions = PatchPositions(dim, num_heads, rope_base=rope_base)
        self.first_blocks = nn.ModuleList(DecoderBlock(dim, num_heads, backend=backend) for _ in range(depth))
        self.second_blocks = nn.ModuleList(DecoderBlock(dim, num_heads, backend=backend) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, first: Tokens, second: Tokens, taps: tuple[int, ...] | None = None) -> tuple[Tokens, Tokens]:
        """Relate the images of N pairs, whose grids may differ between the first and the second.

        Args:
            first: Encoded first images, see `PatchTransformer`: layer 0, (N, 1, P, in_dim).
            second: Encoded second images, (N, 1, P', in_dim).
            taps: Indices of the layers to keep: 0 for the encoder's tokens, k for those after block k, of which the
                last are normalised. Defaults to the last alone.

        Returns:
            Tokens of the first and of the second images, with these layers.

        Raises:
            ValueError: For tokens of another number of channels.
        """
        depth = len(self.first_blocks)
        wanted = (depth,) if taps is None else taps
        for tap in wanted:
            check_option("tap", tap, range(depth + 1))
        x, y = (self._embed(tokens) for tokens in (first, second))
        x_rope, y_rope = self.positions.rotations(x, first.grid_hw), self.positions.rotations(y, second.grid_hw)
        layers: list[tuple[Tensor, Tensor]] = [(first.layer(0)[:, 0], second.layer(0)[:, 0])]
        for one, other in zip(self.first_blocks, self.second_blocks, strict=True):
            x, y = (
                one(x, y, rope=x_rope, context_rope=y_rope),
                other(y, x, rope=y_rope, context_rope=x_rope),
            )
            layers.append((x, y) if len(layers) in wanted else layers[0])  # only those that are asked for are kept
        layers[depth] = (self.norm(x), self.norm(y))
        kept = [{tap: layers[tap][index][:, None] for tap in wanted} for index in (0, 1)]
        return first._replace(layers=kept[0]), second._replace(layers=kept[1])

    def _embed(self, tokens: Tokens) -> Tensor:
        check_shape("tokens", tokens.layer(0), ("N", 1, "P", self.in_dim))
        return self.embed(tokens.layer(0)[:, 0])


class CompletionDecoder(nn.Module):
    """Predict the pixels of the hidden patches of an image from its visible ones and another image (CroCo).

    Args:
        in_dim: Number of channels of the encoder's tokens.
        dim: Number of channels C of the blocks.
        depth: Number of blocks.
        num_heads: Number of attention heads of each block; dim / num_heads must be a multiple of 4.
        patch_size: Side of a patch in pixels.
        positions: Positions of the patches, `rope_base` and `table_side`, as for `PatchPositions`.
        backend: Name of the attention backend, see `geomtx.layers.backends`.
    """

    def __init__(
        self,
        in_dim: int = 1024,
        dim: int = 768,
        depth: int = 12,
        *,
        num_heads: int = 12,
        patch_size: int = 16,
        backend: BackendName = "auto",
        **positions: float | None,
    ) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.embed = nn.Linear(in_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = PatchPositions(dim, num_heads, **positions)  # type: ignore[arg-type]
        self.blocks = nn.ModuleList(DecoderBlock(dim, num_heads, backend=backend) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.out = nn.Linear(dim, 3 * patch_size**2)
        if not self.mask_token.is_meta:
            nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, first: Tokens, second: Tokens, hidden: Bool[Tensor, "n p"]) -> Float[Tensor, "n p v"]:
        """Return all patches of the first images, (N, P, 3 · patch²): row, column and colour of each pixel, in order.

        Args:
            first: Encoded visible patches of the first images, see `PatchTransformer`.
            second: Encoded second images, all of their patches.
            hidden: Mask of the hidden patches of the first images, (N, P) bool.

        Raises:
            ValueError: For another shape of the mask, or tokens of another number of channels.
        """
        for tokens in (first, second):
            check_shape("tokens", tokens.layer(0), ("N", 1, "P", self.in_dim))
        check_mask("hidden", hidden, (first.views[0], first.grid_hw[0] * first.grid_hw[1]))
        visible, memory = (self.embed(tokens.layer(0)[:, 0]) for tokens in (first, second))
        x = self.mask_token.to(visible.dtype).expand(*hidden.shape, -1)
        x = x.masked_scatter(~hidden[..., None], visible)
        x, memory = self.positions.add(x, first.grid_hw), self.positions.add(memory, second.grid_hw)
        rope, memory_rope = (self.positions.rotations(x, tokens.grid_hw) for tokens in (first, second))
        for block in self.blocks:
            x = block(x, memory, rope=rope, context_rope=memory_rope)
        return self.out(self.norm(x))
