"""Depth Anything 3: cameras, depth and rays of a scene in one pass, or depth of single photos."""

from geomtx.models.da3.config import DepthAnything3Config
from geomtx.models.da3.metric import MetricScene, depth_in_metres, fill_sky, scale_to_metres
from geomtx.models.da3.model import DepthAnything3
from geomtx.models.da3.nested import NestedDepthAnything3, NestedDepthAnything3Config

__all__ = [
    "DepthAnything3",
    "DepthAnything3Config",
    "MetricScene",
    "NestedDepthAnything3",
    "NestedDepthAnything3Config",
    "depth_in_metres",
    "fill_sky",
    "scale_to_metres",
]
