"""Heads: tokens → predictions."""

from geomtx.heads.camera import CameraHead, CameraTokenHead
from geomtx.heads.camera_mlp import CameraMLP
from geomtx.heads.camera_one_pass import OnePassCameraHead
from geomtx.heads.dense import (
    DenseHead,
    DescriptorHead,
    LinearMapHead,
    MapHead,
    PixelShuffleHead,
    RGBHead,
)
from geomtx.heads.depth_rays import DepthRayHead
from geomtx.heads.depth_sky import DepthSkyHead
from geomtx.heads.dpt import DPTDecoder
from geomtx.heads.head import Head, run_view_by_view
from geomtx.heads.metric_scale import MetricScaleHead
from geomtx.heads.point_map import PointMapHead, PooledCamera, TokenMap
from geomtx.heads.special_tokens import SpecialTokenHead, TrunkHead
from geomtx.heads.text_alignment import TextAlignmentHead
from geomtx.heads.token_decoder import PixelShuffle, TokenDecoder
from geomtx.heads.track import TrackHead
from geomtx.heads.upsampler import Upsampler

__all__ = [
    "CameraHead",
    "CameraMLP",
    "CameraTokenHead",
    "DPTDecoder",
    "DenseHead",
    "DepthRayHead",
    "DepthSkyHead",
    "DescriptorHead",
    "Head",
    "LinearMapHead",
    "MapHead",
    "MetricScaleHead",
    "OnePassCameraHead",
    "PixelShuffle",
    "PixelShuffleHead",
    "PointMapHead",
    "PooledCamera",
    "RGBHead",
    "SpecialTokenHead",
    "TextAlignmentHead",
    "TokenDecoder",
    "TokenMap",
    "TrackHead",
    "TrunkHead",
    "Upsampler",
    "run_view_by_view",
]
