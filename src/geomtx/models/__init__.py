"""Assemblies of the blocks: wiring and numbers."""

from geomtx.models.vggt import VGGT, VGGTConfig

__all__ = ["VGGT", "VGGTConfig"]
