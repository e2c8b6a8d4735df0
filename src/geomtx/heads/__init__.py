"""Heads: tokens → predictions."""

from geomtx.heads.camera import CameraHead, CameraTokenHead
from geomtx.heads.camera_mlp import CameraMLP
from geomtx.heads.camera_one_pass import OnePassCameraHead
from geomtx.heads.dense import DenseHead, MapHead, PixelShuffleHead, RGBHead
from geomtx.heads.depth_rays import DepthRayHead
from geomtx.heads.depth_sky import DepthSkyHead
from geomtx.heads.dpt import DPTDecoder
from geomtx.heads.special_tokens import SpecialTokenHead
from geomtx.heads.text_alignment import TextAlignmentHead
from geomtx.heads.track import TrackHead

__all__ = [
    "CameraHead",
    "CameraMLP",
    "CameraTokenHead",
    "DPTDecoder",
    "DenseHead",
    "DepthRayHead",
    "DepthSkyHead",
    "MapHead",
    "OnePassCameraHead",
    "PixelShuffleHead",
    "RGBHead",
    "SpecialTokenHead",
    "TextAlignmentHead",
    "TrackHead",
]
