"""Feature maps and query points to tracks."""

from geomtx.tracking.correlation import build_pyramid, correlate
from geomtx.tracking.sampling import sample_map
from geomtx.tracking.tracker import Tracker
from geomtx.tracking.updater import TrackUpdater

__all__ = ["TrackUpdater", "Tracker", "build_pyramid", "correlate", "sample_map"]
