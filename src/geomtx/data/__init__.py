"""Scenes to train on: rendered ones and datasets."""

from geomtx.data.augmentation import ColorAugmentation
from geomtx.data.co3d import CO3D_SEEN, Co3dDataset, convert_pytorch3d
from geomtx.data.collate import collate_scenes, repeat_batch
from geomtx.data.depth import clean_depth, read_depth, read_half_png, read_integer_png
from geomtx.data.error import SceneError
from geomtx.data.frame_choice import FrameChoice, rank_by_pose
from geomtx.data.frame_geometry import (
    Frame,
    FrameTransform,
    crop_exactly,
    crop_to_principal_point,
    resize_frame,
    rotate_frame,
)
from geomtx.data.mixture import SceneMixture, SceneSource
from geomtx.data.motion import MotionStyle
from geomtx.data.photos import save_photos, truth_in_views
from geomtx.data.sampler import SceneRequest, ViewCountSampler
from geomtx.data.scene_check import BatchCheck, check_batch, check_cameras, check_values
from geomtx.data.scene_dataset import SampleOptions, SceneDataset, SceneRecord, assemble_scene
from geomtx.data.seeds import held_out_seed, is_held_out, training_seed
from geomtx.data.synthetic import RoomStyle, render_scenes
from geomtx.data.track_labels import build_track_labels, choose_tracks
from geomtx.data.unified import UnifiedDataset
from geomtx.data.video_augmentation import VideoAugmentation
from geomtx.data.videos import render_videos
from geomtx.data.virtual_kitti import VirtualKittiDataset

__all__ = [
    "CO3D_SEEN",
    "BatchCheck",
    "Co3dDataset",
    "ColorAugmentation",
    "Frame",
    "FrameChoice",
    "FrameTransform",
    "MotionStyle",
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
    "training_seed",
    "truth_in_views",
]
