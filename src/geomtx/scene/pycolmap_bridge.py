"""What pycolmap does for a scene, where it is installed (extra colmap): bundle adjustment by Ceres, matches of SIFT."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geomtx.checks import check_count
from geomtx.geometry.bundle import BundleOptions, BundleProblem
from geomtx.scene.content import MatchedPixels
from geomtx.scene.observations import ObservedPoints, join_matches, merge_observations
from geomtx.scene.scene import Scene
from geomtx.scene.surfaces import find_surfaces
from geomtx.types import Cameras
from geomtx.views.pictures import read_picture

__all__ = ["has_pycolmap", "match_points", "solve_with_pycolmap"]

_SIDE = 1 << 12  # pixels of the pictures that pycolmap is told; nothing depends on it
_LEAST_MATCHES = 15  # from which a geometry of two photos is looked for


def has_pycolmap() -> bool:
    """Whether pycolmap is installed; it isn't imported."""
    return importlib.util.find_spec("pycolmap") is not None


def solve_with_pycolmap(problem: BundleProblem, options: BundleOptions, fixed: Tensor) -> tuple[Cameras, Tensor]:
    """Solve a bundle adjustment by Ceres in pycolmap, on one thread, which gives the same numbers every time.

    Args:
        problem: Cameras (1, V, …), points (1, N, 3) and observations, of which those of weight 0 are left out; other
            weights are ignored, and points that one observation is left of stay where they are.
        options: Loss, its scale, and which focal lengths are refined.
        fixed: Views whose poses are held, (V,) bool.

    Returns:
        Cameras (V, 3, 4) and (V, 3, 3), and points (N, 3), in float64.

    Raises:
        ImportError: If pycolmap is not installed, or older than 4.2.
    """
    pycolmap = _import_pycolmap()
    reconstruction = _build(pycolmap, problem, shared=options.focal == "shared")
    settings = pycolmap.BundleAdjustmentOptions(refine_focal_length=options.focal != "known", print_summary=False)
    settings.ceres.loss_function_type = getattr(pycolmap.LossFunctionType, options.loss.upper())
    settings.ceres.loss_function_scale = options.loss_scale
    settings.ceres.solver_options.num_threads = 1
    settings.ceres.solver_options.function_tolerance = options.tolerance
    settings.ceres.solver_options.max_num_iterations = options.max_steps
    config = pycolmap.BundleAdjustmentConfig()
    for image_id in sorted(reconstruction.images):
        config.add_image(image_id)
    # Without a known pose, the first is held. The scale is left free: a held component of a wrong baseline does harm.
    for view in fixed.nonzero()[:, 0].tolist() or [0]:
        config.set_constant_rig_from_world_pose(reconstruction.images[view + 1].frame_id)
    pycolmap.create_default_ceres_bundle_adjuster(settings, config, reconstruction).solve()
    views = range(1, len(fixed) + 1)
    pose = np.stack([reconstruction.images[view].cam_from_world().matrix() for view in views])
    intrinsics = problem.cameras.intrinsics[0].clone()
    for view in views:
        intrinsics[view - 1, [0, 1], [0, 1]] = torch.from_numpy(reconstruction.images[view].camera.params[:2].copy())
    points = problem.points[0].numpy().copy()
    for point in reconstruction.point3D_ids():
        points[point - 1] = reconstruction.points3D[point].xyz
    cameras = Cameras(torch.from_numpy(pose), intrinsics)
    return cameras, torch.from_numpy(points)


def _build(pycolmap: Any, problem: BundleProblem, *, shared: bool) -> Any:
    """Return a Reconstruction of images 1 … V, with a camera each or one shared, and points 1 … N."""
    reconstruction = pycolmap.Reconstruction()
    pose, intrinsics = (each[0].numpy() for each in problem.cameras)
    focal = intrinsics[:, [0, 1], [0, 1]]
    if shared:
        focal = np.broadcast_to(focal.mean(0), focal.shape)
    view_of, point_of, coords = problem.view[0].numpy(), problem.point[0].numpy(), problem.coords_px[0].numpy()
    elements: list[list[Any]] = [[] for _ in range(problem.points.shape[1])]
    middle = intrinsics[:, :2, 2]
    counted = np.ones(len(view_of), dtype=bool) if problem.weights is None else problem.weights[0].numpy() > 0
    for view in range(len(pose)):
        camera_id = 1 if shared else view + 1
        if view == 0 or not shared:
            params = [*focal[view], 0.0, 0.0]
            camera = pycolmap.Camera(model="PINHOLE", width=_SIDE, height=_SIDE, params=params, camera_id=camera_id)
            reconstruction.add_camera_with_trivial_rig(camera)
        rows = np.nonzero((view_of == view) & counted)[0]
        # Relative to the principal point, which is no part of a camera then that views with several share.
        keypoints = coords[rows] - middle[view]
        image = pycolmap.Image(name=f"{view:06d}", keypoints=keypoints, camera_id=camera_id, image_id=view + 1)
        rigid = pycolmap.Rigid3d(pycolmap.Rotation3d(pose[view, :, :3]), pose[view, :, 3])
        reconstruction.add_image_with_trivial_frame(image, rigid)
        for index, row in enumerate(rows):
            elements[point_of[row]].append(pycolmap.TrackElement(view + 1, index))
    black = np.zeros(3, dtype=np.uint8)
    for index, (xyz, track) in enumerate(zip(problem.points[0].numpy(), elements, strict=True)):
        if len(track) > 1:
            point = pycolmap.Point3D(xyz=xyz, color=black, track=pycolmap.Track(track))
            reconstruction.add_point3D_with_id(index + 1, point)
    return reconstruction


def match_points(scene: Scene, *, max_side: int = 1600) -> ObservedPoints:
    """Match SIFT features of all pairs of photos with pycolmap, and join the matches to points.

    Matches are verified by the geometry of each pair. Points start at the mean of what the views' own surfaces are at
    their observations; those that two features of one photo belong to are left out.

    Args:
        scene: Scene with cameras, and with depth or points. Features are found in the photos' files where these are
            still there, and else in the model's images.
        max_side: Longer side in pixels to which larger photos are reduced.

    Raises:
        ImportError: If pycolmap is not installed, or older than 4.2.
        ValueError: If the scene lacks cameras, or depth and points.
    """
    check_count("max_side", max_side)
    pycolmap = _import_pycolmap()
    surfaces = find_surfaces(scene)
    extractor, matcher = pycolmap.FeatureExtractor.create(), pycolmap.FeatureMatcher.create()
    found = [_find_features(extractor, scene, view, max_side) for view in range(len(scene))]
    features, coords = [each[0] for each in found], [each[1] for each in found]
    starts = np.cumsum([0, *(len(each) for each in coords)])
    pairs = [
        _match_pair(pycolmap, matcher, features[i], features[j]) + starts[[i, j]]
        for i in range(len(scene))
        for j in range(i + 1, len(scene))
    ]
    view_of = np.repeat(np.arange(len(scene)), [len(each) for each in coords])
    feature, point = join_matches(np.concatenate([np.empty((0, 2), np.int64), *pairs]), view_of)
    original = np.concatenate(coords)[feature]
    observed = MatchedPixels(*(torch.from_numpy(each) for each in (view_of[feature], point, original)))
    return merge_observations(scene, surfaces, observed)


def _find_features(extractor: Any, scene: Scene, view: int, max_side: int) -> tuple[Any, NDArray[np.float64]]:
    """Return keypoints with descriptors, and their positions in original pixels, (N, 2)."""
    from PIL import Image

    transform = scene.transforms[view]
    path = scene.paths[view] if scene.paths else None
    from_file = path is not None and path.is_file()
    if path is not None and from_file:
        picture = read_picture(path, min_side=max_side)
        image, (rows, columns) = picture.image, picture.original_hw
    else:
        image = Image.fromarray(scene.images[view].movedim(0, -1).numpy())
        columns, rows = image.size
    width, height = image.size
    shrink = min(1.0, max_side / max(width, height))
    if shrink < 1:
        image = image.resize((max(1, round(width * shrink)), max(1, round(height * shrink))), Image.Resampling.LANCZOS)
    features = extractor.extract_from_uint8_array(np.asarray(image.convert("L")))
    found = np.array([(each.x, each.y) for each in features[0]], dtype=np.float64).reshape(-1, 2)
    found = found * np.array([columns / image.width, rows / image.height]) - 0.5  # COLMAP's centres are at halves
    if not from_file:
        found = transform.to_original(torch.from_numpy(found)).numpy()
    return features, found


def _match_pair(pycolmap: Any, matcher: Any, first: Any, second: Any) -> NDArray[np.int64]:
    """Return the matches (M, 2) of two photos that one geometry explains."""
    matches = matcher.match(*first, *second)
    if len(matches) < _LEAST_MATCHES:
        return np.empty((0, 2), np.int64)
    options = pycolmap.TwoViewGeometryOptions()
    options.ransac.random_seed = 0
    # Without known focal lengths, what is verified is a fundamental matrix: predicted ones may be off.
    camera = pycolmap.Camera(model="PINHOLE", width=_SIDE, height=_SIDE, params=[_SIDE, _SIDE, 0, 0], camera_id=1)
    coords = (np.array([(each.x, each.y) for each in keypoints]) for keypoints, _ in (first, second))
    first_xy, second_xy = coords
    geometry = pycolmap.estimate_two_view_geometry(camera, first_xy, camera, second_xy, matches, options)
    return geometry.inlier_matches.astype(np.int64).reshape(-1, 2)


def _import_pycolmap() -> Any:
    """Import pycolmap.

    Raises:
        ImportError: If it is not installed, or older than 4.2.
    """
    try:
        import pycolmap
    except ImportError as error:
        raise ImportError("pycolmap must be installed for this, got none; pip install 'geomtx[colmap]'") from error
    if not hasattr(pycolmap, "create_default_ceres_bundle_adjuster") or not hasattr(pycolmap, "FeatureExtractor"):
        raise ImportError(f"pycolmap must be 4.2 or newer, got {pycolmap.__version__}; pip install 'geomtx[colmap]'")
    pycolmap.logging.minloglevel = 3  # of what it writes nothing is for users: failures show in the results
    return pycolmap
