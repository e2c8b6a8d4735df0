"""Photos or a video → `Views`: decoding, orientation, all pixel formats, the invertible transform to original pixels.

Names are loaded on first use: `geomtx.views.listing` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "EXTENSIONS": "listing",
    "FrameChoice": "frames",
    "Mode": "transform",
    "PhotoError": "listing",
    "ViewTransform": "transform",
    "Views": "views",
    "extract_frames": "frames",
    "load_masks": "masks",
    "load_views": "loading",
    "write_video": "video",
}

__all__ = [
    "EXTENSIONS",
    "FrameChoice",
    "Mode",
    "PhotoError",
    "ViewTransform",
    "Views",
    "extract_frames",
    "load_masks",
    "load_views",
    "write_video",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'geomtx.views' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"geomtx.views.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


if TYPE_CHECKING:
    from geomtx.views.frames import FrameChoice, extract_frames
    from geomtx.views.listing import EXTENSIONS, PhotoError
    from geomtx.views.loading import load_views
    from geomtx.views.masks import load_masks
    from geomtx.views.transform import Mode, ViewTransform
    from geomtx.views.video import write_video
    from geomtx.views.views import Views
