"""Metrics of predicted poses, depth maps, point clouds, tracks and images."""

from geomtx.metrics.constant_guess import ConstantGuess, fit_constant_guess
from geomtx.metrics.depth import DepthScores, depth_scores
from geomtx.metrics.dtu import DTUScan, DTUScores, dtu_scores, thin_points
from geomtx.metrics.evaluate import Evaluation, evaluate_predictions, summarize
from geomtx.metrics.image import LPIPS, psnr, read_vgg, ssim
from geomtx.metrics.pointcloud import (
    PointCloudScores,
    align_by_nearest,
    nearest_points,
    point_map_normals,
    point_map_scores,
    pointcloud_scores,
)
from geomtx.metrics.pose import (
    PairErrors,
    TrajectoryErrors,
    exact_pose_auc,
    pairwise_pose_errors,
    pose_auc,
    pose_recall,
    trajectory_errors,
)
from geomtx.metrics.sparse_views import SparseViewScores, sparse_view_report
from geomtx.metrics.tapvid import TapVidScores, TapVidVideo, TrackPoints, evaluate_tapvid, labels_to_tapvid, load_tapvid
from geomtx.metrics.tracking import TrackScores, scale_to_raster, select_queries, track_scores

__all__ = [
    "LPIPS",
    "ConstantGuess",
    "DTUScan",
    "DTUScores",
    "DepthScores",
    "Evaluation",
    "PairErrors",
    "PointCloudScores",
    "SparseViewScores",
    "TapVidScores",
    "TapVidVideo",
    "TrackPoints",
    "TrackScores",
    "TrajectoryErrors",
    "align_by_nearest",
    "depth_scores",
    "dtu_scores",
    "evaluate_predictions",
    "evaluate_tapvid",
    "exact_pose_auc",
    "fit_constant_guess",
    "labels_to_tapvid",
    "load_tapvid",
    "nearest_points",
    "pairwise_pose_errors",
    "point_map_normals",
    "point_map_scores",
    "pointcloud_scores",
    "pose_auc",
    "pose_recall",
    "psnr",
    "read_vgg",
    "scale_to_raster",
    "select_queries",
    "sparse_view_report",
    "ssim",
    "summarize",
    "thin_points",
    "track_scores",
    "trajectory_errors",
]
