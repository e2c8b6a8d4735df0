"""Running any head on the tokens of an encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from geomtx.heads.dense import MapHead, RGBHead
from geomtx.heads.depth_rays import DepthRayHead
from geomtx.heads.depth_sky import DepthSkyHead
from geomtx.heads.metric_scale import MetricScaleHead
from geomtx.heads.point_map import PointMapHead
from geomtx.heads.special_tokens import SpecialTokenHead
from geomtx.heads.track import TrackHead
from geomtx.types import Cameras, ProjectedTokens, Tokens

__all__ = [
    "DECODING_HEADS",
    "HEADS_OF_WHOLE_LAYERS",
    "EachView",
    "Gather",
    "extract_features",
    "has_steps",
    "head_dtype",
    "run_head",
]

DECODING_HEADS = (MapHead, RGBHead, DepthRayHead, DepthSkyHead)
"""Heads that read the projections of their `decoder`, each view by itself."""
HEADS_OF_WHOLE_LAYERS = (PointMapHead, MetricScaleHead)
"""Heads that read all tokens of a layer, each view by itself."""
_HEADS_WITH_STEPS = (*DECODING_HEADS, *HEADS_OF_WHOLE_LAYERS, SpecialTokenHead, TrackHead)

EachView = Callable[..., Any]
"""Function that applies a function of single views to all views: each_view(function, tokens) → its result."""

Gather = Callable[[Tensor], Tensor]
"""Function that concatenates the views of all processes along axis 1; the identity in one process."""


def run_head(
    head: nn.Module,
    tokens: Tokens | ProjectedTokens,
    query_points: Tensor | None,
    *,
    each_view: EachView | None = None,
    gather: Gather | None = None,
    **options: Any,
) -> Any:
    """Run a head in one call or, where views are in chunks or in several processes, step by step.

    Steps that work on each view by itself are called through `each_view`; tensors that have to hold all views go
    through `gather`.

    Args:
        head: Head of geomtx, or any other module, which is called with the tokens.
        tokens: Tokens or projections that the head reads; they are converted to the dtype of the head's parameters.
        query_points: Query points, (B, N, 2 or 3), for a `TrackHead`.
        each_view: Function that applies a function of single views; defaults to one call with all views.
        gather: Function that concatenates the views of all processes; defaults to the identity.
        options: Further arguments of a head that decodes, such as the names of the maps of a `DepthRayHead`.

    Returns:
        Result of the head.
    """
    dtype = head_dtype(head)
    if (each_view is None and gather is None) or not has_steps(head):
        tokens = _convert(tokens, dtype)
        return head(tokens, query_points) if isinstance(head, TrackHead) else head(tokens, **options)
    if isinstance(head, SpecialTokenHead):
        if gather is None:
            return head(_convert(tokens, dtype))
        assert isinstance(tokens, Tokens), "special tokens are no projections"
        selected = head.select(_convert(tokens, dtype))
        return head.predict(gather(selected), tokens.image_hw, _valid_views(tokens, gather))
    each_view, gather = each_view or _call, gather or _identity
    if isinstance(head, (*DECODING_HEADS, PointMapHead)):
        found = each_view(lambda part: head(_convert(part, dtype), **options), tokens)
        if isinstance(head, PointMapHead) and "cameras" in found:
            found["cameras"] = Cameras(*_of_all_views(found["cameras"], head, gather))
        return found
    if isinstance(head, MetricScaleHead):

        def read(function: Callable[[Tokens], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
            of_views = each_view(lambda part: function(_convert(part, dtype)), tokens)
            values, weights = _of_all_views(of_views, head, gather)
            return values, weights

        return head.predict(read)
    if isinstance(head, TrackHead):
        assert query_points is not None, "a head of tracks runs with query points only"
        features = extract_features(head, tokens, each_view, gather)
        return head.track(features, query_points, view_mask=_valid_views(tokens, gather))
    raise AssertionError("only these heads have steps")


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
    dtype = head_dtype(head)
    features = (each_view or _call)(lambda part: head.extract(_convert(part, dtype)), tokens)
    # Where memory is short, results of single views wait in the host's.
    return (gather or _identity)(features).to(next(head.parameters()).device)


def has_steps(head: nn.Module) -> bool:
    """Return whether a head is one of geomtx's whose `forward` is its own, so that its steps give the same result."""
    return any(isinstance(head, kind) and type(head).forward is kind.forward for kind in _HEADS_WITH_STEPS)


def _of_all_views(values: Iterable[Tensor], head: nn.Module, gather: Gather) -> list[Tensor]:
    """Return small results of single views for those of all processes, on the head's device."""
    device = next(head.parameters()).device
    return [gather(value.to(device)) for value in values]


def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def _identity(x: Tensor) -> Tensor:
    return x


def head_dtype(head: nn.Module) -> torch.dtype | None:
    """Return the dtype that tokens are converted to for a head: that of its first parameter, or None for no conversion.

    Under autocast, layers convert their inputs themselves.

    Args:
        head: Head of geomtx, or any other module.
    """
    first = next((parameter for parameter in head.parameters() if parameter.is_floating_point()), None)
    if first is None:
        return None
    device = first.device.type
    return None if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device) else first.dtype


def _convert(tokens: Any, dtype: torch.dtype | None) -> Any:
    if dtype is None or isinstance(tokens, ProjectedTokens):
        return tokens
    layers = {index: layer.to(dtype) for index, layer in tokens.layers.items()}
    return tokens._replace(layers=layers)


def _valid_views(tokens: Tokens | ProjectedTokens, gather: Gather) -> Tensor | None:
    """Return which views of all processes are valid, (B, S) bool; None for all."""
    return None if tokens.mask is None else gather(tokens.mask[:, :, :1]).squeeze(-1)
