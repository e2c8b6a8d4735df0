"""The transformer that updates tracks (CoTracker, Karaev et al. 2023, without its order of time)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geomtx.layers.attention import Attention, key_mask
from geomtx.layers.backends import BackendName
from geomtx.layers.float32 import Float32Linear
from geomtx.layers.mlp import MLP
from geomtx.types import Bool, Float

__all__ = ["TrackBlock", "TrackUpdater"]


class TrackBlock(nn.Module):
    """x = norm(x), x + attention(x), x + MLP(norm(x)): the residual is the normed input.

    Args:
        dim: Width.
        num_heads: Heads of the attention.
        with_context: Attend to a context, which gets a norm of its own.
        backend: See `geomtx.layers.backends`.
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
        """(batch, N, C) → (batch, N, C); `context` (batch, M, C) only with `with_context`."""
        x = self.norm(x)
        x = x + self.attention(x, None if self.context_norm is None else self.context_norm(context), mask=mask)
        return x + self.mlp(self.mlp_norm(x))


class TrackUpdater(nn.Module):
    """Attention of a track over the views, and of the tracks of a view through a few virtual tracks.

    Points only attend to virtual tracks, so the cost grows linearly with the number of points.

    Args:
        in_dim: Width of the tokens.
        out_dim: Width of the update.
        dim: Width within.
        num_heads: Heads of every block.
        depth: Rounds of view and point attention.
        num_virtual: Virtual tracks.
        backend: See `geomtx.layers.backends`.
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
        """Draw the virtual tracks."""
        nn.init.normal_(self.virtual_tracks)

    def forward(
        self,
        tokens: Float[Tensor, "b n s c"],
        view_mask: Bool[Tensor, "b s"] | None = None,
        *,
        track_mask: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n s c_out"]:
        """Update of every track in every view, float32 or better.

        Args:
            tokens: (B, N, S, in_dim).
            view_mask: (B, S) bool, True = the view takes part.
            track_mask: (B, N) bool, True = the track takes part; no other track hears of one that doesn't.
        """
        num_scenes, num_points, num_views, _ = tokens.shape
        projected = self.input_project(self.input_norm(tokens))
        virtual = self.virtual_tracks.to(projected.dtype).expand(num_scenes, -1, num_views, -1)
        x = torch.cat([projected, virtual], dim=1)
        num_tracks = num_points + self.virtual_tracks.shape[1]
        mask = None if view_mask is None else key_mask(view_mask.repeat_interleave(num_tracks, dim=0))
        point_mask = None if track_mask is None else key_mask(track_mask.repeat_interleave(num_views, dim=0))
        rounds = zip(
            self.view_blocks, self.virtual_from_point, self.virtual_blocks, self.point_from_virtual, strict=True
        )
        for view_block, virtual_from_point, virtual_block, point_from_virtual in rounds:
            x = view_block(x.flatten(0, 1), mask=mask).unflatten(0, (num_scenes, num_tracks))
            by_view = x.transpose(1, 2).flatten(0, 1)
            points, virtual = by_view[:, :num_points], by_view[:, num_points:]
            virtual = virtual_block(virtual_from_point(virtual, points, mask=point_mask))
            points = point_from_virtual(points, virtual)
            x = torch.cat([points, virtual], dim=1).unflatten(0, (num_scenes, num_views)).transpose(1, 2)
        return self.output_project(self.output_norm(x[:, :num_points] + projected))
