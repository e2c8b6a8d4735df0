"""What a head reads, and how any head is run, where views are in parts too."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from geomtx.types import ProjectedTokens, Tokens

__all__ = [
    "EachView",
    "Gather",
    "Head",
    "HeadFootprint",
    "Parts",
    "head_dtype",
    "parts_of",
    "run_head",
    "run_view_by_view",
    "runs_in_parts",
]

EachView = Callable[..., Any]
"""Function that applies a function of single views to all views: each_view(function, tokens) → its result."""

Gather = Callable[[Tensor], Tensor]
"""Function that concatenates the views of all processes along axis 1; the identity in one process."""


class HeadFootprint(NamedTuple):
    """Numbers that a head holds for each patch or pixel of an image.

    Attributes:
        projected: Numbers for a patch that wait for the head in a pass in parts, for each layer that it reads, in the
            order in which the layers are reached.
        decoding: Numbers for a pixel at the peak of decoding a view.
        shared: Numbers for a pixel that all views which are decoded together share, in float32.
        results: Numbers for a pixel of the head's predictions, in float32.
    """

    projected: tuple[int, ...]
    decoding: float
    shared: float
    results: float


class Parts(NamedTuple):
    """How a head reaches all views where they are in chunks or in several processes.

    Attributes:
        each_view: Function that applies a function of single views to the tokens of this process's.
        convert: Function that brings tokens to the precision of the head, as `each_view` does.
        gather_views: Function that concatenates the views of all processes along axis 1.
        device: Device of the head's parameters; where memory is short, results of single views wait elsewhere. None for
            a head without parameters.
    """

    each_view: EachView
    convert: Callable[[Any], Any]
    gather_views: Gather
    device: torch.device | None

    def gather(self, of_views: Tensor) -> Tensor:
        """Return results of single views for those of all processes, on the head's device."""
        return self.gather_views(of_views if self.device is None else of_views.to(self.device))

    def valid_views(self, tokens: Tokens | ProjectedTokens) -> Tensor | None:
        """Return which views of all processes are valid, (B, S) bool; None for all."""
        return None if tokens.mask is None else self.gather_views(tokens.mask[:, :, :1]).squeeze(-1)


class Head(nn.Module):
    """Base of heads that say what they read and how they run where views are in parts.

    Any other module can be a head too: it gets whole layers of all views, and runs in one process.
    """

    reads: ClassVar[Literal["layers", "projections", "special"]] = "layers"
    """What is kept of the layers: all tokens; their projections by `decoder`, a `DPTDecoder`, see `DecoderHead`; or
    special tokens of one layer, see `SpecialTokenHead`."""
    reads_all: ClassVar[bool] = False
    """Whether a head that reads "special" tokens reads all of a view, instead of its camera token alone."""
    takes_queries: ClassVar[bool] = False
    """Whether `forward` takes query points after the tokens."""

    def layers_read(self, taps: tuple[int, ...]) -> tuple[int, ...]:
        """Return the layers that the head reads of those that the encoder may keep; all by default.

        Args:
            taps: Indices of the encoder's layers.
        """
        return taps

    def footprint(self, patch_size: int) -> HeadFootprint | None:
        """Return the memory that the head takes; None for next to nothing beside the encoder.

        Args:
            patch_size: Side of a patch in pixels.
        """
        return None

    def run_in_parts(
        self, tokens: Tokens | ProjectedTokens, parts: Parts, query_points: Tensor | None = None, **options: Any
    ) -> Any:
        """Return what `forward` returns for all views, of views in parts.

        A class that has a `forward` of its own has this method too; otherwise it runs on all views at once.

        Args:
            tokens: What the head reads, of this process's views.
            parts: How the head reaches all views.
            query_points: Query points of all scenes, (B, N, 2 or 3), for a head that tracks.
            options: Further arguments of `forward`.
        """
        raise NotImplementedError

    @property
    def runs_in_parts(self) -> bool:
        """Whether `run_in_parts` belongs to the same `forward`, and not to that of a class that this one extends."""
        lineage = type(self).__mro__
        of_forward, of_parts = (
            next(kind for kind in lineage if name in vars(kind)) for name in ("forward", "run_in_parts")
        )
        return of_parts is not Head and issubclass(of_parts, of_forward)


def run_view_by_view(
    head: Head, tokens: Tokens | ProjectedTokens, parts: Parts, query_points: Tensor | None = None, **options: Any
) -> Any:
    """Run a head that predicts for every view by itself; a class takes it as its `run_in_parts`.

    Args:
        head: The head.
        tokens: What the head reads, of this process's views.
        parts: How the head reaches all views.
        query_points: Not used.
        options: Further arguments of `forward`.
    """
    return parts.each_view(lambda part: head(part, **options), tokens)


def run_head(
    head: nn.Module,
    tokens: Tokens | ProjectedTokens,
    query_points: Tensor | None,
    *,
    each_view: EachView | None = None,
    gather: Gather | None = None,
    **options: Any,
) -> Any:
    """Run a head in one call or, where views are in chunks or in several processes, in parts.

    Args:
        head: A `Head`, or any other module, which is called with the tokens.
        tokens: Tokens or projections that the head reads; they are converted to the dtype of the head's parameters.
        query_points: Query points, (B, N, 2 or 3), for a head that takes them.
        each_view: Function that applies a function of single views; defaults to one call with all views.
        gather: Function that concatenates the views of all processes; defaults to the identity.
        options: Further arguments of a head that decodes, such as the names of the maps of a `DepthRayHead`.

    Returns:
        Result of the head.
    """
    if (each_view is None and gather is None) or not runs_in_parts(head):
        tokens = _convert(tokens, head_dtype(head))
        takes = isinstance(head, Head) and head.takes_queries
        return head(tokens, query_points) if takes else head(tokens, **options)
    assert isinstance(head, Head), "which runs in parts"
    return head.run_in_parts(tokens, parts_of(head, each_view, gather), query_points, **options)


def runs_in_parts(head: nn.Module) -> bool:
    """Return whether a head gives the same where views are in chunks or in several processes.

    Args:
        head: A `Head`, or any other module, of which nobody knows.
    """
    return isinstance(head, Head) and head.runs_in_parts


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


def parts_of(head: nn.Module, each_view: EachView | None, gather: Gather | None) -> Parts:
    """Return how a head reaches all views, whose tokens are converted as they are read.

    Args:
        head: The head.
        each_view: Function that applies a function of single views, see `run_head`.
        gather: Function that brings the views of all processes together, see `run_head`.
    """
    convert, apply = partial(_convert, dtype=head_dtype(head)), each_view or _call

    def convert_each(function: Callable[[Any], Any], tokens: Tokens | ProjectedTokens) -> Any:
        return apply(lambda part: function(convert(part)), tokens)

    device = next((parameter.device for parameter in head.parameters()), None)
    return Parts(convert_each, convert, gather or _identity, device)


def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def _identity(x: Tensor) -> Tensor:
    return x


def _convert(tokens: Any, dtype: torch.dtype | None) -> Any:
    if dtype is None or isinstance(tokens, ProjectedTokens):
        return tokens
    layers = {index: layer.to(dtype) for index, layer in tokens.layers.items()}
    return tokens._replace(layers=layers)
