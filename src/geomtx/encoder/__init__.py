"""Encoders: images → tokens."""

from geomtx.encoder.alternating import AlternatingEncoder, Scope
from geomtx.encoder.conditioning import CameraConditioning
from geomtx.encoder.patches import Backbone, PatchEmbedding, normalize_images
from geomtx.encoder.special import SpecialTokens
from geomtx.encoder.vit import VisionTransformer, ViTFeatures

__all__ = [
    "AlternatingEncoder",
    "Backbone",
    "CameraConditioning",
    "PatchEmbedding",
    "Scope",
    "SpecialTokens",
    "ViTFeatures",
    "VisionTransformer",
    "normalize_images",
]
