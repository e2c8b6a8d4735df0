"""Heads: tokens → predictions."""

from geomtx.heads.camera import CameraHead, CameraTokenHead
from geomtx.heads.camera_mlp import CameraMLP
from geomtx.heads.dense import DenseHead, RGBHead
from geomtx.heads.depth_rays import DepthRayHead
from geomtx.heads.depth_sky import DepthSkyHead
from geomtx.heads.dpt import DPTDecoder
from geomtx.heads.track import TrackHead

__all__ = [
    "CameraHead",
    "CameraMLP",
    "CameraTokenHead",
    "DPTDecoder",
    "DenseHead",
    "DepthRayHead",
    "DepthSkyHead",
    "RGBHead",
    "TrackHead",
]
