"""Novel view synthesis on VGGT's encoder."""

from geomtx.models.nvs.config import NVSConfig
from geomtx.models.nvs.model import NVSPrediction, VGGTForNVS

__all__ = ["NVSConfig", "NVSPrediction", "VGGTForNVS"]
