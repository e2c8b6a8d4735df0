"""Refinement of tracks within one window of a video (after CoTracker, Karaev et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from geomtx.checks import check_divisible
from geomtx.layers.backends import BackendName
from geomtx.layers.float32 import at_least_float32
from geomtx.layers.mlp import MLP
from geomtx.layers.position import sample_grid_signal, sincos
from geomtx.tracking.correlation import correlate
from geomtx.tracking.updater import TrackUpdater
from geomtx.types import Bool, Float

__all__ = ["TrackState", "WindowQueries", "WindowRefiner"]

_LONGEST_WAVE = 100.0  # of the displacements' signal, pixels of the maps a radian


class TrackState(NamedTuple):
    """What is known of the tracks in the views of a window.

    Attributes:
        coords: (B, W, N, 2) in pixels of the maps.
        features: (B, W, N, C), what each track looks like in each view.
        visibility: (B, W, N), logits.
        confidence: (B, W, N), logits.
    """

    coords: Float[Tensor, "b w n 2"]
    features: Float[Tensor, "b w n c"]
    visibility: Float[Tensor, "b w n"]
    confidence: Float[Tensor, "b w n"]


class WindowQueries(NamedTuple):
    """What stays the same while a window is refined.

    Attributes:
        coords: (B, N, 2), where the queries are, in pixels of the maps.
        in_own_view: (B, W, N) bool, True in the view of the query, if the window has it.
        view_mask: (B, W) bool, True = the view takes part.
        track_mask: (B, N) bool, True = the track takes part.
    """

    coords: Float[Tensor, "b n 2"]
    in_own_view: Bool[Tensor, "b w n"]
    view_mask: Bool[Tensor, "b w"]
    track_mask: Bool[Tensor, "b n"]


class WindowRefiner(nn.Module):
    """Tokens of all tracks in all views, and a transformer that updates them, over and over.

    A token holds sine and cosine of the displacements from the query and from and to the neighbouring views, the
    correlations around the present position, the track's feature, where the query is, when the view is within the
    window, the visibility and confidence so far, and whether the view is the query's own. The update moves positions
    and logits and changes the feature.

    Args:
        dim: Channels C of the maps, a multiple of 4.
        num_levels: Of the correlation pyramid.
        radius: Of the correlation windows, pixels of each level.
        hidden_dim: Width of the transformer and of the correlation's MLP.
        num_heads: Of the transformer.
        depth: Of the transformer.
        num_virtual: Virtual tracks of the transformer.
        backend: See `geomtx.layers.backends`.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_levels: int,
        radius: int,
        hidden_dim: int,
        num_heads: int,
        depth: int,
        num_virtual: int,
        backend: BackendName = "auto",
    ) -> None:
        super().__init__()
        check_divisible("dim", dim, 4)
        self.dim = dim
        self.radius = radius
        self.correlation_mlp = MLP(num_levels * (2 * radius + 1) ** 2, hidden_dim, hidden_dim)
        # Three displacements, feature, place and time; visibility, confidence, own view.
        self.updater = TrackUpdater(
            hidden_dim + 6 * dim + 3,
            dim + 4,
            dim=hidden_dim,
            num_heads=num_heads,
            depth=depth,
            num_virtual=num_virtual,
            backend=backend,
        )
        self.feature_norm = nn.LayerNorm(dim)
        self.feature_update = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Begin with hardly any update, so that tracks stay where they are until something is learned."""
        nn.init.normal_(self.updater.output_project.weight, std=1e-3)
        nn.init.zeros_(self.updater.output_project.bias)

    def forward(
        self, pyramid: Sequence[Tensor], state: TrackState, queries: WindowQueries, num_iterations: int
    ) -> list[TrackState]:
        """Refine.

        Args:
            pyramid: Maps of the window's views, (B·W, C, H/2^l, W/2^l).
            state: To begin with.
            queries: Of all tracks.
            num_iterations: Refinements.

        Returns:
            The state after every iteration, float32 or better. In its own view a query stays where it is.
        """
        fixed = self._fixed_signals(queries, (pyramid[0].shape[-2], pyramid[0].shape[-1]))
        dtype = self.feature_update.weight.dtype
        history = []
        for _ in range(num_iterations):
            state = state._replace(
                coords=state.coords.detach(),
                visibility=state.visibility.detach(),
                confidence=state.confidence.detach(),
            )
            tokens = torch.cat([self._signals(pyramid, state, queries), fixed], dim=-1)
            update = self.updater(tokens.transpose(1, 2), queries.view_mask, track_mask=queries.track_mask)
            step, visibility, confidence, change = update.transpose(1, 2).split([2, 1, 1, self.dim], dim=-1)
            changed = nn.functional.gelu(self.feature_update(self.feature_norm(change.to(dtype))))
            moved = torch.where(queries.in_own_view[..., None], queries.coords[:, None], state.coords + step)
            state = TrackState(
                moved,
                state.features + changed.to(state.features.dtype),
                state.visibility + visibility.squeeze(-1),
                state.confidence + confidence.squeeze(-1),
            )
            history.append(state)
        return history

    def _signals(self, pyramid: Sequence[Tensor], state: TrackState, queries: WindowQueries) -> Tensor:
        """What an iteration may change, (B, W, N, hidden_dim + 4·C + 2)."""
        correlation = correlate(pyramid, state.features.flatten(0, 1), state.coords.flatten(0, 1), radius=self.radius)
        correlation = self.correlation_mlp(correlation.to(self.feature_update.weight.dtype))
        real = queries.view_mask[:, 1:, None, None]  # what lies beyond the end of the video has no say in it
        steps = torch.where(real, state.coords.diff(dim=1), 0.0)
        still = torch.zeros_like(state.coords[:, :1])
        displacements = torch.cat(
            [
                state.coords - queries.coords[:, None],
                torch.cat([still, steps], dim=1),
                torch.cat([steps, still], dim=1),
            ],
            dim=-1,
        )
        waves = sincos(displacements, self.dim // 2, base=_LONGEST_WAVE).flatten(-2)
        logits = torch.stack([state.visibility, state.confidence], dim=-1)
        correlation = correlation.unflatten(0, state.coords.shape[:2]).to(waves.dtype)
        return torch.cat([waves, correlation, state.features, logits.sigmoid()], dim=-1)

    def _fixed_signals(self, queries: WindowQueries, map_hw: tuple[int, int]) -> Tensor:
        """Place of the query, time within the window, and whether the view is the query's own, (B, W, N, 2·C + 1)."""
        dtype = at_least_float32(queries.coords).dtype
        num_views = queries.in_own_view.shape[1]
        size = (*queries.in_own_view.shape, -1)
        place = sample_grid_signal(queries.coords, map_hw, self.dim, base=10000.0)[:, None].expand(size)
        time = torch.arange(num_views, device=queries.coords.device, dtype=dtype)
        time = sincos(time, self.dim, base=10000.0)[:, None].expand(size)
        return torch.cat([place, time, queries.in_own_view[..., None].to(dtype)], dim=-1)
