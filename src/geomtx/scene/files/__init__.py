"""What a scene is on disk: one writer a file, each importing nothing but what a scene holds."""

from geomtx.scene.files.archive import load_fields, write_archive
from geomtx.scene.files.cameras import read_cameras, write_cameras
from geomtx.scene.files.colmap import ColmapLayout, write_colmap_model
from geomtx.scene.files.colmap_model import find_colmap_model, read_colmap_model
from geomtx.scene.files.glb import write_glb
from geomtx.scene.files.ply import write_ply
from geomtx.scene.files.save import FORMATS, SCENE_FILES
from geomtx.scene.files.sparse_model import SparseModel, build_sparse_model
from geomtx.scene.files.tracks import write_track_arrays, write_tracks

__all__ = [
    "FORMATS",
    "SCENE_FILES",
    "ColmapLayout",
    "SparseModel",
    "build_sparse_model",
    "find_colmap_model",
    "load_fields",
    "read_cameras",
    "read_colmap_model",
    "write_archive",
    "write_cameras",
    "write_colmap_model",
    "write_glb",
    "write_ply",
    "write_track_arrays",
    "write_tracks",
]
