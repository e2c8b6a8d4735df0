"""Pi3 and Pi3X: points, cameras and confidence of all views of a scene, none of which is the reference."""

from geomtx.models.pi3.config import Pi3Config
from geomtx.models.pi3.model import Pi3

__all__ = ["Pi3", "Pi3Config"]
