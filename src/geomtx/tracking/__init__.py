"""Point tracking: feature maps and query points → tracks."""

from geomtx.tracking.correlation import build_pyramid, correlate, sample_map, sample_views
from geomtx.tracking.image_features import ImageFeatures
from geomtx.tracking.queries import local_queries, support_queries
from geomtx.tracking.tracker import Tracker
from geomtx.tracking.updater import TrackUpdater
from geomtx.tracking.video import WindowTracker

__all__ = [
    "ImageFeatures",
    "TrackUpdater",
    "Tracker",
    "WindowTracker",
    "build_pyramid",
    "correlate",
    "local_queries",
    "sample_map",
    "sample_views",
    "support_queries",
]
