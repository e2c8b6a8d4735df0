"""Point tracking through a video in overlapping windows (after CoTracker, Karaev et al. 2023)."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from geomtx.checks import check_count, check_range, check_shape
from geomtx.layers.backends import BackendName
from geomtx.layers.float32 import at_least_float32
from geomtx.tracking.correlation import build_pyramid
from geomtx.tracking.sampling import sample_views
from geomtx.tracking.window import TrackState, WindowQueries, WindowRefiner
from geomtx.types import Float, Int, Tracks, TrackWindows, VideoTracks

__all__ = ["WindowTracker"]


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
