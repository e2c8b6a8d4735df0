"""Point tracking over unordered views by iterated correlation (VGGT, section 3.3; after CoTracker)."""

from __future__ import annotations

import torch
from einops import repeat
from torch import Tensor, nn

from geomtx.checks import check_divisible, check_positive, check_shape
from geomtx.layers.backends import BackendName
from geomtx.layers.mlp import MLP
from geomtx.layers.position import fourier_features, sample_grid_signal
from geomtx.layers.precision import Float32Linear, at_least_float32
from geomtx.tracking.correlation import build_pyramid, correlate, sample_views
from geomtx.tracking.updater import TrackUpdater
from geomtx.types import Bool, Float, TrackIterations

__all__ = ["Tracker"]


class Tracker(nn.Module):
    """Track query points through the feature maps of unordered views.

    Each iteration correlates the tracks' features with the maps around their positions, and a transformer updates
    positions and features. The gradient of the positions is cut between iterations.

    Args:
        dim: Number of channels C of the feature maps, a multiple of 4.
        num_levels: Number of levels of the correlation pyramid; maps need 2^(num_levels - 1) pixels a side.
        radius: Radius of the correlation windows in pixels of each level.
        num_iterations: Number of refinements.
        hidden_dim: Number of channels of the updating transformer and of the correlation's MLP.
        num_heads: Number of attention heads of the transformer.
        depth: Number of rounds of the transformer.
        num_virtual: Number of virtual tracks of the transformer.
        stride: Side in pixels of the image of a pixel of the maps.
        max_displacement: Length in pixels of the maps by which displacements are divided as an input of the network.
        backend: Name of the attention backend, see `geomtx.layers.backends`.
    """

    def __init__(
        self,
        dim: int = 128,
        *,
        num_levels: int = 7,
        radius: int = 4,
        num_iterations: int = 4,
        hidden_dim: int = 384,
        num_heads: int = 8,
        depth: int = 6,
        num_virtual: int = 64,
        stride: int = 2,
        max_displacement: float = 518.0,
        backend: BackendName = "auto",
    ) -> None:
        super().__init__()
        check_divisible("dim", dim, 4)
        check_positive("num_iterations", num_iterations)
        self.dim = dim
        self.num_levels = num_levels
        self.radius = radius
        self.num_iterations = num_iterations
        self.hidden_dim = hidden_dim
        self.num_heads = num_heads
        self.depth = depth
        self.num_virtual = num_virtual
        self.stride = stride
        self.max_displacement = max_displacement
        self.backend = backend
        token_dim = 3 * dim + 4  # displacement (dim + 4), correlation (dim), feature (dim)
        self.map_norm = nn.LayerNorm(dim)
        self.query_token = nn.Parameter(torch.empty(1, 2, token_dim))
        self.correlation_mlp = MLP(num_levels * (2 * radius + 1) ** 2, hidden_dim, dim)
        self.updater = TrackUpdater(
            token_dim,
            dim + 2,
            dim=hidden_dim,
            num_heads=num_heads,
            depth=depth,
            num_virtual=num_virtual,
            backend=backend,
        )
        self.feature_norm = nn.LayerNorm(dim)
        self.feature_update = nn.Linear(dim, dim)
        self.visibility = Float32Linear(dim, 1)
        self.confidence = Float32Linear(dim, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial tokens that mark the query's view and the other views."""
        nn.init.normal_(self.query_token)

    def forward(
        self,
        features: Float[Tensor, "b s c h w"],
        query_points: Float[Tensor, "b n q"],
        *,
        view_mask: Bool[Tensor, "b s"] | None = None,
    ) -> TrackIterations:
        """Track query points through all views.

        Args:
            features: Feature maps of all views, (B, S, C, H, W).
            query_points: Query points, (B, N, 2) as (x, y) in pixels of the images in view 0, or (B, N, 3) as
                (view, x, y).
            view_mask: Mask of the valid views, (B, S) bool; tracks in the others are meaningless. Defaults to all.

        Returns:
            Coordinates (I, B, S, N, 2) in pixels of the images after every iteration, which are a query's own in its
            own view, and logits of visibility and confidence (B, S, N); in float32 or better.

        Raises:
            ValueError: If a shape is another one, or the maps are too small for the pyramid.
        """
        check_shape("features", features, ("B", "S", self.map_norm.normalized_shape[0], "H", "W"))
        num_scenes, num_views = features.shape[:2]
        check_shape("query_points", query_points, (num_scenes, "N", 2), (num_scenes, "N", 3))
        maps = features.to(self.map_norm.weight.dtype).movedim(2, -1)  # (B, S, H, W, C)
        maps = at_least_float32(self.map_norm(maps).movedim(-1, 2))
        pyramid = build_pyramid(maps.flatten(0, 1), self.num_levels)
        query, query_view = self._split_query(query_points.to(maps.dtype), num_views)
        track = repeat(sample_views(maps, query_view, query), "b n c -> b s n c", s=num_views)
        in_own_view = (torch.arange(num_views, device=query.device)[:, None] == query_view[:, None])[..., None]
        fixed = self._fixed_signal(query, in_own_view, (features.shape[-2], features.shape[-1]))
        coords, history = query[:, None].expand(-1, num_views, -1, -1), []
        for _ in range(self.num_iterations):
            coords = coords.detach()
            tokens = self._tokens(pyramid, track, coords, query) + fixed
            update = self.updater(tokens.transpose(1, 2), view_mask).transpose(1, 2)
            step, change = update.split([2, self.dim], dim=-1)
            change = self.feature_norm(change.to(self.feature_norm.weight.dtype))
            track = track + nn.functional.gelu(self.feature_update(change))
            coords = torch.where(in_own_view, query[:, None], coords + step)
            history.append(coords * self.stride)
        return TrackIterations(
            torch.stack(history), self.visibility(track).squeeze(-1), self.confidence(track).squeeze(-1)
        )

    @property
    def min_image_side(self) -> int:
        """Smallest side in pixels that an image must have for all levels of the pyramid."""
        return self.stride * 2 ** (self.num_levels - 1)

    def _split_query(self, query_points: Tensor, num_views: int) -> tuple[Tensor, Tensor]:
        """Return coordinates (B, N, 2) in pixels of the maps, and indices of views (B, N), clamped to 0 … S - 1.

        An index out of range would abort the process on a GPU; `geomtx.VGGT`, `TrackHead.track` and
        `geomtx.reconstruct` raise an error for it.
        """
        if query_points.shape[-1] == 2:
            return query_points / self.stride, query_points.new_zeros(query_points.shape[:2], dtype=torch.long)
        return query_points[..., 1:] / self.stride, query_points[..., 0].round().long().clamp(0, num_views - 1)

    def _fixed_signal(self, query: Tensor, in_own_view: Tensor, map_hw: tuple[int, int]) -> Tensor:
        """Return the encoding of the query's position and view that is added to the tokens, (B, S, N, token_dim)."""
        own, other = at_least_float32(self.query_token).unbind(1)
        position = sample_grid_signal(query, map_hw, self.query_token.shape[-1], base=10000.0)
        return position[:, None] + torch.where(in_own_view, own, other)

    def _tokens(self, pyramid: list[Tensor], track: Tensor, coords: Tensor, query: Tensor) -> Tensor:
        """Return the tokens of an iteration, (B, S, N, token_dim) in float32 or better."""
        correlation = correlate(pyramid, track.flatten(0, 1), coords.flatten(0, 1), radius=self.radius)
        correlation = self.correlation_mlp(correlation.to(self.query_token.dtype)).unflatten(0, coords.shape[:2])
        displacement = coords - query[:, None]
        waves = fourier_features(displacement, track.shape[-1] // 2)
        relative = displacement / self.max_displacement
        return torch.cat([waves, relative, relative, correlation.to(coords.dtype), track.to(coords.dtype)], dim=-1)
