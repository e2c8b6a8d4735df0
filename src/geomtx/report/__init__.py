"""Pictures and pages of scenes: the report, a comparison with the truth, and rendered point clouds."""

from geomtx.report.comparison import draw_comparison
from geomtx.report.page import draw_report
from geomtx.report.render import Viewpoint, overview, render_points
from geomtx.report.web_page import write_page

__all__ = ["Viewpoint", "draw_comparison", "draw_report", "overview", "render_points", "write_page"]
