"""Head that embeds a scene in a space of texts (VGGT-Omega)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geomtx.heads.special_tokens import SpecialTokenHead
from geomtx.layers.attention import key_mask
from geomtx.layers.block import TransformerBlock
from geomtx.layers.precision import Float32Linear, at_least_float32
from geomtx.types import Bool, Float, Tokens, show_shapes

__all__ = ["SceneEmbedding", "TextAlignmentHead"]


@show_shapes
class SceneEmbedding(NamedTuple):
    """Output of `TextAlignmentHead`: what a scene is in a space of texts.

    Attributes:
        embedding: Vectors of unit length, (B, D).
        token: Tokens that they are projected from, (B, C).
    """

    embedding: Float[Tensor, "b d"]
    token: Float[Tensor, "b c"]


class TextAlignmentHead(SpecialTokenHead):
    """Read the special tokens of all views into one learned token, and project it to a vector of unit length.

    Args:
        dim: Number of channels C of the encoder's output.
        depth: Number of blocks.
        num_heads: Number of attention heads of each block.
        out_dim: Number of channels of the embedding.
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
        out_dim: int = 2048,
        layer: int | None = None,
        **block: Any,
    ) -> None:
        super().__init__(dim, layer=layer)
        self.token_norm = nn.LayerNorm(dim)
        self.language_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.readout = nn.ModuleList(TransformerBlock(dim, num_heads, **block) for _ in range(depth))
        self.readout_norm = nn.LayerNorm(dim)
        self.project = nn.Sequential(
            nn.Linear(dim, dim // 2), nn.GELU(), nn.LayerNorm(dim // 2), Float32Linear(dim // 2, out_dim)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial token."""
        nn.init.trunc_normal_(self.language_token, std=0.02)

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
    ) -> SceneEmbedding:
        """Embed scenes by the normalised special tokens of all their views.

        Args:
            selected: Result of `select`, (B, S, R, C).
            image_hw: Height and width of the images, which have no influence.
            view_mask: Mask of the valid views, (B, S) bool; defaults to all.

        Returns:
            Embeddings of unit length, (B, out_dim), in float32 or better, and the tokens that they are projected from.
        """
        token = self.language_token.to(selected.dtype).expand(len(selected), -1, -1)
        x = torch.cat([token, selected.flatten(1, 2)], dim=1)
        mask = None
        if view_mask is not None:
            mask = key_mask(F.pad(view_mask.repeat_interleave(selected.shape[2], dim=1), (1, 0), value=True))
        for block in self.readout:
            x = block(x, mask=mask)
        token = self.readout_norm(x[:, 0])
        return SceneEmbedding(F.normalize(at_least_float32(self.project(token)), dim=-1), at_least_float32(token))
