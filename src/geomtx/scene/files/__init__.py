"""What a scene is on disk: one writer a file, each importing nothing but what a scene holds."""

from geomtx.scene.files.archive import load_fields, write_archive
from geomtx.scene.files.cameras import read_cameras, write_cameras
from geomtx.scene.files.glb import write_glb
from geomtx.scene.files.ply import write_ply
from geomtx.scene.files.save import SCENE_FILES
from geomtx.scene.files.tracks import write_tracks

__all__ = [
    "SCENE_FILES",
    "load_fields",
    "read_cameras",
    "write_archive",
    "write_cameras",
    "write_glb",
    "write_ply",
    "write_tracks",
]
