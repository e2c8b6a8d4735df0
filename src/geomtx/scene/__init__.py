"""Predictions and the photos they belong to, as one scene in original pixels."""

from geomtx.scene.align import align_scene
from geomtx.scene.content import MatchedPixels
from geomtx.scene.files.cameras import read_cameras
from geomtx.scene.files.export import ExportOptions
from geomtx.scene.filters import PixelFilter
from geomtx.scene.known.cameras import KnownCameras
from geomtx.scene.known.placing import place_cameras, use_intrinsics
from geomtx.scene.observations import ObservedPoints, observe_points
from geomtx.scene.points import PointCloud
from geomtx.scene.pycolmap_bridge import match_points
from geomtx.scene.reconstruction import reconstruct, track
from geomtx.scene.scene import Scene
from geomtx.scene.tracked_points import track_points
from geomtx.scene.windows import WindowPlan

__all__ = [
    "ExportOptions",
    "KnownCameras",
    "MatchedPixels",
    "ObservedPoints",
    "PixelFilter",
    "PointCloud",
    "Scene",
    "WindowPlan",
    "align_scene",
    "match_points",
    "observe_points",
    "place_cameras",
    "read_cameras",
    "reconstruct",
    "track",
    "track_points",
    "use_intrinsics",
]
