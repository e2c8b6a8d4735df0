"""Pure functions on (*, …) tensors: rotations, cameras, pose encoding, unprojection, similarities.

They compute and return float32 or better, also for arguments in half precision and under autocast, because half
precision can represent neither pixel coordinates nor rotations. Arguments of different precisions are converted to the
widest of them. Gradients are finite wherever the derivative, or a one-sided derivative, is.
"""

from geomtx.geometry.bundle import BundleOptions, BundleProblem, BundleResult, CenterPriors, adjust_bundle
from geomtx.geometry.camera import (
    activate_pose,
    compose_rigid,
    decode_pose,
    encode_pose,
    fit_intrinsics,
    fov_to_intrinsics,
    intrinsics_to_fov,
    invert_rigid,
    transform_points,
)
from geomtx.geometry.camera_fit import PoseFit, fit_focal, fit_pose
from geomtx.geometry.conventions import (
    ColmapCameras,
    KorniaCameras,
    from_colmap,
    from_kornia,
    from_nerfstudio,
    from_opengl,
    shift_pixel_center,
    to_colmap,
    to_kornia,
    to_nerfstudio,
    to_opengl,
)
from geomtx.geometry.edges import depth_edges
from geomtx.geometry.epipolar import fundamental_matrix, sampson_distance
from geomtx.geometry.projection import RayOrder, plucker_rays, project, unproject
from geomtx.geometry.ray_cameras import cameras_from_rays
from geomtx.geometry.robust import RobustLoss, robust_loss
from geomtx.geometry.rotation import matrix_to_quat, nearest_rotation, quat_to_matrix, rotation_angle
from geomtx.geometry.scene_frame import RelativeCameras, normalize_scene, relate_cameras
from geomtx.geometry.similarity import Similarity, apply_similarity, fit_camera_similarity, fit_similarity

__all__ = [
    "BundleOptions",
    "BundleProblem",
    "BundleResult",
    "CenterPriors",
    "ColmapCameras",
    "KorniaCameras",
    "PoseFit",
    "RayOrder",
    "RelativeCameras",
    "RobustLoss",
    "Similarity",
    "activate_pose",
    "adjust_bundle",
    "apply_similarity",
    "cameras_from_rays",
    "compose_rigid",
    "decode_pose",
    "depth_edges",
    "encode_pose",
    "fit_camera_similarity",
    "fit_focal",
    "fit_intrinsics",
    "fit_pose",
    "fit_similarity",
    "fov_to_intrinsics",
    "from_colmap",
    "from_kornia",
    "from_nerfstudio",
    "from_opengl",
    "fundamental_matrix",
    "intrinsics_to_fov",
    "invert_rigid",
    "matrix_to_quat",
    "nearest_rotation",
    "normalize_scene",
    "plucker_rays",
    "project",
    "quat_to_matrix",
    "relate_cameras",
    "robust_loss",
    "rotation_angle",
    "sampson_distance",
    "shift_pixel_center",
    "to_colmap",
    "to_kornia",
    "to_nerfstudio",
    "to_opengl",
    "transform_points",
    "unproject",
]
