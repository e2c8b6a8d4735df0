"""Tracks of query points."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from geomtx.checks import check_shape
from geomtx.heads.dpt import DPTDecoder
from geomtx.tracking.queries import batch_queries, check_queries
from geomtx.tracking.query_chunk import map_query_chunks
from geomtx.tracking.tracker import Tracker
from geomtx.types import Bool, Float, ProjectedTokens, Tokens, TrackPrediction, Tracks

__all__ = ["TrackHead", "check_track_images"]


class TrackHead(nn.Module):
    """A decoder that makes feature maps, and a tracker on them.

    Args:
        decoder: Tokens to maps with as many channels and the same stride as the tracker.
        tracker: Maps and queries to tracks.

    Raises:
        ValueError: If decoder and tracker don't fit.
    """

    def __init__(self, decoder: DPTDecoder, tracker: Tracker) -> None:
        super().__init__()
        channels = tracker.map_norm.normalized_shape[0]
        if (decoder.out_channels, decoder.stride) != (channels, tracker.stride):
            raise ValueError(
                f"decoder must have {channels} channels and stride {tracker.stride}, as the tracker, "
                f"got {decoder.out_channels} and {decoder.stride}"
            )
        self.decoder = decoder
        self.tracker = tracker

    def forward(
        self,
        tokens: Tokens | ProjectedTokens,
        query_points: Float[Tensor, "b n q"],
        *,
        view_chunk: int | None = None,
        query_chunk: int | None = None,
    ) -> TrackPrediction:
        """Track: `extract`, then `track`.

        Args:
            tokens: Of an encoder that kept the decoder's taps; or what `decoder.project_tap` made of them.
            query_points: (B, N, 2), (x, y) in pixels of view 0, or (B, N, 3) as (view, x, y).
            view_chunk: Views to decode at a time; None = all.
            query_chunk: See `track`.

        Returns:
            Tracks (B, S, N, …) and all iterations, see `Tracker`. Values of queries are not looked at, as the tokens
            may be those of some views alone: `VGGT.forward` and `track` do that.
        """
        if isinstance(tokens, ProjectedTokens):
            view_mask = tokens.view_mask
        else:
            view_mask = None if tokens.mask is None else tokens.mask[:, :, 0]
        features = self.extract(tokens, view_chunk=view_chunk)
        return self._track(features, query_points, view_mask, query_chunk)

    def extract(self, tokens: Tokens | ProjectedTokens, *, view_chunk: int | None = None) -> Float[Tensor, "b s c h w"]:
        """The feature maps, (B, S, C, H / stride, W / stride). Keep them to `track` several sets of queries."""
        (features,) = self.decoder.decode(tokens, lambda maps: (maps,), view_chunk=view_chunk)
        return features

    def track(
        self,
        features: Float[Tensor, "b s c h w"],
        query_points: Tensor,
        *,
        view_mask: Bool[Tensor, "b s"] | None = None,
        query_chunk: int | None = None,
    ) -> TrackPrediction:
        """Track on the maps that `extract` made.

        Args:
            features: (B, S, C, H / stride, W / stride).
            query_points: (B, N, 2), (x, y) in pixels of view 0, or (B, N, 3) as (view, x, y); without the B axis for
                one scene.
            view_mask: (B, S) bool, True = the view takes part.
            query_chunk: Queries at a time, which bounds the memory; None = all. Tracks inform each other through the
                virtual tracks, so this changes them: those of a chunk are exactly what they are without the others.

        Returns:
            Tracks (B, S, N, …) and all iterations, see `Tracker`.

        Raises:
            ValueError: For wrong shapes, and queries outside their view, which on an accelerator are not looked at.
        """
        check_shape("features", features, ("B", "S", self.decoder.out_channels, "H", "W"))
        query_points = batch_queries(query_points, features.shape[0], 2, 3)
        stride = self.tracker.stride
        image_hw = (features.shape[-2] * stride, features.shape[-1] * stride)
        check_queries(query_points, features.shape[1], image_hw, slack_px=stride - 1)
        return self._track(features, query_points, view_mask, query_chunk)

    def _track(
        self, features: Tensor, query_points: Tensor, view_mask: Tensor | None, query_chunk: int | None
    ) -> TrackPrediction:
        def track(queries: Tensor) -> TrackPrediction:
            result = self.tracker(features, queries, view_mask=view_mask)
            visibility, confidence = result.visibility_logits.sigmoid(), result.confidence_logits.sigmoid()
            return TrackPrediction(Tracks(result.coords_px[-1], visibility, confidence), result)

        return map_query_chunks(track, query_points, query_chunk)


def check_track_images(images: Tensor, heads: Iterable[nn.Module]) -> None:
    """Require images that are large enough for heads of tracks, before the encoder's work is done in vain."""
    for head in heads:
        side = head.tracker.min_image_side if isinstance(head, TrackHead) else 0
        if min(images.shape[-2:]) < side:
            got = tuple(images.shape[-2:])
            raise ValueError(f"images must have at least {side} pixels a side for tracks, got {got}")
