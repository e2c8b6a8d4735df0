"""Encoders: images → tokens."""

from geomtx.encoder.alternating import AlternatingEncoder, Scope
from geomtx.encoder.camera_encoder import CameraEncoder
from geomtx.encoder.class_token import CameraTokens, ClassTokenEncoder
from geomtx.encoder.conditioning import CameraConditioning
from geomtx.encoder.frame_rotary import FrameRotaryEncoder
from geomtx.encoder.geometry_conditioning import (
    GeometryConditioning,
    GeometryHints,
    KnownGeometry,
    prepare_geometry,
)
from geomtx.encoder.pair_decoder import CompletionDecoder, PairDecoder
from geomtx.encoder.patch_transformer import PatchPositions, PatchTransformer
from geomtx.encoder.patches import Backbone, ImageNormalization, PatchEmbedding, normalize_images
from geomtx.encoder.pose_injection import PoseBlock, PoseTable
from geomtx.encoder.reference_view import ReferenceRule, choose_reference
from geomtx.encoder.special import RegisterTokens, SpecialTokens
from geomtx.encoder.vit import VisionTransformer, ViTFeatures, ViTStem

__all__ = [
    "AlternatingEncoder",
    "Backbone",
    "CameraConditioning",
    "CameraEncoder",
    "CameraTokens",
    "ClassTokenEncoder",
    "CompletionDecoder",
    "FrameRotaryEncoder",
    "GeometryConditioning",
    "GeometryHints",
    "ImageNormalization",
    "KnownGeometry",
    "PairDecoder",
    "PatchEmbedding",
    "PatchPositions",
    "PatchTransformer",
    "PoseBlock",
    "PoseTable",
    "ReferenceRule",
    "RegisterTokens",
    "Scope",
    "SpecialTokens",
    "ViTFeatures",
    "ViTStem",
    "VisionTransformer",
    "choose_reference",
    "normalize_images",
    "prepare_geometry",
]
