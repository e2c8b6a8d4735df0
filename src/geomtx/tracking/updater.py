"""Transformer that updates tracks (CoTracker, Karaev et al. 2023, without its encoding of time)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from geomtx.layers.attention import Attention, key_mask
from geomtx.layers.backends import BackendName
from geomtx.layers.block import Attend
from geomtx.layers.mlp import MLP
from geomtx.layers.precision import Float32Linear
from geomtx.types import Bool, Float

__all__ = ["TrackBlock", "TrackUpdater"]


class TrackBlock(nn.Module):
    """x = norm(x), x + attention(x), x + MLP(norm(x)): the first residual branch is added to the normalised input.

    Args:
        dim: Number of channels of the tokens.
        num_heads: Number of attention heads.
        with_context: Whether the block attends to a context, which has its own norm, instead of its input.
        backend: Name of the attention backend, see `geomtx.layers.backends`.
    """

    def __init__(self, dim: int, num_heads: int, *, with_context: bool = False, backend: BackendName = "auto") -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.context_norm = nn.LayerNorm(dim) if with_context else None
        self.attention = Attention(dim, num_heads, backend=backend)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = MLP(dim, 4 * dim)

    def forward(
        self,
        x: Float[Tensor, "batch n c"],
        context: Float[Tensor, "batch m c"] | None = None,
        *,
        mask: Bool[Tensor, "#batch #heads #n #m"] | None = None,
    ) -> Float[Tensor, "batch n c"]:
        """Transform tokens, (batch, N, C) → (batch, N, C).

        Args:
            x: Tokens, (batch, N, C).
            context: Tokens that are attended to, (batch, M, C); only where the block was made `with_context`.
            mask: Attention mask, see `Attention`; defaults to all pairs.
        """
        x = self.norm(x)
        x = x + self.attention(x, None if self.context_norm is None else self.context_norm(context), mask=mask)
        return x + self.mlp(self.mlp_norm(x))


class TrackUpdater(nn.Module):
    """Transformer that alternates attention of each track over the views and of the tracks through virtual tracks.

    Points attend only to a few virtual tracks, so the cost grows linearly with the number of points.

    Args:
        in_dim: Number of channels of the tokens.
        out_dim: Number of channels of the update.
        dim: Number of channels of the blocks.
        num_heads: Number of attention heads of every block.
        depth: Number of rounds of attention over views and over tracks.
        num_virtual: Number of virtual tracks.
        backend: Name of the attention backend, see `geomtx.layers.backends`.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        dim: int = 384,
        num_heads: int = 8,
        depth: int = 6,
        num_virtual: int = 64,
        backend: BackendName = "auto",
    ) -> None:
        super().__init__()

        def blocks(with_context: bool) -> nn.ModuleList:
            return nn.ModuleList(
                TrackBlock(dim, num_heads, with_context=with_context, backend=backend) for _ in range(depth)
            )

        self.input_norm = nn.LayerNorm(in_dim)
        self.input_project = nn.Linear(in_dim, dim)
        self.virtual_tracks = nn.Parameter(torch.empty(1, num_virtual, 1, dim))
        self.view_blocks = blocks(with_context=False)
        self.virtual_from_point = blocks(with_context=True)
        self.virtual_blocks = blocks(with_context=False)
        self.point_from_virtual = blocks(with_context=True)
        self.output_norm = nn.LayerNorm(dim)
        self.output_project = Float32Linear(dim, out_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial virtual tracks."""
        nn.init.normal_(self.virtual_tracks)

    def forward(
        self,
        tokens: Float[Tensor, "b n s c"],
        view_mask: Bool[Tensor, "b s"] | None = None,
        *,
        track_mask: Bool[Tensor, "b n"] | None = None,
        attend: Attend | None = None,
    ) -> Float[Tensor, "b n s c_out"]:
        """Return the update of every track in every view, in float32 or better.

        Args:
            tokens: Tokens of the tracks, (B, N, S, in_dim); converted to the precision of the weights.
            view_mask: Mask of the valid views, (B, S) bool; defaults to all.
            track_mask: Mask of the valid tracks, (B, N) bool; the others have no influence on any track. Defaults to
                all.
            attend: Function that runs a block that mixes views, (number, block, tokens (B, tracks, S, dim)) → tokens;
                defaults to attention over all views at once.
        """
        num_scenes, num_points, num_views, _ = tokens.shape
        projected = self.input_project(self.input_norm(tokens.to(self.virtual_tracks.dtype)))
        virtual = self.virtual_tracks.to(projected.dtype).expand(num_scenes, -1, num_views, -1)
        x = torch.cat([projected, virtual], dim=1)
        attend = _AttendOverViews(view_mask) if attend is None else attend
        point_mask = None if track_mask is None else key_mask(repeat(track_mask, "b n -> (b s) n", s=num_views))
        rounds = zip(
            self.view_blocks, self.virtual_from_point, self.virtual_blocks, self.point_from_virtual, strict=True
        )
        for number, (view_block, virtual_from_point, virtual_block, point_from_virtual) in enumerate(rounds):
            x = rearrange(attend(number, view_block, x), "b n s c -> (b s) n c")
            points, virtual = x[:, :num_points], x[:, num_points:]
            virtual = virtual_block(virtual_from_point(virtual, points, mask=point_mask))
            points = point_from_virtual(points, virtual)
            x = rearrange(torch.cat([points, virtual], dim=1), "(b s) n c -> b n s c", b=num_scenes)
        return self.output_project(self.output_norm(x[:, :num_points] + projected))


@dataclass(eq=False)
class _AttendOverViews:
    """Run a block on every track by itself, over all its views."""

    view_mask: Tensor | None

    def __call__(self, number: int, block: Callable[..., Tensor], x: Tensor) -> Tensor:
        num_tracks = x.shape[1]
        mask = None if self.view_mask is None else key_mask(repeat(self.view_mask, "b s -> (b n) s", n=num_tracks))
        return block(x.flatten(0, 1), mask=mask).unflatten(0, (-1, num_tracks))  # (B·N, S, C)
