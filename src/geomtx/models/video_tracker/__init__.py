"""Point tracking in video on feature maps, for instance VGGT's."""

from geomtx.models.video_tracker.config import VideoTrackerConfig
from geomtx.models.video_tracker.model import VGGTFeatures, VideoTracker

__all__ = ["VGGTFeatures", "VideoTracker", "VideoTrackerConfig"]
