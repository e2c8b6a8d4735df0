"""Point tracking through videos in overlapping windows (after CoTracker, Karaev et al. 2023)."""

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
from geomtx.tracking.correlation import build_pyramid, correlate, sample_views
from geomtx.tracking.updater import TrackUpdater
from geomtx.types import Bool, Float, Int, Tracks, TrackWindows, VideoTracks, show_shapes

__all__ = [
    "TrackState",
    "WindowQueries",
    "WindowRefiner",
    "WindowTracker",
]

_LONGEST_WAVE = 100.0  # base of the encoding of displacements, in pixels of the maps for a radian


@show_shapes
class TrackState(NamedTuple):
    """State of the tracks in the W views of a window.

    Attributes:
        coords: Positions (x, y) in pixels of the maps, (B, W, N, 2).
        features: Feature of each track in each view, (B, W, N, C).
        visibility: Logits of the visibility, (B, W, N).
        confidence: Logits of the confidence, (B, W, N).
    """

    coords: Float[Tensor, "b w n 2"]
    features: Float[Tensor, "b w n c"]
    visibility: Float[Tensor, "b w n"]
    confidence: Float[Tensor, "b w n"]


@show_shapes
class WindowQueries(NamedTuple):
    """Queries of a window, the same in all its iterations.

    Attributes:
        coords: Positions (x, y) of the queries in pixels of the maps, (B, N, 2).
        in_own_view: Mask of the view that each query point was given in, (B, W, N) bool.
        view_mask: Mask of the valid views, (B, W) bool.
        track_mask: Mask of the valid tracks, (B, N) bool.
    """

    coords: Float[Tensor, "b n 2"]
    in_own_view: Bool[Tensor, "b w n"]
    view_mask: Bool[Tensor, "b w"]
    track_mask: Bool[Tensor, "b n"]


class WindowRefiner(nn.Module):
    """Refinement of the tracks within one window, by iterated updates of a transformer.

    The token of a track in a view consists of the encoded displacements from the query and from and to the neighbouring
    views, the correlations around the current position, the track's feature, the current visibility and confidence, the
    encoded position of the query and time of the view within the window, and whether the view is the query's own. The
    update is added to position, feature and logits.

    Args:
        dim: Number of channels C of the feature maps, a multiple of 4.
        num_levels: Number of levels of the correlation pyramid.
        radius: Radius of the correlation windows in pixels of each level.
        hidden_dim: Number of channels of the transformer and of the correlation's MLP.
        num_heads: Number of attention heads of the transformer.
        depth: Number of rounds of the transformer.
        num_virtual: Number of virtual tracks of the transformer.
        backend: Name of the attention backend, see `geomtx.layers.backends`.
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
        # Encoded displacements (3 · dim), feature, position and time (dim each); visibility, confidence and own view.
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
        """Initialise the updates close to zero, so that tracks hardly move before training."""
        nn.init.normal_(self.updater.output_project.weight, std=1e-3)
        nn.init.zeros_(self.updater.output_project.bias)

    def forward(
        self, pyramid: Sequence[Tensor], state: TrackState, queries: WindowQueries, num_iterations: int
    ) -> list[TrackState]:
        """Refine the tracks of a window.

        Args:
            pyramid: Levels of the feature maps of the window's views, (B·W, C, H/2^l, W/2^l).
            state: Initial state of all tracks.
            queries: Queries of all tracks.
            num_iterations: Number of refinements.

        Returns:
            State after every iteration, in float32 or better. In a query's own view the position is the query's.
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
            update = update.transpose(1, 2)
            step, visibility, confidence, change = update.split([2, 1, 1, self.dim], dim=-1)
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
        """Return the part of the tokens that changes in every iteration, (B, W, N, hidden_dim + 4·C + 2)."""
        correlation = correlate(pyramid, state.features.flatten(0, 1), state.coords.flatten(0, 1), radius=self.radius)
        correlation = self.correlation_mlp(correlation.to(self.feature_update.weight.dtype))
        real = queries.view_mask[:, 1:, None, None]  # views beyond the end of the video must have no influence
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
        waves = rearrange(sincos(displacements, self.dim // 2, base=_LONGEST_WAVE), "b w n xy c -> b w n (xy c)")
        logits = torch.stack([state.visibility, state.confidence], dim=-1)
        correlation = correlation.unflatten(0, (len(state.coords), -1)).to(waves.dtype)
        return torch.cat([waves, correlation, state.features, logits.sigmoid()], dim=-1)

    def _fixed_signals(self, queries: WindowQueries, map_hw: tuple[int, int]) -> Tensor:
        """Return the part of the tokens that stays the same in all iterations, (B, W, N, 2·C + 1).

        It is the position of the query, the time within the window, and whether the view is the query's own.
        """
        dtype = at_least_float32(queries.coords).dtype
        num_views = queries.in_own_view.shape[1]
        size = (*queries.in_own_view.shape, -1)
        position = sample_grid_signal(queries.coords, map_hw, self.dim, base=10000.0)[:, None].expand(size)
        time = torch.arange(num_views, device=queries.coords.device, dtype=dtype)
        time = sincos(time, self.dim, base=10000.0)[:, None].expand(size)
        return torch.cat([position, time, queries.in_own_view[..., None].to(dtype)], dim=-1)


class WindowTracker(nn.Module):
    """Track query points, each from its own view on, through the feature maps of a video of any length.

    A window begins every `window_stride` views. A track of the previous window is initialised with its positions,
    features and logits in the overlap, and with the last of them in the following views; a track whose query is in the
    window for the first time is initialised with the query's position in all views. Tracks whose query lies in a later
    window are masked. Where two windows overlap, the result is that of the later one.

    Args:
        dim: Number of channels C of the feature maps, a multiple of 4.
        num_levels: Number of levels of the correlation pyramid; maps need 2^(num_levels - 1) pixels a side.
        radius: Radius of the correlation windows in pixels of each level.
        num_iterations: Number of refinements of a window in training mode.
        test_iterations: Number of refinements of a window in evaluation mode.
        window: Number of views of a window, at least 2.
        window_stride: Number of views between the beginnings of two windows, 1 to `window` - 1.
        hidden_dim: Number of channels of the updating transformer and of the correlation's MLP.
        num_heads: Number of attention heads of the transformer.
        depth: Number of rounds of the transformer.
        num_virtual: Number of virtual tracks of the transformer.
        stride: Side in pixels of the image of a pixel of the maps.
        backend: Name of the attention backend, see `geomtx.layers.backends`.

    Raises:
        ValueError: If windows would not overlap, or a number is out of range.
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
        """Track query points through all views.

        Args:
            features: Feature maps of the video, (B, S, C, H, W).
            query_points: Query points (view, x, y) in pixels of the images, (B, N, 3); views are clamped to the video.
            backward: Whether to track backwards too, from the end of the video, for the views before each query.
                Otherwise a track has its query's position there, with a visibility and confidence of 0.
            num_iterations: Number of refinements of a window; defaults to that of the module's mode.

        Returns:
            Tracks (B, S, N, …) in pixels of the images, and the windows of the forward pass through the video; in
            float32 or better.

        Raises:
            ValueError: If a shape is another one, there is a single view, or the maps are too small for the pyramid.
        """
        check_shape("features", features, ("B", "S", self.map_norm.normalized_shape[0], "H", "W"))
        check_shape("query_points", query_points, (features.shape[0], "N", 3))
        num_views = features.shape[1]
        if num_views < 2:
            raise ValueError(f"video must have at least 2 frames to track in, got {num_views}")
        if num_iterations is None:
            num_iterations = self.num_iterations if self.training else self.test_iterations
        check_count("num_iterations", num_iterations)
        maps = features.to(self.map_norm.weight.dtype).movedim(2, -1)  # (B, S, H, W, C)
        maps = at_least_float32(self.map_norm(maps).movedim(-1, 2))
        query_points = query_points.to(maps.dtype)
        view = query_points[..., 0].round().long().clamp(0, num_views - 1)
        query = query_points[..., 1:] / self.stride
        feature = sample_views(maps, view, query)
        pyramid = [level.unflatten(0, maps.shape[:2]) for level in build_pyramid(maps.flatten(0, 1), self.num_levels)]
        windows = self._sweep(pyramid, feature, query, view, num_iterations)
        tracks = self._join(windows, num_views)
        if backward:
            reverse = [level.flip(1) for level in pyramid]
            swept = self._sweep(reverse, feature, query, num_views - 1 - view, num_iterations)
            before = Tracks(*(part.flip(1) for part in self._join(swept, num_views)))
        else:
            nothing = torch.zeros_like(tracks.visibility)
            before = Tracks((query * self.stride)[:, None].expand_as(tracks.coords_px), nothing, nothing)
        return VideoTracks(_choose(view, tracks, before), windows)

    @property
    def min_image_side(self) -> int:
        """Smallest side in pixels that an image must have for all levels of the pyramid."""
        return self.stride * 2 ** (self.num_levels - 1)

    def _sweep(
        self, pyramid: list[Tensor], feature: Tensor, query: Tensor, view: Int[Tensor, "b n"], num_iterations: int
    ) -> TrackWindows:
        """Refine the tracks of all windows, one window after the other.

        Args:
            pyramid: Levels of the feature maps, (B, S, C, H/2^l, W/2^l).
            feature: Features at the queries, (B, N, C).
            query: Positions of the queries in pixels of the maps, (B, N, 2).
            view: Indices of the queries' views, (B, N).
            num_iterations: Number of refinements of a window.
        """
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
            state = self._begin(feature, query, state, known)
            history.append(self.refiner(maps, state, queries, num_iterations))
            state = history[-1][-1]
            views.append(torch.where(inside, index, -1))

        def collect(field: str) -> Tensor:
            return torch.stack([torch.stack([getattr(s, field) for s in window]) for window in history])

        return TrackWindows(
            collect("coords") * self.stride, collect("visibility"), collect("confidence"), torch.stack(views)
        )

    def _begin(self, feature: Tensor, query: Tensor, last: TrackState | None, known: Tensor) -> TrackState:
        """Return a window's initial state: from the previous window for `known` tracks (B, N), else the query's."""
        logits = torch.zeros_like(query[:, None, :, 0]).expand(-1, self.window, -1)
        new = TrackState(
            query[:, None].expand(-1, self.window, -1, -1),
            feature[:, None].expand(-1, self.window, -1, -1),
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
        """Return the last refinement of all windows, and of the later window where two overlap, (B, S, N, …)."""

        def join(parts: Tensor) -> Tensor:
            first = [part[:, : self.window_stride] for part in parts[:-1, -1]]
            return torch.cat([*first, parts[-1, -1]], dim=1)[:, :num_views]

        visibility, confidence = join(windows.visibility_logits), join(windows.confidence_logits)
        return Tracks(join(windows.coords_px), visibility.sigmoid(), confidence.sigmoid())


def _choose(view: Int[Tensor, "b n"], after: Tracks, before: Tracks) -> Tracks:
    """Return the tracks of `before` in the views before each track's own, and those of `after` in the others."""
    index = torch.arange(after.visibility.shape[1], device=view.device)[:, None]
    is_before = index < view[:, None]
    return Tracks(
        torch.where(is_before[..., None], before.coords_px, after.coords_px),
        torch.where(is_before, before.visibility, after.visibility),
        torch.where(is_before, before.confidence, after.confidence),
    )
