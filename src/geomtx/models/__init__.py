"""Assemblies of the blocks: wiring and numbers."""

from geomtx.models.nvs import NVSConfig, NVSPrediction, VGGTForNVS
from geomtx.models.vggt import VGGT, VGGTConfig

__all__ = ["VGGT", "NVSConfig", "NVSPrediction", "VGGTConfig", "VGGTForNVS"]
