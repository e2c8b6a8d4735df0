"""Scenes in a browser: points, photos, depth and tracks in 3-D, with controls; on viser, the extra `viewer`."""

from geomtx.report.viewer.viewer import Viewer, open_viewer

__all__ = ["Viewer", "open_viewer"]
