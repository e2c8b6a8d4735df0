"""How much memory a dense head takes, in numbers a patch and a pixel; `geomtx.inference.plan` adds them up."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["HeadFootprint"]


class HeadFootprint(NamedTuple):
    """Numbers that a head holds for each patch or pixel of an image.

    A head whose memory counts has a method `footprint()` that returns one.

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
