"""Families of models: wiring and numbers, one folder a family."""

from geomtx.models.nvs import NVSConfig, NVSPrediction, VGGTForNVS
from geomtx.models.vggt import VGGT, VGGTConfig
from geomtx.models.video_tracker import VideoTracker, VideoTrackerConfig

__all__ = [
    "VGGT",
    "NVSConfig",
    "NVSPrediction",
    "VGGTConfig",
    "VGGTForNVS",
    "VideoTracker",
    "VideoTrackerConfig",
]
