"""Predictions and the photos they belong to, as one scene in original pixels."""

from geomtx.scene.alignment import align_scene
from geomtx.scene.pointcloud import PointCloud
from geomtx.scene.reconstruction import reconstruct
from geomtx.scene.scene import Scene

__all__ = ["PointCloud", "Scene", "align_scene", "reconstruct"]
