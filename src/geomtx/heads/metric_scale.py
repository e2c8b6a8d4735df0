"""Head that predicts the factor from a scene's unit to metres (Pi3X)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from geomtx.checks import check_divisible, check_shape
from geomtx.heads.head import Head, HeadFootprint, Parts
from geomtx.heads.token_decoder import token_rotations
from geomtx.layers.mlp import MLP
from geomtx.layers.precision import Float32Linear, at_least_float32
from geomtx.layers.rope import RotaryTable, apply_rotary
from geomtx.types import Float, Tokens

__all__ = ["MetricScaleHead"]

ReadViews = Callable[[Callable[[Tokens], tuple[Tensor, Tensor]]], tuple[Tensor, Tensor]]
"""Function that applies a function of single views to the tokens of all views of the scenes, of all processes."""


class MetricScaleHead(Head):
    """Predict one factor for each scene, by a learned token that attends to the tokens of all views.

    The token attends to each view by itself, and what it reads there is weighted by how much it attends to the view; so
    the tokens of all views need not be in one place. The result is that of attention to all of them at once.

    Args:
        in_dim: Number of channels of the encoder's tokens.
        dim: Number of channels of the blocks.
        depth: Number of blocks.
        num_heads: Number of attention heads of each block; dim / num_heads must be a multiple of 4.
        rope_base: Base of the rotary positions.
        layer: Index of the encoder's layer to read; defaults to the last one that was kept.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int = 512,
        depth: int = 5,
        *,
        num_heads: int = 8,
        rope_base: float = 100.0,
        layer: int | None = None,
    ) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.head_dim = dim // num_heads
        self.rope_base = rope_base
        self.layer = layer
        self.token = nn.Parameter(torch.zeros(1, 1, in_dim))
        self.project_token = nn.Linear(in_dim, dim)
        self.project_views = nn.Linear(in_dim, dim)
        self.blocks = nn.ModuleList(ReadingBlock(dim, num_heads) for _ in range(depth))
        self.contract = nn.Linear(dim, dim)
        self.out = Float32Linear(dim, 1)
        nn.init.normal_(self.token, std=1e-2)

    def forward(self, tokens: Tokens) -> Float[Tensor, " b"]:
        """Return the factor of every scene, (B,), in float32 or better.

        Args:
            tokens: Tokens of all views of an encoder that kept the layer.

        Raises:
            ValueError: If the layer wasn't kept or has another number of channels.
        """
        return self.predict(lambda function: function(tokens))

    def predict(self, read: ReadViews) -> Float[Tensor, " b"]:
        """Return the factor of every scene, (B,), of views that are read in parts.

        Args:
            read: Function that applies a function of the tokens of single views to those of all views, and returns its
                results for all, concatenated along axis 1.
        """
        query = self.project_token(self.token[:, 0])  # (1, C), and (B, C) from the first block on
        for block in self.blocks:
            query = block(query, lambda ask, block=block: read(lambda tokens: ask(*self._keys(tokens))))
        return self.out(self.contract(query)).exp()[:, 0]

    def run_in_parts(self, tokens: Any, parts: Parts, query_points: Tensor | None = None, **options: Any) -> Tensor:
        """Return what `forward` returns."""

        def read(function: Callable[[Tokens], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
            values, weights = map(parts.gather, parts.each_view(function, tokens))
            return values, weights

        return self.predict(read)

    def footprint(self, patch_size: int) -> HeadFootprint:
        """Return the memory that the head takes.

        Args:
            patch_size: Side of a patch in pixels.
        """
        # Tokens before and after their norm, keys, values, and the keys' rotation in float32. It reads the layer that
        # the head of points reads, which counts there.
        return HeadFootprint((), 10 * self.project_views.out_features / patch_size**2, 0, 0)

    def _keys(self, tokens: Tokens) -> tuple[Tensor, RotaryTable, Tensor | None]:
        """Return what a block reads of views: tokens (B, S, P, C), their rotary table, and which are valid."""
        layer = tokens.layer(max(tokens.layers) if self.layer is None else self.layer)
        check_shape("tokens", layer, ("B", "S", "P", self.in_dim))
        rope = token_rotations(tokens, self.head_dim, base=self.rope_base)
        return self.project_views(layer), rope, tokens.mask


class ReadingBlock(nn.Module):
    """q + attention(norm(q); norm(tokens)), then q + MLP(norm(q)), for one query in each scene.

    Args:
        dim: Number of channels of the query and of the tokens.
        num_heads: Number of attention heads.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        check_divisible(f"dim (for {num_heads} heads)", dim, num_heads)
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.query_norm = nn.LayerNorm(dim, eps=1e-6)
        self.token_norm = nn.LayerNorm(dim, eps=1e-6)
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.attention_out = nn.Linear(dim, dim)
        self.mlp_norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLP(dim, 4 * dim)

    def forward(self, x: Float[Tensor, "#b c"], read: Callable[..., tuple[Tensor, Tensor]]) -> Float[Tensor, "b c"]:
        """Return the query after the block.

        Args:
            x: Query of every scene, (B, C), or (1, C) for the same one.
            read: Function that applies a function of tokens (B, S, P, C), their rotary table and their mask to all
                views.
        """
        # The query is at (0, 0), where nothing is rotated.
        query = self.query(self.query_norm(x)).unflatten(-1, (self.num_heads, -1))

        def ask(tokens: Tensor, rope: RotaryTable, mask: Tensor | None) -> tuple[Tensor, Tensor]:
            return self._attend(query, self.token_norm(tokens), rope, mask)

        values, weights = read(ask)
        of_views = weights.softmax(dim=1)[..., None]
        found = (of_views * values).sum(1).flatten(1)
        x = x + self.attention_out(found.to(query.dtype))
        return x + self.mlp(self.mlp_norm(x))

    def _attend(self, query: Tensor, tokens: Tensor, rope: RotaryTable, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what the query reads in each view, (B, S, heads, D), and its log weight, (B, S, heads)."""
        keys = apply_rotary(self.key(tokens).unflatten(-1, (self.num_heads, -1)), rope.over_heads())
        values = self.value(tokens).unflatten(-1, (self.num_heads, -1))
        scores = at_least_float32(torch.einsum("bhd,bsphd->bsph", query * self.head_dim**-0.5, keys))
        if mask is not None:
            # A view without valid tokens is read as a whole, with a weight that vanishes beside any other view's.
            scores = torch.where(mask[..., None], scores, -1e4)
        weights = scores.softmax(dim=2).to(values.dtype)
        return at_least_float32(torch.einsum("bsph,bsphd->bshd", weights, values)), scores.logsumexp(dim=2)
