"""Head that embeds a scene in a space of texts (VGGT-Omega)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geomtx.heads.special_tokens import TrunkHead
from geomtx.layers.precision import Float32Linear, at_least_float32
from geomtx.types import Bool, Float, show_shapes

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


class TextAlignmentHead(TrunkHead):
    """Read the special tokens of all views into one learned token, and project it to a vector of unit length.

    Args:
        dim: Number of channels C of the encoder's output.
        depth: Number of blocks.
        out_dim: Number of channels D of the embedding.
        trunk: `num_heads`, `layer` and numbers of the blocks, as for `TrunkHead`.
    """

    def __init__(self, dim: int = 2048, depth: int = 4, *, out_dim: int = 2048, **trunk: Any) -> None:
        super().__init__(dim, depth, **trunk)
        self.language_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.project = nn.Sequential(
            nn.Linear(dim, dim // 2), nn.GELU(), nn.LayerNorm(dim // 2), Float32Linear(dim // 2, out_dim)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial token."""
        nn.init.trunc_normal_(self.language_token, std=0.02)

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
            Embeddings of unit length, (B, D), in float32 or better, and the tokens that they are projected from.
        """
        token = self.trunk_norm(self.run_trunk(selected, view_mask, self.language_token)[:, 0])
        return SceneEmbedding(F.normalize(at_least_float32(self.project(token)), dim=-1), at_least_float32(token))
