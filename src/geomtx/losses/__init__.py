"""Losses: pure functions that masks select for, and one composer."""

from geomtx.losses.aleatoric import AleatoricLoss, aleatoric_loss, quantile_filter
from geomtx.losses.camera import CameraLoss, camera_loss, depth_to_camera_mask
from geomtx.losses.gradient import gradient_loss, normal_loss
from geomtx.losses.multitask import LossReport, MultitaskLoss
from geomtx.losses.term import CameraTerm, DenseTerm, Term, TermLoss, TrackTerm
from geomtx.losses.track import TrackLoss, track_loss

__all__ = [
    "AleatoricLoss",
    "CameraLoss",
    "CameraTerm",
    "DenseTerm",
    "LossReport",
    "MultitaskLoss",
    "Term",
    "TermLoss",
    "TrackLoss",
    "TrackTerm",
    "aleatoric_loss",
    "camera_loss",
    "depth_to_camera_mask",
    "gradient_loss",
    "normal_loss",
    "quantile_filter",
    "track_loss",
]
