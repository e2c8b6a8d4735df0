"""What classical two-view geometry finds in the same pictures: SIFT, essential matrix, triangulation.

It is given what a feed-forward model is not, the true intrinsics. Needs opencv-python-headless.
"""

from __future__ import annotations

from itertools import combinations
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch

from geomtx.geometry import invert_rigid
from geomtx.metrics import DepthScores, PairErrors, depth_scores, pairwise_pose_errors

# On rendered rooms of 112 and 224 pixels, OpenCV's defaults (contrast 0.04, 1 pixel) find less.
CONTRAST = 0.01  # least contrast of a SIFT feature
RATIO = 0.8  # Lowe's ratio test
THRESHOLD_PX = 0.5  # from the epipolar line
CONFIDENCE = 0.99999
# Five points always have an essential matrix, so only more of them say anything.
MIN_INLIERS = 10
MIN_SHARED = 3  # points two pairs need in common to be given one scale


class TwoViewPoses(NamedTuple):
    """Of S views; P = S (S - 1) / 2 pairs (0, 1), (0, 2), …, (1, 2), …

    Attributes:
        pairs: (P, 2) views i < j.
        i_from_j: (P, 3, 4), float64, with a translation of length 1; the identity where a pair failed.
        num_inliers: (P,) points in front of both cameras that agree with the pose.
        failed: (P,) bool, True = too few points were found.
        cam_from_first: (S, 3, 4), pairs with view 0 chained to one scale; the identity where the pair failed.
        unscaled: (S,) bool, True = the pair with view 0 shares too few points with the others: its scale is a guess.
        points_px: (N, 2), triangulated points in view 0.
        points_depth: (N,), their z-depth in view 0, in units of the first pair's baseline.
    """

    pairs: np.ndarray
    i_from_j: np.ndarray
    num_inliers: np.ndarray
    failed: np.ndarray
    cam_from_first: np.ndarray
    unscaled: np.ndarray
    points_px: np.ndarray
    points_depth: np.ndarray


class _Features(NamedTuple):
    coords_px: np.ndarray  # (K, 2), pixel centres at integers
    descriptors: np.ndarray  # (K, 128)


class _Pair(NamedTuple):
    j_from_i: np.ndarray
    features_i: np.ndarray  # which features of view i agree with the pose
    depth_i: np.ndarray  # their z-depth in view i; the baseline is 1


def opencv_two_view_poses(images: np.ndarray, intrinsics: np.ndarray, *, seed: int = 0) -> TwoViewPoses:
    """Relative poses of all pairs of views, and sparse depth of view 0.

    SIFT, ratio test in both directions, five-point RANSAC in normalised coordinates, and of all candidates the pose
    with most points in front of both cameras.

    Args:
        images: (S, H, W, 3) uint8, RGB, S ≥ 2.
        intrinsics: (S, 3, 3) in pixels.
        seed: Of RANSAC.

    Raises:
        ValueError: For other shapes or types.
        ModuleNotFoundError: Without OpenCV.
    """
    cv2 = _opencv()
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise ValueError(f"images must be (S, H, W, 3) uint8, got {images.shape} {images.dtype}")
    if len(images) < 2:
        raise ValueError(f"images must hold at least 2 views, got {len(images)}")
    if intrinsics.shape != (len(images), 3, 3):
        raise ValueError(f"intrinsics must have shape ({len(images)}, 3, 3), got {intrinsics.shape}")
    features = [_detect(cv2, image) for image in images]
    pairs = list(combinations(range(len(images)), 2))
    found = {}
    intrinsics = intrinsics.astype(np.float64)
    for i, j in pairs:
        cv2.setRNGSeed(seed)
        found[i, j] = _estimate_pair(cv2, features[i], features[j], intrinsics[i], intrinsics[j])
    i_from_j = [_identity() if (pair := found[p]) is None else _invert(pair.j_from_i) for p in pairs]
    cameras, unscaled, depth = _chain([found[0, j] for j in range(1, len(images))])
    return TwoViewPoses(
        np.array(pairs),
        np.stack(i_from_j),
        np.array([0 if (pair := found[p]) is None else len(pair.features_i) for p in pairs]),
        np.array([found[p] is None for p in pairs]),
        cameras,
        unscaled,
        features[0].coords_px[list(depth)].reshape(-1, 2),
        np.array(list(depth.values())),
    )


def score_pairs(poses: TwoViewPoses, cam_from_world: torch.Tensor) -> PairErrors:
    """Errors of all pairs against the true cameras (S, 3, 4), (P,); a failed pair's translation is 90 degrees off."""
    i, j = torch.from_numpy(poses.pairs).unbind(-1)
    world = torch.eye(3, 4, dtype=torch.float64).expand(len(i), 3, 4)
    predicted = torch.stack([torch.from_numpy(poses.i_from_j), world], dim=1)
    errors = pairwise_pose_errors(predicted, torch.stack([cam_from_world[i], cam_from_world[j]], dim=1).double())
    return PairErrors(*(part.squeeze(-1) for part in errors))


def score_sparse_depth(poses: TwoViewPoses, depth: torch.Tensor) -> DepthScores:
    """Triangulated depth against the true depth of view 0, (H, W), at the nearest pixels; NaN without points."""
    columns, rows = torch.from_numpy(poses.points_px).round().long().unbind(-1)
    true = depth[rows.clamp(0, depth.shape[0] - 1), columns.clamp(0, depth.shape[1] - 1)]
    return depth_scores(torch.from_numpy(poses.points_depth)[None, None], true.double()[None, None])


def _opencv() -> ModuleType:
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the OpenCV baseline needs OpenCV: pip install opencv-python-headless") from error
    return cv2


def _detect(cv2: ModuleType, image: np.ndarray) -> _Features:
    keypoints, descriptors = cv2.SIFT_create(contrastThreshold=CONTRAST).detectAndCompute(
        cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None
    )
    coords = np.array([keypoint.pt for keypoint in keypoints], dtype=np.float64).reshape(-1, 2)
    return _Features(coords, np.zeros((0, 128), np.float32) if descriptors is None else descriptors)


def _match(cv2: ModuleType, a: _Features, b: _Features) -> tuple[np.ndarray, np.ndarray]:
    """Indices of features that are each other's nearest, clearly nearer than the second."""
    if min(len(a.descriptors), len(b.descriptors)) < 2:
        return np.zeros(0, int), np.zeros(0, int)
    matcher = cv2.BFMatcher(cv2.NORM_L2)
    there, back = (
        {first.queryIdx: first.trainIdx for first, second in matches if first.distance < RATIO * second.distance}
        for matches in (
            matcher.knnMatch(a.descriptors, b.descriptors, k=2),
            matcher.knnMatch(b.descriptors, a.descriptors, k=2),
        )
    )
    mutual = np.array([(i, j) for i, j in there.items() if back.get(j) == i], dtype=int).reshape(-1, 2)
    return mutual[:, 0], mutual[:, 1]


def _estimate_pair(
    cv2: ModuleType, a: _Features, b: _Features, intrinsics_a: np.ndarray, intrinsics_b: np.ndarray
) -> _Pair | None:
    """The pose b_from_a and what was triangulated with it; None where too few points agree."""
    chosen_a, chosen_b = _match(cv2, a, b)
    if len(chosen_a) < MIN_INLIERS:
        return None
    rays_a = _normalize(a.coords_px[chosen_a], intrinsics_a)
    rays_b = _normalize(b.coords_px[chosen_b], intrinsics_b)
    focal = np.mean([intrinsics_a[0, 0], intrinsics_a[1, 1], intrinsics_b[0, 0], intrinsics_b[1, 1]])
    candidates, inliers = cv2.findEssentialMat(
        rays_a, rays_b, np.eye(3), method=cv2.RANSAC, prob=CONFIDENCE, threshold=THRESHOLD_PX / focal
    )
    if candidates is None:
        return None
    best_count, best = 0, None
    for candidate in candidates.reshape(-1, 3, 3):
        count, rotation, translation, in_front = cv2.recoverPose(
            candidate, rays_a, rays_b, np.eye(3), mask=inliers.copy()
        )
        if count > best_count:
            best_count, best = count, (np.hstack([rotation, translation]), in_front.ravel() > 0)
    if best is None or best_count < MIN_INLIERS:
        return None
    pose, kept = best
    points = cv2.triangulatePoints(np.eye(3, 4), pose, rays_a[kept].T, rays_b[kept].T)
    return _Pair(pose, chosen_a[kept], points[2] / points[3])


def _chain(pairs: list[_Pair | None]) -> tuple[np.ndarray, np.ndarray, dict[int, float]]:
    """Cameras (S, 3, 4) of pairs with view 0, whether a scale is missing (S,), and depth by feature of view 0.

    A pair's scale is the median ratio between depths that are known already and its own.
    """
    cameras = np.stack([_identity() for _ in range(len(pairs) + 1)])
    unscaled = np.zeros(len(pairs) + 1, dtype=bool)
    depth: dict[int, float] = {}
    # The pairs with most points first: they share most with the others.
    order = sorted((k for k, pair in enumerate(pairs) if pair is not None), key=lambda k: -len(pairs[k].features_i))
    for k in order:
        pair = pairs[k]
        ratios = [depth[f] / d for f, d in zip(pair.features_i.tolist(), pair.depth_i, strict=True) if f in depth]
        unscaled[k + 1] = len(depth) > 0 and len(ratios) < MIN_SHARED
        scale = np.median(ratios) if len(ratios) >= MIN_SHARED else 1.0
        cameras[k + 1] = pair.j_from_i
        cameras[k + 1, :, 3] *= scale
        if not unscaled[k + 1]:
            for feature, d in zip(pair.features_i.tolist(), pair.depth_i, strict=True):
                depth.setdefault(feature, float(scale * d))
    return cameras, unscaled, depth


def _normalize(coords_px: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    homogeneous = np.hstack([coords_px, np.ones((len(coords_px), 1))])
    return np.ascontiguousarray((homogeneous @ np.linalg.inv(intrinsics).T)[:, :2])


def _identity() -> np.ndarray:
    return np.eye(3, 4)


def _invert(transform: np.ndarray) -> np.ndarray:
    return invert_rigid(torch.from_numpy(transform)).numpy()
