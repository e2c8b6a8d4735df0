"""Photos → `Views`: decoding, EXIF orientation, all pixel formats, and the invertible transform to original pixels."""

from geomtx.views.error import PhotoError
from geomtx.views.loading import EXTENSIONS, load_views
from geomtx.views.transform import Mode, ViewTransform
from geomtx.views.views import Views

__all__ = ["EXTENSIONS", "Mode", "PhotoError", "ViewTransform", "Views", "load_views"]
