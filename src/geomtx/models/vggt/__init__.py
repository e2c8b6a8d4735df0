"""VGGT: Visual Geometry Grounded Transformer (Wang et al., CVPR 2025)."""

from geomtx.models.vggt.config import VGGTConfig
from geomtx.models.vggt.model import VGGT

__all__ = ["VGGT", "VGGTConfig"]
