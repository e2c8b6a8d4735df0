"""VGGT-Omega: cameras and depth of a scene in one pass, and its embedding in a space of texts."""

from geomtx.models.omega.config import VGGTOmegaConfig
from geomtx.models.omega.model import VGGTOmega

__all__ = ["VGGTOmega", "VGGTOmegaConfig"]
