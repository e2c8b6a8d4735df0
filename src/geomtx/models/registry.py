"""Published weights that we know, and their licences. geomtx's own licence covers its code, not these weights."""

from __future__ import annotations

import functools
import logging

__all__ = ["LICENCES", "state_licence"]

logger = logging.getLogger("geomtx")

LICENCES = {
    "facebook/VGGT-1B": "CC BY-NC 4.0: no commercial use",
    "facebook/VGGT-1B-Commercial": "the VGGT licence: commercial use but for military purposes; access on request",
}


@functools.cache
def state_licence(source: str) -> None:
    """Log, once a process, the licence of known weights."""
    if source in LICENCES:
        logger.warning("The weights %s have a licence of their own, %s.", source, LICENCES[source])
