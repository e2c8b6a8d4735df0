"""Training data: datasets of files and rendered scenes."""

from geomtx.data.augmentation import ColorAugmentation, VideoAugmentation
from geomtx.data.collate import collate_scenes, repeat_batch
from geomtx.data.datasets.co3d import CO3D_SEEN, Co3dDataset, convert_pytorch3d
from geomtx.data.datasets.colmap import ColmapDataset
from geomtx.data.datasets.unified import UnifiedDataset
from geomtx.data.datasets.virtual_kitti import VirtualKittiDataset
from geomtx.data.depth import clean_depth, read_depth, read_half_png, read_integer_png
from geomtx.data.frame_geometry import (
    Frame,
    FrameTransform,
    crop_exactly,
    crop_to_principal_point,
    resize_frame,
    rotate_frame,
)
from geomtx.data.matches import PixelMatches, match_pixels
from geomtx.data.sampling import FrameChoice, SceneMixture, SceneRequest, SceneSource, ViewCountSampler, rank_by_pose
from geomtx.data.scene_check import BatchCheck, SceneError, check_batch, check_cameras, check_values
from geomtx.data.scene_dataset import SampleOptions, SceneDataset, SceneRecord, assemble_scene
from geomtx.data.synthetic.flow import VideoFlow, trace_flow
from geomtx.data.synthetic.motion import MotionStyle
from geomtx.data.synthetic.photos import save_photos, truth_in_views
from geomtx.data.synthetic.render import (
    VideoStyle,
    held_out_seed,
    is_held_out,
    render_scenes,
    render_videos,
    training_seed,
)
from geomtx.data.synthetic.rooms import RoomStyle
from geomtx.data.tracks import build_track_labels, choose_tracks

__all__ = [
    "CO3D_SEEN",
    "BatchCheck",
    "Co3dDataset",
    "ColmapDataset",
    "ColorAugmentation",
    "Frame",
    "FrameChoice",
    "FrameTransform",
    "MotionStyle",
    "PixelMatches",
    "RoomStyle",
    "SampleOptions",
    "SceneDataset",
    "SceneError",
    "SceneMixture",
    "SceneRecord",
    "SceneRequest",
    "SceneSource",
    "UnifiedDataset",
    "VideoAugmentation",
    "VideoFlow",
    "VideoStyle",
    "ViewCountSampler",
    "VirtualKittiDataset",
    "assemble_scene",
    "build_track_labels",
    "check_batch",
    "check_cameras",
    "check_values",
    "choose_tracks",
    "clean_depth",
    "collate_scenes",
    "convert_pytorch3d",
    "crop_exactly",
    "crop_to_principal_point",
    "held_out_seed",
    "is_held_out",
    "match_pixels",
    "rank_by_pose",
    "read_depth",
    "read_half_png",
    "read_integer_png",
    "render_scenes",
    "render_videos",
    "repeat_batch",
    "resize_frame",
    "rotate_frame",
    "save_photos",
    "trace_flow",
    "training_seed",
    "truth_in_views",
]
