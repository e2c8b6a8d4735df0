"""Photos → `Views`: decoding, EXIF orientation, all pixel formats, and the invertible transform to original pixels.

Names are loaded on first use: `geomtx.views.listing` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "EXTENSIONS": "listing",
    "Mode": "transform",
    "PhotoError": "listing",
    "ViewTransform": "transform",
    "Views": "views",
    "load_masks": "masks",
    "load_views": "loading",
}

__all__ = ["EXTENSIONS", "Mode", "PhotoError", "ViewTransform", "Views", "load_masks", "load_views"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'geomtx.views' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"geomtx.views.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


if TYPE_CHECKING:
    from geomtx.views.listing import EXTENSIONS, PhotoError
    from geomtx.views.loading import load_views
    from geomtx.views.masks import load_masks
    from geomtx.views.transform import Mode, ViewTransform
    from geomtx.views.views import Views
