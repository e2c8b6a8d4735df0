"""Point tracking and matching: feature maps and query points → tracks, maps of descriptors → matches."""

from geomtx.tracking.correlation import build_pyramid, correlate, sample_map, sample_views
from geomtx.tracking.image_features import ImageFeatures
from geomtx.tracking.matching import (
    DescriptorMaps,
    Matches,
    find_reciprocal,
    join_passes,
    match_descriptors,
    match_pass,
)
from geomtx.tracking.queries import local_queries, support_queries
from geomtx.tracking.tracker import Tracker
from geomtx.tracking.updater import TrackUpdater
from geomtx.tracking.video import WindowTracker

__all__ = [
    "DescriptorMaps",
    "ImageFeatures",
    "Matches",
    "TrackUpdater",
    "Tracker",
    "WindowTracker",
    "build_pyramid",
    "correlate",
    "find_reciprocal",
    "join_passes",
    "local_queries",
    "match_descriptors",
    "match_pass",
    "sample_map",
    "sample_views",
    "support_queries",
]
