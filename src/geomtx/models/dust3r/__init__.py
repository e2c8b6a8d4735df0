"""Models that see a scene as pairs of images: DUSt3R, MonST3R and MASt3R, and CroCo, which they start from."""

from geomtx.models.dust3r.config import CroCoConfig, DUSt3RConfig, MASt3RConfig
from geomtx.models.dust3r.croco import CroCo
from geomtx.models.dust3r.model import DUSt3R, MASt3R

__all__ = ["CroCo", "CroCoConfig", "DUSt3R", "DUSt3RConfig", "MASt3R", "MASt3RConfig"]
