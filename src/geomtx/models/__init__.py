"""Families of models: wiring and numbers, one folder a family."""

from geomtx.models.da3 import DepthAnything3, DepthAnything3Config, NestedDepthAnything3, NestedDepthAnything3Config
from geomtx.models.dust3r import CroCo, CroCoConfig, DUSt3R, DUSt3RConfig, MASt3R, MASt3RConfig
from geomtx.models.nvs import NVSConfig, NVSPrediction, VGGTForNVS
from geomtx.models.omega import VGGTOmega, VGGTOmegaConfig
from geomtx.models.pi3 import Pi3, Pi3Config
from geomtx.models.vggt import VGGT, VGGTConfig
from geomtx.models.video_tracker import VideoTracker, VideoTrackerConfig

__all__ = [
    "VGGT",
    "CroCo",
    "CroCoConfig",
    "DUSt3R",
    "DUSt3RConfig",
    "DepthAnything3",
    "DepthAnything3Config",
    "MASt3R",
    "MASt3RConfig",
    "NVSConfig",
    "NVSPrediction",
    "NestedDepthAnything3",
    "NestedDepthAnything3Config",
    "Pi3",
    "Pi3Config",
    "VGGTConfig",
    "VGGTForNVS",
    "VGGTOmega",
    "VGGTOmegaConfig",
    "VideoTracker",
    "VideoTrackerConfig",
]
