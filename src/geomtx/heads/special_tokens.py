"""Bases of the heads that read special tokens of one layer of an encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geomtx.checks import check_shape
from geomtx.heads.head import Head, Parts
from geomtx.layers.attention import key_mask
from geomtx.layers.block import TransformerBlock
from geomtx.types import Bool, Float, Tokens

__all__ = ["SpecialTokenHead", "TrunkHead"]


class SpecialTokenHead(Head):
    """Base of heads that read special tokens of one layer: the camera tokens, or all special tokens.

    A subclass may extend `select`, which works on each view by itself, and has `predict`, which gets the tokens of all
    views; so views may be in several processes.

    Args:
        dim: Number of channels C of the tokens.
        layer: Index of the encoder's layer to read; defaults to the last one that was kept.
    """

    reads = "special"

    def __init__(self, dim: int, *, layer: int | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.layer = layer

    def forward(self, tokens: Tokens) -> Any:
        """Return what `predict` makes of the tokens of all views.

        Args:
            tokens: Tokens of an encoder; only special tokens of one layer are read.

        Raises:
            ValueError: If the layer wasn't kept or has another number of channels.
        """
        mask = None if tokens.mask is None else tokens.mask[:, :, 0]
        return self.predict(self.select(tokens), tokens.image_hw, mask)

    def run_in_parts(self, tokens: Any, parts: Parts, query_points: Tensor | None = None, **options: Any) -> Any:
        """Return what `forward` returns."""
        selected = parts.gather(self.select(parts.convert(tokens)))
        return self.predict(selected, tokens.image_hw, parts.valid_views(tokens))

    def layers_read(self, taps: tuple[int, ...]) -> tuple[int, ...]:
        """Return the one layer that the head reads.

        Args:
            taps: Indices of the encoder's layers.
        """
        return (max(taps) if self.layer is None else self.layer,)

    def select(self, tokens: Tokens) -> Tensor:
        """Return all that the head reads: camera tokens, (B, S, C), or special tokens, (B, S, R, C).

        Args:
            tokens: Tokens of an encoder that kept the head's layer.
        """
        layer = tokens.layer(max(tokens.layers) if self.layer is None else self.layer)
        check_shape("tokens", layer, ("B", "S", "P", self.dim))
        return layer[:, :, : tokens.num_special] if self.reads_all else layer[:, :, 0]

    def predict(self, selected: Tensor, image_hw: tuple[int, int], view_mask: Bool[Tensor, "b s"] | None = None) -> Any:
        """Predict from what `select` returns for all views of the scenes.

        Args:
            selected: Tokens, (B, S, C) or (B, S, R, C).
            image_hw: Height and width of the images in pixels.
            view_mask: Mask of the valid views, (B, S) bool; defaults to all.
        """
        raise NotImplementedError


class TrunkHead(SpecialTokenHead):
    """Base of heads with blocks on the special tokens of all views, between two norms (VGGT-Omega).

    Args:
        dim: Number of channels C of the encoder's output.
        depth: Number of blocks.
        num_heads: Number of attention heads of each block.
        layer: Index of the encoder's layer to read; defaults to the last one that was kept.
        block: Further numbers of the blocks, as for `TransformerBlock`.
    """

    reads_all = True

    def __init__(
        self, dim: int = 2048, depth: int = 4, *, num_heads: int = 16, layer: int | None = None, **block: Any
    ) -> None:
        super().__init__(dim, layer=layer)
        self.token_norm = nn.LayerNorm(dim)
        self.trunk = nn.ModuleList(TransformerBlock(dim, num_heads, **block) for _ in range(depth))
        self.trunk_norm = nn.LayerNorm(dim)

    def select(self, tokens: Tokens) -> Float[Tensor, "b s r c"]:
        """Return the normalised special tokens of every view, (B, S, R, C): all that the head reads.

        Args:
            tokens: Tokens of an encoder that kept the head's layer.
        """
        return self.token_norm(super().select(tokens))

    def run_trunk(
        self,
        selected: Float[Tensor, "b s r c"],
        view_mask: Bool[Tensor, "b s"] | None = None,
        first: Float[Tensor, "1 n c"] | None = None,
    ) -> Float[Tensor, "b p c"]:
        """Return the tokens after the blocks, before the second norm: N tokens, then those of all views.

        Args:
            selected: Result of `select` for all views, (B, S, R, C).
            view_mask: Mask of the valid views, (B, S) bool, whose tokens alone are keys; defaults to all.
            first: Tokens of the head's own that come first, (1, N, C); defaults to none.

        Returns:
            Tokens, (B, N + S·R, C).
        """
        x, mask = selected.flatten(1, 2), None
        num_own = 0 if first is None else first.shape[1]
        if first is not None:
            x = torch.cat([first.to(x.dtype).expand(len(x), -1, -1), x], dim=1)
        if view_mask is not None:
            valid = view_mask.repeat_interleave(selected.shape[2], dim=1)
            mask = key_mask(F.pad(valid, (num_own, 0), value=True))
        for block in self.trunk:
            x = block(x, mask=mask)
        return x
