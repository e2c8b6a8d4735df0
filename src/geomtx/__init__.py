"""Feed-forward 3D geometry in PyTorch: independent blocks, and presets that match published weights.

Names are loaded on first use (PEP 562), so that `import geomtx` costs nothing beyond `import torch`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

# Public name -> module that defines it. `tests/test_public_api.py` holds the inventory.
_HOMES = {
    "load_model": "models.registry",
    "list_models": "models.registry",
    "VGGT": "models.vggt",
    "VGGTConfig": "models.vggt",
    "VGGTForNVS": "models.nvs",
    "NVSConfig": "models.nvs",
    "FeatureExtractor": "models.features",
    "VideoTracker": "models.video_tracker",
    "VideoTrackerConfig": "models.video_tracker",
    "quantize_model": "inference.quantize",
    "AlternatingEncoder": "encoder.alternating",
    "VisionTransformer": "encoder.vit",
    "CameraHead": "heads.camera",
    "DPTDecoder": "heads.dpt",
    "DenseHead": "heads.dense",
    "TrackHead": "heads.track",
    "Tracker": "tracking.tracker",
    "Attention": "layers.attention",
    "TransformerBlock": "layers.block",
    "add_lora": "layers.lora",
    "merge_lora": "layers.lora",
    "remove_lora": "layers.lora",
    "save_lora": "checkpoint.lora_file",
    "load_lora": "checkpoint.lora_file",
    "encode_pose": "geometry.pose_encoding",
    "decode_pose": "geometry.pose_encoding",
    "unproject": "geometry.projection",
    "plucker_rays": "geometry.rays",
    "predict_parallel": "inference.parallel",
    "project": "geometry.projection",
    "invert_rigid": "geometry.camera",
    "fit_similarity": "geometry.similarity",
    "parameter_groups": "training.optim",
    "normalize_scene": "geometry.scene_frame",
    "camera_loss": "losses.camera",
    "aleatoric_loss": "losses.aleatoric",
    "gradient_loss": "losses.gradient",
    "normal_loss": "losses.gradient",
    "MultitaskLoss": "losses.multitask",
    "track_loss": "losses.track",
    "freeze": "training.optim",
    "unfreeze": "training.optim",
    "load_views": "views",
    "Views": "views",
    "reconstruct": "scene",
    "Scene": "scene",
    "Cameras": "types",
    "DenseMap": "types",
    "Predictions": "types",
    "SceneBatch": "types",
    "Tokens": "types",
    "TrackLabels": "types",
    "Tracks": "types",
    "VideoTracks": "types",
}

# The rest of each is one step further: `geomtx.losses.RenderingLoss`.
_PACKAGES = ("data", "encoder", "geometry", "heads", "inference", "layers", "losses", "metrics", "models", "tracking")

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"geomtx.{name}")
    if name not in _HOMES:
        # With an object of its own, Python adds no second suggestion in a traceback.
        raise AttributeError(f"module 'geomtx' has no attribute {name!r}{_suggest(name)}", name=name, obj=None)
    value = getattr(importlib.import_module(f"geomtx.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def _suggest(name: str) -> str:
    from geomtx.checks import close_matches

    # Python itself looks for names such as __path__.
    return "" if name.startswith("_") else close_matches(name, (*_HOMES, *_PACKAGES))


def __dir__() -> list[str]:
    return __all__


if TYPE_CHECKING:
    from geomtx.checkpoint.lora_file import load_lora as load_lora
    from geomtx.checkpoint.lora_file import save_lora as save_lora
    from geomtx.encoder.alternating import AlternatingEncoder as AlternatingEncoder
    from geomtx.encoder.vit import VisionTransformer as VisionTransformer
    from geomtx.geometry.camera import invert_rigid as invert_rigid
    from geomtx.geometry.pose_encoding import decode_pose as decode_pose
    from geomtx.geometry.pose_encoding import encode_pose as encode_pose
    from geomtx.geometry.projection import project as project
    from geomtx.geometry.projection import unproject as unproject
    from geomtx.geometry.rays import plucker_rays as plucker_rays
    from geomtx.geometry.scene_frame import normalize_scene as normalize_scene
    from geomtx.geometry.similarity import fit_similarity as fit_similarity
    from geomtx.heads.camera import CameraHead as CameraHead
    from geomtx.heads.dense import DenseHead as DenseHead
    from geomtx.heads.dpt import DPTDecoder as DPTDecoder
    from geomtx.heads.track import TrackHead as TrackHead
    from geomtx.inference.parallel import predict_parallel as predict_parallel
    from geomtx.inference.quantize import quantize_model as quantize_model
    from geomtx.layers.attention import Attention as Attention
    from geomtx.layers.block import TransformerBlock as TransformerBlock
    from geomtx.layers.lora import add_lora as add_lora
    from geomtx.layers.lora import merge_lora as merge_lora
    from geomtx.layers.lora import remove_lora as remove_lora
    from geomtx.losses.aleatoric import aleatoric_loss as aleatoric_loss
    from geomtx.losses.camera import camera_loss as camera_loss
    from geomtx.losses.gradient import gradient_loss as gradient_loss
    from geomtx.losses.gradient import normal_loss as normal_loss
    from geomtx.losses.multitask import MultitaskLoss as MultitaskLoss
    from geomtx.losses.track import track_loss as track_loss
    from geomtx.models.features import FeatureExtractor as FeatureExtractor
    from geomtx.models.nvs import NVSConfig as NVSConfig
    from geomtx.models.nvs import VGGTForNVS as VGGTForNVS
    from geomtx.models.registry import list_models as list_models
    from geomtx.models.registry import load_model as load_model
    from geomtx.models.vggt import VGGT as VGGT
    from geomtx.models.vggt import VGGTConfig as VGGTConfig
    from geomtx.models.video_tracker import VideoTracker as VideoTracker
    from geomtx.models.video_tracker import VideoTrackerConfig as VideoTrackerConfig
    from geomtx.scene import Scene as Scene
    from geomtx.scene import reconstruct as reconstruct
    from geomtx.tracking.tracker import Tracker as Tracker
    from geomtx.training.optim import freeze as freeze
    from geomtx.training.optim import parameter_groups as parameter_groups
    from geomtx.training.optim import unfreeze as unfreeze
    from geomtx.types import Cameras as Cameras
    from geomtx.types import DenseMap as DenseMap
    from geomtx.types import Predictions as Predictions
    from geomtx.types import SceneBatch as SceneBatch
    from geomtx.types import Tokens as Tokens
    from geomtx.types import TrackLabels as TrackLabels
    from geomtx.types import Tracks as Tracks
    from geomtx.types import VideoTracks as VideoTracks
    from geomtx.views import Views as Views
    from geomtx.views import load_views as load_views
