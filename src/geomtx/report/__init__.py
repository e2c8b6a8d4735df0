"""Pictures and pages of scenes: the report, a comparison with the truth, rendered point clouds, and a viewer."""

from geomtx.report.comparison import draw_comparison
from geomtx.report.page import draw_report
from geomtx.report.render import Viewpoint, overview, render_points
from geomtx.report.viewer import Viewer, open_viewer
from geomtx.report.web_page import write_page

__all__ = [
    "Viewer",
    "Viewpoint",
    "draw_comparison",
    "draw_report",
    "open_viewer",
    "overview",
    "render_points",
    "write_page",
]
