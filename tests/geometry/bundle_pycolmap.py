"""The problems of `bundle_problem`, solved by pycolmap."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pycolmap

from geometry.bundle_problem import CENTER, FOCAL, HEIGHT, WIDTH, Arrays, poses


def build(arrays: Arrays) -> pycolmap.Reconstruction:
    """Images 1 … V in the order of the views, one PINHOLE camera, points in their order."""
    reconstruction = pycolmap.Reconstruction()
    params = [FOCAL, FOCAL, *CENTER]
    reconstruction.add_camera_with_trivial_rig(
        pycolmap.Camera(model="PINHOLE", width=WIDTH, height=HEIGHT, params=params, camera_id=1)
    )
    elements: list[list[Any]] = [[] for _ in arrays.X0]
    for view, pose in enumerate(poses(arrays.R0, arrays.C0).numpy()):
        seen = np.nonzero(arrays.view == view)[0]
        image = pycolmap.Image(name=f"{view:04d}.png", keypoints=arrays.pixels[seen], camera_id=1, image_id=view + 1)
        rigid = pycolmap.Rigid3d(pycolmap.Rotation3d(pose[:, :3]), pose[:, 3])
        reconstruction.add_image_with_trivial_frame(image, rigid)
        for index, point in enumerate(arrays.point[seen]):
            elements[point].append(pycolmap.TrackElement(view + 1, index))
    for xyz, track in zip(arrays.X0, elements, strict=True):
        if len(track) > 1:
            reconstruction.add_point3D(xyz, pycolmap.Track(track), np.zeros(3, dtype=np.uint8))
    return reconstruction


def solve_reconstruction(reconstruction: Any, loss: str, *, focal: bool, function_tolerance: float | None) -> Any:
    """With both gauges fixed as COLMAP does, on one thread; `focal` refines the shared camera's focal lengths."""
    options = pycolmap.BundleAdjustmentOptions(refine_focal_length=focal, print_summary=False)
    options.ceres.loss_function_type = getattr(pycolmap.LossFunctionType, loss.upper())
    options.ceres.solver_options.num_threads = 1
    if function_tolerance is not None:
        options.ceres.solver_options.function_tolerance = function_tolerance
    config = pycolmap.BundleAdjustmentConfig()
    for image_id in sorted(reconstruction.images):
        config.add_image(image_id)
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    return pycolmap.create_default_ceres_bundle_adjuster(options, config, reconstruction).solve()


def solve_pycolmap(arrays: Arrays, loss: str = "trivial", *, tolerance: float | None = None) -> SimpleNamespace:
    """The costs of a solve with known focal lengths."""
    result = solve_reconstruction(build(arrays), loss, focal=False, function_tolerance=tolerance)
    summary = result.ceres_summary
    return SimpleNamespace(initial_cost=summary.initial_cost, final_cost=summary.final_cost)
