"""A head that tracks query points through the views of a scene."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from geomtx.checks import check_shape
from geomtx.heads.dpt import DecoderHead, DPTDecoder
from geomtx.heads.head import EachView, Gather, HeadFootprint, Parts, parts_of
from geomtx.tracking.queries import batch_queries, check_queries
from geomtx.tracking.tracker import Tracker
from geomtx.types import Bool, Float, ProjectedTokens, Tokens, TrackPrediction, Tracks

__all__ = ["TrackHead", "check_track_images", "extract_features"]


class TrackHead(DecoderHead):
    """Track query points on feature maps that a DPT decoder makes of tokens.

    Args:
        decoder: Decoder from tokens to feature maps, with the channels and the stride of the tracker.
        tracker: Tracker of query points on feature maps.

    Raises:
        ValueError: If decoder and tracker differ in their numbers of channels or strides.
    """

    takes_queries = True

    def __init__(self, decoder: DPTDecoder, tracker: Tracker) -> None:
        super().__init__(decoder)
        channels = tracker.map_norm.normalized_shape[0]
        if (decoder.out_channels, decoder.stride) != (channels, tracker.stride):
            raise ValueError(
                f"decoder must have {channels} channels and stride {tracker.stride}, as the tracker, "
                f"got {decoder.out_channels} and {decoder.stride}"
            )
        self.tracker = tracker

    def forward(self, tokens: Tokens | ProjectedTokens, query_points: Float[Tensor, "b n q"]) -> TrackPrediction:
        """Track query points: `extract`, then `track`.

        Args:
            tokens: Tokens of an encoder that kept the decoder's taps; or their projections, see `DPTDecoder`.
            query_points: Query points, (B, N, 2) as (x, y) in pixels of view 0, or (B, N, 3) as (view, x, y).

        Returns:
            Tracks (B, S, N, …) and all iterations, see `Tracker`.

        Raises:
            ValueError: If a shape is another one, or a query lies outside its view, see `track`.
        """
        view_mask = None if tokens.mask is None else tokens.mask[:, :, 0]
        return self.track(self.extract(tokens), query_points, view_mask=view_mask)

    def extract(self, tokens: Tokens | ProjectedTokens) -> Float[Tensor, "b s c h w"]:
        """Return feature maps, (B, S, C, H / stride, W / stride), on which `track` can be called repeatedly.

        Args:
            tokens: Tokens of an encoder that kept the decoder's taps; or their projections, see `DPTDecoder`.
        """
        return self.decoder.decode(tokens)

    def run_in_parts(
        self, tokens: Tokens | ProjectedTokens, parts: Parts, query_points: Tensor | None = None, **options: Any
    ) -> TrackPrediction:
        """Return what `forward` returns."""
        assert query_points is not None, "a head of tracks runs with query points only"
        features = self.extract_in_parts(tokens, parts)
        return self.track(features, query_points, view_mask=parts.valid_views(tokens))

    def extract_in_parts(self, tokens: Tokens | ProjectedTokens, parts: Parts) -> Float[Tensor, "b s c h w"]:
        """Return the feature maps of all views, see `extract`.

        Args:
            tokens: What the head reads, of this process's views.
            parts: How the head reaches all views.
        """
        return parts.gather(parts.each_view(self.extract, tokens))

    def track(
        self,
        features: Float[Tensor, "b s c h w"],
        query_points: Tensor,
        *,
        view_mask: Bool[Tensor, "b s"] | None = None,
    ) -> TrackPrediction:
        """Track query points on the feature maps that `extract` returned.

        Tracks influence each other through the virtual tracks. `geomtx.inference.track_in_chunks` tracks some queries
        at a time, independently of the others.

        Args:
            features: Feature maps of all views, (B, S, C, H / stride, W / stride).
            query_points: Query points, (B, N, 2) as (x, y) in pixels of view 0, or (B, N, 3) as (view, x, y); without
                the B axis for one scene.
            view_mask: Mask of the valid views, (B, S) bool; defaults to all.

        Returns:
            Tracks (B, S, N, …) and all iterations, see `Tracker`.

        Raises:
            ValueError: If a shape is another one, or a query lies outside its view. Values on an accelerator, for
                which the host would have to wait, are not checked.
        """
        check_shape("features", features, ("B", "S", self.decoder.out_channels, "H", "W"))
        query_points = batch_queries(query_points, features.shape[0], 2, 3)
        stride = self.tracker.stride
        image_hw = (features.shape[-2] * stride, features.shape[-1] * stride)
        check_queries(query_points, features.shape[1], image_hw, slack_px=stride - 1)
        result = self.tracker(features, query_points, view_mask=view_mask)
        visibility, confidence = result.visibility_logits.sigmoid(), result.confidence_logits.sigmoid()
        return TrackPrediction(Tracks(result.coords_px[-1], visibility, confidence), result)

    def footprint(self, patch_size: int) -> HeadFootprint:
        """Return the memory that the head takes.

        Args:
            patch_size: Side of a patch in pixels.
        """
        return self.decoder.footprint(patch_size=patch_size)


def extract_features(
    head: TrackHead, tokens: Tokens | ProjectedTokens, each_view: EachView | None = None, gather: Gather | None = None
) -> Tensor:
    """Return the feature maps of all views that a head tracks on, (B, S, C, H, W) on the head's device.

    Args:
        head: The head.
        tokens: Tokens that the head reads.
        each_view: Function that applies a function of single views, see `run_head`.
        gather: Function that brings the views of all processes together, see `run_head`.
    """
    return head.extract_in_parts(tokens, parts_of(head, each_view, gather))


def check_track_images(images: Tensor, heads: Iterable[nn.Module]) -> None:
    """Require images that are large enough for track heads, so that the error comes before the encoder runs.

    Args:
        images: Images, (..., H, W).
        heads: Heads, of which `TrackHead` are checked.

    Raises:
        ValueError: If a side of the images is too small.
    """
    for head in heads:
        side = head.tracker.min_image_side if isinstance(head, TrackHead) else 0
        if min(images.shape[-2:]) < side:
            got = tuple(images.shape[-2:])
            raise ValueError(f"images must have at least {side} pixels a side for tracks, got {got}")
