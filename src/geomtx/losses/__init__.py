"""Losses: pure functions that masks select for, and one composer."""

from geomtx.losses.camera import CameraLoss, camera_loss, depth_to_camera_mask
from geomtx.losses.track import TrackLoss, track_loss

__all__ = [
    "CameraLoss",
    "TrackLoss",
    "camera_loss",
    "depth_to_camera_mask",
    "track_loss",
]
