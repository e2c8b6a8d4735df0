"""Heads: tokens → predictions."""

from geomtx.heads.camera import CameraHead
from geomtx.heads.dense import DenseHead, RGBHead
from geomtx.heads.dpt import DPTDecoder
from geomtx.heads.track import TrackHead

__all__ = ["CameraHead", "DPTDecoder", "DenseHead", "RGBHead", "TrackHead"]
