"""Scenes as files and pictures."""

from geomtx.export.archive import load_scene, write_archive
from geomtx.export.cameras import write_cameras
from geomtx.export.comparison import draw_comparison
from geomtx.export.files import SCENE_FILES, save_scene
from geomtx.export.pointcloud import write_ply
from geomtx.export.render import Viewpoint, overview, render_points
from geomtx.export.report import draw_report
from geomtx.export.tracks import write_tracks

__all__ = [
    "SCENE_FILES",
    "Viewpoint",
    "draw_comparison",
    "draw_report",
    "load_scene",
    "overview",
    "render_points",
    "save_scene",
    "write_archive",
    "write_cameras",
    "write_ply",
    "write_tracks",
]
