"""Weights by name: those that come with geomtx, under its own licence, and published ones, under theirs."""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path

__all__ = ["EMBEDDED", "LICENCES", "find_weights", "state_licence"]

logger = logging.getLogger("geomtx")

LICENCES = {
    "nano": "Apache-2.0, as geomtx",
    "facebook/VGGT-1B": "CC BY-NC 4.0: no commercial use",
    "facebook/VGGT-1B-Commercial": "the VGGT licence: commercial use but for military purposes; access on request",
}

EMBEDDED = ("nano",)
"""Weights within the package, stored in half precision to be small, made for float32."""


def find_weights(source: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The folder of embedded weights; any other source as it is. A folder of your own named so is "./nano"."""
    return Path(__file__).parents[1] / "weights" / source if source in EMBEDDED else source


@functools.cache
def state_licence(source: str) -> None:
    """Log, once a process, the licence of known weights."""
    if source in LICENCES:
        logger.warning("The weights %s have a licence of their own, %s.", source, LICENCES[source])
