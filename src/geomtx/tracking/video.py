"""Point tracking through a video in overlapping windows, and the refinement of tracks within one window (after
CoTracker, Karaev et al. 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from geomtx.checks import check_count, check_divisible, check_range, check_shape
from geomtx.layers.backends import BackendName
from geomtx.layers.mlp import MLP
from geomtx.layers.position import sample_grid_signal, sincos
from geomtx.layers.precision import at_least_float32
from geomtx.tracking.correlation import build_pyramid, correlate
from geomtx.tracking.sampling import sample_views
from geomtx.tracking.updater import TrackUpdater
from geomtx.types import Bool, Float, Int, Tracks, TrackWindows, VideoTracks, show_shapes

__all__ = [
    "TrackState",
    "WindowQueries",
    "WindowRefiner",
    "WindowTracker",
]

_LONGEST_WAVE = 100.0  # of the displacements' signal, pixels of the maps a radian


@show_shapes
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


@show_shapes
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


class WindowTracker(nn.Module):
    """Follow query points, each from its own view on, through the feature maps of a video of any length.

    A window begins every `window_stride` views. A track that was followed before begins a window with its positions,
    features and logits in the overlap, and the last of them in the views after that; a track whose query comes into
    reach begins at its query's place in all views. Tracks whose query is yet to come take no part. Where two windows
    overlap, the later one counts.

    Args:
        dim: Channels C of the feature maps, a multiple of 4.
        num_levels: Of the correlation pyramid; the maps need 2^(num_levels - 1) pixels a side.
        radius: Of the correlation windows, pixels of each level.
        num_iterations: Refinements a window in training.
        test_iterations: Refinements a window in evaluation mode.
        window: Views of a window.
        window_stride: Views from the beginning of a window to that of the next.
        hidden_dim: Width of the updating transformer and of the correlation's MLP.
        num_heads: Of the transformer.
        depth: Of the transformer.
        num_virtual: Virtual tracks of the transformer.
        stride: Pixels of the image a pixel of the maps.
        backend: See `geomtx.layers.backends`.

    Raises:
        ValueError: For windows without an overlap, or numbers out of range.
    """

    def __init__(
        self,
        dim: int = 128,
        *,
        num_levels: int = 4,
        radius: int = 3,
        num_iterations: int = 4,
        test_iterations: int = 6,
        window: int = 8,
        window_stride: int = 4,
        hidden_dim: int = 384,
        num_heads: int = 8,
        depth: int = 6,
        num_virtual: int = 64,
        stride: int = 4,
        backend: BackendName = "auto",
    ) -> None:
        super().__init__()
        check_count("num_iterations", num_iterations)
        check_count("test_iterations", test_iterations)
        check_count("window", window, 2)
        check_range("window_stride", window_stride, 1, window - 1)
        self.num_levels = num_levels
        self.num_iterations = num_iterations
        self.test_iterations = test_iterations
        self.window = window
        self.window_stride = window_stride
        self.stride = stride
        self.map_norm = nn.LayerNorm(dim)
        self.refiner = WindowRefiner(
            dim,
            num_levels=num_levels,
            radius=radius,
            hidden_dim=hidden_dim,
            num_heads=num_heads,
            depth=depth,
            num_virtual=num_virtual,
            backend=backend,
        )

    def forward(
        self,
        features: Float[Tensor, "b s c h w"],
        query_points: Float[Tensor, "b n 3"],
        *,
        backward: bool = True,
        num_iterations: int | None = None,
    ) -> VideoTracks:
        """Track.

        Args:
            features: (B, S, C, H, W).
            query_points: (B, N, 3), (view, x, y), pixels of the images; views are clamped to the video.
            backward: Also run through the video from its end to its beginning, for the views before each query. False
                = there a track stays at its query, and is neither seen nor sure.
            num_iterations: Refinements; None = what the mode of the module says.

        Returns:
            Tracks (B, S, N, …) in pixels of the images, and the windows of the pass forwards. Float32 or better.

        Raises:
            ValueError: For other shapes, a single view, or maps too small for the pyramid.
        """
        check_shape("features", features, ("B", "S", self.map_norm.normalized_shape[0], "H", "W"))
        check_shape("query_points", query_points, (features.shape[0], "N", 3))
        num_views = features.shape[1]
        if num_views < 2:
            raise ValueError(f"video must have at least 2 frames to track in, got {num_views}")
        if num_iterations is None:
            num_iterations = self.num_iterations if self.training else self.test_iterations
        check_count("num_iterations", num_iterations)
        maps = rearrange(features.to(self.map_norm.weight.dtype), "b s c h w -> b s h w c")
        maps = at_least_float32(rearrange(self.map_norm(maps), "b s h w c -> b s c h w"))
        query_points = query_points.to(maps.dtype)
        view = query_points[..., 0].round().long().clamp(0, num_views - 1)
        query = query_points[..., 1:] / self.stride
        look = sample_views(maps, view, query)
        pyramid = [level.unflatten(0, maps.shape[:2]) for level in build_pyramid(maps.flatten(0, 1), self.num_levels)]
        windows = self._sweep(pyramid, look, query, view, num_iterations)
        tracks = self._join(windows, num_views)
        if backward:
            reverse = [level.flip(1) for level in pyramid]
            swept = self._sweep(reverse, look, query, num_views - 1 - view, num_iterations)
            before = Tracks(*(part.flip(1) for part in self._join(swept, num_views)))
        else:
            nothing = torch.zeros_like(tracks.visibility)
            before = Tracks((query * self.stride)[:, None].expand_as(tracks.coords_px), nothing, nothing)
        return VideoTracks(_choose(view, tracks, before), windows)

    @property
    def min_image_side(self) -> int:
        """Pixels that both sides of an image must have at least, for the pyramid's last level."""
        return self.stride * 2 ** (self.num_levels - 1)

    def _sweep(
        self, pyramid: list[Tensor], look: Tensor, query: Tensor, view: Int[Tensor, "b n"], num_iterations: int
    ) -> TrackWindows:
        """All windows, in order. `look` (B, N, C) are the features at the queries."""
        num_views = pyramid[0].shape[1]
        history: list[list[TrackState]] = []
        views = []
        state: TrackState | None = None
        for start in range(0, max(num_views - self.window + self.window_stride, 1), self.window_stride):
            index = torch.arange(start, start + self.window, device=query.device)
            inside = index < num_views
            maps = [level[:, index.clamp(max=num_views - 1)].flatten(0, 1) for level in pyramid]
            queries = WindowQueries(
                query,
                view[:, None] == index[:, None],
                inside.expand(len(query), -1),
                view < start + self.window,
            )
            known = view < start + self.window - self.window_stride
            state = self._begin(look, query, state, known)
            history.append(self.refiner(maps, state, queries, num_iterations))
            state = history[-1][-1]
            views.append(torch.where(inside, index, -1))

        def collect(field: str) -> Tensor:
            return torch.stack([torch.stack([getattr(s, field) for s in window]) for window in history])

        return TrackWindows(
            collect("coords") * self.stride, collect("visibility"), collect("confidence"), torch.stack(views)
        )

    def _begin(self, look: Tensor, query: Tensor, last: TrackState | None, known: Tensor) -> TrackState:
        """The state to begin a window with: that of the last one for `known` tracks (B, N), else the query's."""
        logits = torch.zeros_like(query[:, None, :, 0]).expand(-1, self.window, -1)
        new = TrackState(
            query[:, None].expand(-1, self.window, -1, -1),
            look[:, None].expand(-1, self.window, -1, -1),
            logits,
            logits,
        )
        if last is None:
            return new
        carried = TrackState(
            *(
                torch.cat(
                    [part[:, self.window_stride :], part[:, -1:].expand(-1, self.window_stride, *part.shape[2:])], dim=1
                )
                for part in last
            )
        )
        pick = known[:, None]
        return TrackState(
            torch.where(pick[..., None], carried.coords, new.coords),
            torch.where(pick[..., None], carried.features, new.features),
            torch.where(pick, carried.visibility, new.visibility),
            torch.where(pick, carried.confidence, new.confidence),
        )

    def _join(self, windows: TrackWindows, num_views: int) -> Tracks:
        """The last refinements of all windows, the later one where they overlap, (B, S, N, …)."""

        def join(parts: Tensor) -> Tensor:
            first = [part[:, : self.window_stride] for part in parts[:-1, -1]]
            return torch.cat([*first, parts[-1, -1]], dim=1)[:, :num_views]

        visibility, confidence = join(windows.visibility_logits), join(windows.confidence_logits)
        return Tracks(join(windows.coords_px), visibility.sigmoid(), confidence.sigmoid())


def _choose(view: Int[Tensor, "b n"], after: Tracks, before: Tracks) -> Tracks:
    """`before` in the views before each track's own, else `after`."""
    index = torch.arange(after.visibility.shape[1], device=view.device)[:, None]
    is_before = index < view[:, None]
    return Tracks(
        torch.where(is_before[..., None], before.coords_px, after.coords_px),
        torch.where(is_before, before.visibility, after.visibility),
        torch.where(is_before, before.confidence, after.confidence),
    )
