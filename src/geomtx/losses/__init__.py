"""Losses: pure functions with masks, terms that configure them, and `MultitaskLoss`, which adds them up."""

from geomtx.losses.aleatoric import AleatoricLoss, ConfidenceWeighting, Outliers, aleatoric_loss, quantile_filter
from geomtx.losses.bearing import bearing_loss
from geomtx.losses.camera import CameraLoss, camera_loss, depth_to_camera_mask
from geomtx.losses.completion import completion_loss
from geomtx.losses.consistency.depth import DepthConsistencySettings, depth_consistency_loss
from geomtx.losses.consistency.epipolar import EpipolarSettings, epipolar_loss
from geomtx.losses.consistency.photometric import (
    PhotometricSettings,
    photometric_loss,
    smoothness_loss,
    structural_similarity,
)
from geomtx.losses.consistency.track_points import track_point_loss
from geomtx.losses.consistency.warp import ViewPairs, choose_cameras, draw_pairs
from geomtx.losses.gradient import gradient_loss, normal_loss
from geomtx.losses.matching import MatchingSettings, matching_loss, matching_precision
from geomtx.losses.multitask import LossReport, MultitaskLoss
from geomtx.losses.pair_points import PairErrors, PairPointSettings, pair_confidence_loss, pair_point_errors
from geomtx.losses.penalty import Penalty
from geomtx.losses.perceptual import PERCEPTUAL_TAPS, PerceptualLoss, VGGFeatures
from geomtx.losses.rendering import RenderingLoss, gaussian_similarity
from geomtx.losses.terms import CameraTerm, ConsistencyTerm, DenseTerm, HeadTerm, Term, TermLoss, TrackTerm
from geomtx.losses.track import (
    ConfidentWindowSettings,
    TrackLoss,
    TrackWeights,
    WindowLoss,
    confident_window_loss,
    track_loss,
    window_loss,
)

__all__ = [
    "PERCEPTUAL_TAPS",
    "AleatoricLoss",
    "CameraLoss",
    "CameraTerm",
    "ConfidenceWeighting",
    "ConfidentWindowSettings",
    "ConsistencyTerm",
    "DenseTerm",
    "DepthConsistencySettings",
    "EpipolarSettings",
    "HeadTerm",
    "LossReport",
    "MatchingSettings",
    "MultitaskLoss",
    "Outliers",
    "PairErrors",
    "PairPointSettings",
    "Penalty",
    "PerceptualLoss",
    "PhotometricSettings",
    "RenderingLoss",
    "Term",
    "TermLoss",
    "TrackLoss",
    "TrackTerm",
    "TrackWeights",
    "VGGFeatures",
    "ViewPairs",
    "WindowLoss",
    "aleatoric_loss",
    "bearing_loss",
    "camera_loss",
    "choose_cameras",
    "completion_loss",
    "confident_window_loss",
    "depth_consistency_loss",
    "depth_to_camera_mask",
    "draw_pairs",
    "epipolar_loss",
    "gaussian_similarity",
    "gradient_loss",
    "matching_loss",
    "matching_precision",
    "normal_loss",
    "pair_confidence_loss",
    "pair_point_errors",
    "photometric_loss",
    "quantile_filter",
    "smoothness_loss",
    "structural_similarity",
    "track_loss",
    "track_point_loss",
    "window_loss",
]
