"""benchmarks/nano_baselines.py, which nano is compared with: a baseline that fails quietly would flatter the model."""

import sys

import numpy as np
import pytest
import torch

from geometry.random_cameras import random_rigid, rodrigues
from geomtx.data.synthetic.render import render_scenes
from geomtx.data.synthetic.rooms import RoomStyle
from geomtx.geometry import compose_rigid, invert_rigid
from geomtx.metrics import pairwise_pose_errors, pose_auc

pytest.importorskip("cv2", reason="needs opencv-python-headless")

import nano_baselines as baselines


def camera(angle: float, *position: float) -> torch.Tensor:
    """Turned about the vertical, somewhere."""
    rotation = rodrigues(torch.tensor([0.0, 1, 0]), angle) if angle else torch.eye(3).double()
    return torch.cat([rotation, -rotation @ torch.tensor(position).double()[:, None]], dim=-1)


INTRINSICS = np.array([[200.0, 0, 100], [0, 200, 75], [0, 0, 1]])
CAMERAS = torch.stack([camera(0, 0.0, 0, 0), camera(0.05, 0.5, 0, 0), camera(-0.05, 1.2, 0.3, 0.2)])


def blurred_noise(height: int, width: int) -> np.ndarray:
    import cv2

    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    return np.clip((smooth - smooth.mean()) * 8 + 128, 0, 255).astype(np.uint8)


def photograph_two_walls(cameras: torch.Tensor) -> np.ndarray:
    """Pictures of a textured wall at depth 6 behind a smaller one at depth 4: what a homography of each shows."""
    import cv2

    texture = blurred_noise(600, 800)
    pictures = []
    for cam_from_world in cameras.numpy():
        picture = np.zeros((150, 200, 3), np.uint8)
        for depth, width, left, top in ((6.0, 12.0, -6.0, -4.5), (4.0, 2.4, -0.8, -0.9)):
            per_pixel = width / 800
            wall = np.array([[per_pixel, 0, left], [0, per_pixel, top], [0, 0, depth], [0, 0, 1]])
            full = np.vstack([cam_from_world, [0, 0, 0, 1]])
            homography = INTRINSICS @ (full @ wall)[:3]
            layer = cv2.warpPerspective(np.roll(texture, int(depth), 0), homography, (200, 150), flags=cv2.INTER_AREA)
            covered = cv2.warpPerspective(np.ones((600, 800), np.uint8), homography, (200, 150)) > 0
            picture[covered] = layer[covered]
        pictures.append(picture)
    return np.stack(pictures)


def test_cameras_before_two_walls():
    poses = baselines.opencv_two_view_poses(photograph_two_walls(CAMERAS), np.stack([INTRINSICS] * 3))
    assert not poses.failed.any()
    assert not poses.unscaled.any()
    errors = baselines.score_pairs(poses, CAMERAS)
    assert (errors.larger_deg() < 5).all()
    # One scale for all cameras: the shape of the triangle of their centres.
    chained = pairwise_pose_errors(torch.from_numpy(poses.cam_from_first), CAMERAS)
    assert (chained.larger_deg() < 5).all()
    lengths = invert_rigid(torch.from_numpy(poses.cam_from_first))[1:, :, 3].norm(dim=-1)
    true_lengths = invert_rigid(CAMERAS)[1:, :, 3].norm(dim=-1)
    assert (lengths[1] / lengths[0]).item() == pytest.approx((true_lengths[1] / true_lengths[0]).item(), rel=0.05)
    depth = torch.full((150, 200), 6.0)
    depth[30:120, 60:180] = 4.0  # the nearer wall, in view 0
    scores = baselines.score_sparse_depth(poses, depth)
    assert len(poses.points_depth) > 50
    assert scores.delta_1 > 0.9


def test_same_numbers_every_time():
    pictures, intrinsics = photograph_two_walls(CAMERAS), np.stack([INTRINSICS] * 3)
    first, second = (baselines.opencv_two_view_poses(pictures, intrinsics) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a, b)


def test_failures_are_counted_and_score_nothing():
    blank = np.full((3, 60, 80, 3), 128, np.uint8)
    poses = baselines.opencv_two_view_poses(blank, np.stack([INTRINSICS] * 3))
    assert poses.failed.all()
    assert (poses.num_inliers == 0).all()
    assert np.array_equal(poses.cam_from_first, np.stack([np.eye(3, 4)] * 3))
    errors = baselines.score_pairs(poses, CAMERAS)
    torch.testing.assert_close(errors.translation_deg, torch.full((3,), 90.0).double())
    assert (pose_auc(errors.larger_deg()) == 0).all()
    assert baselines.score_sparse_depth(poses, torch.ones(60, 80)).abs_rel.isnan()


def test_pairs_are_scored_like_cameras():
    cameras = random_rigid(4)
    pairs = np.array([(i, j) for i in range(4) for j in range(i + 1, 4)])
    guess = random_rigid(4)
    i_from_j = compose_rigid(guess[pairs[:, 0]], invert_rigid(guess[pairs[:, 1]])).numpy()
    poses = baselines.TwoViewPoses(pairs, i_from_j, *[np.zeros(0)] * 6)
    got, expected = baselines.score_pairs(poses, cameras), pairwise_pose_errors(guess, cameras)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_chained_scales_are_exact_for_exact_points():
    cameras = torch.cat([torch.eye(3, 4).double()[None], random_rigid(3)])
    points = torch.rand(40, 3).double() + torch.tensor([0, 0, 3.0])
    pairs = []
    for k, features in ((1, range(0, 20)), (2, range(10, 30)), (3, range(38, 40))):
        baseline = cameras[k, :, 3].norm()
        scaled = cameras[k].clone()
        scaled[:, 3] /= baseline
        chosen = np.array(features)
        pairs.append(baselines._Pair(scaled.numpy(), chosen, (points[chosen, 2] / baseline).numpy()))
    got, unscaled, depth = baselines._chain([*pairs, None])
    expected = cameras[:3].clone()
    expected[..., 3] /= cameras[1, :, 3].norm()
    np.testing.assert_allclose(got[:3], expected.numpy(), atol=1e-12)
    assert unscaled.tolist() == [False, False, False, True, False]
    assert np.array_equal(got[4], np.eye(3, 4))
    assert set(depth) == set(range(30)), "points of unknown scale are left out"
    for feature, z in depth.items():
        assert z == pytest.approx((points[feature, 2] / cameras[1, :, 3].norm()).item())


def test_rendered_rooms():
    """What is found agrees with the rooms' true cameras, in the library's conventions: far from chance."""
    style = RoomStyle(wild=1.0, spread=(8.0, 25.0))  # texture everywhere, and views that overlap
    scenes = render_scenes([107, 110], 3, (160, 160), style=style)
    angles, errors, shares = [], [], []
    for images, cameras, intrinsics, depth in zip(scenes.images, *scenes.cameras, scenes.depth, strict=True):
        pictures = (images.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)
        poses = baselines.opencv_two_view_poses(pictures, intrinsics.numpy())
        pairs = baselines.score_pairs(poses, cameras)
        angles.append(pairs.rotation_deg)
        errors.append(pairs.larger_deg())
        shares.append(baselines.score_sparse_depth(poses, depth[0]).delta_1)
    assert torch.cat(angles).median() < 10
    assert torch.cat(errors).min() < 5
    assert torch.stack(shares).max() > 0.8


@pytest.mark.parametrize(
    ("images", "intrinsics", "message"),
    [
        (np.zeros((2, 8, 8), np.uint8), np.zeros((2, 3, 3)), r"^images must be \(S, H, W, 3\) uint8, got \(2, 8, 8\)"),
        (np.zeros((2, 8, 8, 3)), np.zeros((2, 3, 3)), r"^images must be .* uint8, got \(2, 8, 8, 3\) float64$"),
        (np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 3, 3)), r"^images must hold at least 2 views, got 1$"),
        (np.zeros((2, 8, 8, 3), np.uint8), np.zeros((3, 3)), r"^intrinsics must have shape \(2, 3, 3\), got \(3, 3\)$"),
    ],
)
def test_what_is_refused(images, intrinsics, message):
    with pytest.raises(ValueError, match=message):
        baselines.opencv_two_view_poses(images, intrinsics)


def test_without_opencv(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ModuleNotFoundError, match=r"^the OpenCV baseline needs OpenCV: pip install opencv-python-head"):
        baselines.opencv_two_view_poses(np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 3, 3)))
