import math

import pytest
import torch
from torch import Tensor

from geometry.random_cameras import AXES, random_rigid, random_rotations, rodrigues
from geomtx.geometry import apply_similarity, compose_rigid, invert_rigid
from geomtx.geometry.similarity import Similarity
from geomtx.metrics import exact_pose_auc, pairwise_pose_errors, pose_auc, pose_recall, trajectory_errors
from geomtx.metrics.pose import FAILED_DEG

ROTATION_DEG = torch.tensor([0.2, 1.5, 4, 10, 50], dtype=torch.float64)
TRANSLATION_DEG = torch.tensor([0.7, 0.3, 6.2, 29.5, 1], dtype=torch.float64)
# What the floor of 1e-15 within acos leaves of no error, degrees.
ROTATION_FLOOR, TRANSLATION_FLOOR = (math.degrees(f) for f in (math.acos(1 - 2e-15), math.acos(math.sqrt(1 - 1e-15))))


def moved_world(cameras: Tensor, similarity: Similarity) -> Tensor:
    """The same cameras in a world that was scaled, turned and moved."""
    rotation = cameras[..., :3] @ similarity.rotation.mT
    centers = apply_similarity(similarity, invert_rigid(cameras)[..., 3])
    return torch.cat([rotation, -(rotation @ centers[..., None])], dim=-1)


def random_similarity() -> Similarity:
    return Similarity(torch.rand(()).double() + 0.2, random_rotations(), torch.randn(3).double())


def test_no_error_in_any_world():
    cameras = random_rigid(2, 5)
    errors = pairwise_pose_errors(moved_world(cameras, random_similarity()), cameras)
    assert errors.rotation_deg.shape == errors.mask.shape == (2, 10)
    assert errors.rotation_deg.dtype == torch.float64
    torch.testing.assert_close(errors.rotation_deg, torch.full((2, 10), ROTATION_FLOOR).double(), rtol=0, atol=3e-6)
    assert (errors.translation_deg < 3 * TRANSLATION_FLOOR).all()
    assert (pose_auc(errors.larger_deg(), (1, 5)) == 1).all()


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("angle", [0.01, 1.0, 45.0, 90.0, 179.0, 180.0])
def test_the_angle_of_a_rotation(axis, angle):
    true = random_rigid(2)
    turn = rodrigues(axis, math.radians(angle))
    predicted = torch.stack([true[0], torch.cat([turn @ true[1, :, :3], true[1, :, 3:]], dim=-1)])
    torch.testing.assert_close(
        pairwise_pose_errors(predicted, true).rotation_deg, torch.tensor([angle]).double(), rtol=1e-6, atol=1e-5
    )


def test_pairs_one_by_one_with_inverse_matrices():
    """T_ij = E_i · inv(E_j), i < j, in this order."""
    predicted, true = random_rigid(4), random_rigid(4)
    errors = pairwise_pose_errors(predicted, true)
    bottom = torch.tensor([[[0, 0, 0, 1.0]]]).double().expand(4, 1, 4)
    full = [torch.cat([cameras, bottom], dim=1) for cameras in (predicted, true)]
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    for k, (i, j) in enumerate(pairs):
        a, b = (cameras[i] @ cameras[j].inverse() for cameras in full)
        trace = (a[:3, :3] @ b[:3, :3].mT).trace()
        assert errors.rotation_deg[k].item() == pytest.approx(math.degrees(math.acos((trace - 1) / 2)), abs=1e-5)
        cosine = (a[:3, 3] @ b[:3, 3] / a[:3, 3].norm() / b[:3, 3].norm()).abs()
        assert errors.translation_deg[k].item() == pytest.approx(math.degrees(math.acos(cosine)), abs=1e-5)
    assert torch.equal(errors.larger_deg(), torch.maximum(errors.rotation_deg, errors.translation_deg))


def test_directions_have_no_sign_and_no_length():
    true = random_rigid(1, 2)
    true[:, 0] = torch.eye(3, 4)
    flipped = true.clone()
    flipped[..., 3] *= -7
    assert (pairwise_pose_errors(flipped, true).translation_deg < 3 * TRANSLATION_FLOOR).all()


def test_no_translation_has_no_direction():
    """So that cameras that all stand in one place, the best guess without looking, score nothing for free."""
    true, guess = random_rigid(3), torch.eye(3, 4).double().expand(3, 3, 4)
    torch.testing.assert_close(pairwise_pose_errors(guess, true).translation_deg, torch.full((3,), 90.0).double())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_poses_that_are_not_finite_are_failures(bad):
    true = random_rigid(3)
    predicted = true.clone()
    predicted[1, 2, 3] = bad
    errors = pairwise_pose_errors(predicted, true)  # pairs (0, 1), (0, 2), (1, 2)
    assert errors.translation_deg[[0, 2]].tolist() == [FAILED_DEG] * 2
    torch.testing.assert_close(pose_auc(errors.larger_deg(), (30,)), torch.tensor([1 / 3]).double())
    predicted[1, 0, 0] = bad
    assert pairwise_pose_errors(predicted, true).rotation_deg[[0, 2]].tolist() == [FAILED_DEG] * 2


def test_truth_that_is_not_finite_is_no_failure_of_the_model():
    predicted, true = random_rigid(5), random_rigid(5)
    broken = true.clone()
    broken[3, 0, 0] = math.nan
    known = torch.arange(5) != 3
    found, expected = pairwise_pose_errors(predicted, broken), pairwise_pose_errors(predicted[known], true[known])
    assert found.mask.sum() == 6
    torch.testing.assert_close(found.larger_deg()[found.mask], expected.larger_deg())
    torch.testing.assert_close(
        trajectory_errors(predicted, broken).rmse, trajectory_errors(predicted[known], true[known]).rmse
    )


def test_unknown_cameras_take_no_part():
    predicted, true = random_rigid(2, 4), random_rigid(2, 4)
    mask = torch.tensor([[True, False, True, True], [True, True, True, True]])
    true[0, 1] = math.nan
    errors = pairwise_pose_errors(predicted, true, mask)
    assert errors.mask.sum(-1).tolist() == [3, 6]
    kept = pairwise_pose_errors(predicted[0, [0, 2, 3]], true[0, [0, 2, 3]])
    torch.testing.assert_close(
        pose_auc(errors.larger_deg(), (30, 90), errors.mask)[0], pose_auc(kept.larger_deg(), (30, 90))
    )
    nothing = pose_auc(errors.larger_deg(), (30,), torch.zeros_like(errors.mask))
    assert nothing.isnan().all()


def test_scores_of_the_protocol():
    """Test vector T8."""
    errors = torch.maximum(ROTATION_DEG, TRANSLATION_DEG)
    expected = torch.tensor([1 / 3, 0.36, 0.50666667, 0.56], dtype=torch.float64)
    torch.testing.assert_close(pose_auc(errors, (3, 5, 15, 30)), expected, rtol=0, atol=1e-8)
    expected = torch.tensor([0.342, 0.494, 0.547], dtype=torch.float64)
    torch.testing.assert_close(exact_pose_auc(errors, (5, 10, 20)), expected, rtol=0, atol=1e-12)
    assert pose_recall(ROTATION_DEG, (5, 10, 10.1)).tolist() == [0.6, 0.6, 0.8]


def test_bins_by_counting():
    """Below k for every whole k, and the last bin holds its end."""
    errors = torch.cat([torch.rand(2, 40).double() * 40, torch.arange(31).double().expand(2, 31)], dim=-1)
    for threshold in (1, 7, 30):
        shares = [(errors < k).double().mean(-1) for k in range(1, threshold)]
        shares.append((errors <= threshold).double().mean(-1))
        torch.testing.assert_close(pose_auc(errors, (threshold,))[:, 0], torch.stack(shares).mean(0))


def test_exact_area_by_fine_sums():
    errors = torch.rand(3, 25).double() * 30
    got = exact_pose_auc(errors, (10,))[:, 0]
    ordered = torch.cat([torch.zeros(3, 1).double(), errors.sort(-1).values], dim=-1)
    x = (torch.arange(200_000).double() + 0.5) / 20_000
    for row, area in zip(ordered, got, strict=True):
        last = (row < 10).sum() - 1
        at = torch.searchsorted(row, x).clamp(max=last)
        start, end = row[at - 1], row[at]
        rising = (at - 1 + (x - start) / (end - start)) / 25
        recall = torch.where(x > row[last], last / 25, rising)
        torch.testing.assert_close(recall.mean(), area, rtol=0, atol=1e-6)


def test_extremes():
    assert exact_pose_auc(torch.zeros(4).double()).tolist() == [1, 1, 1]
    assert exact_pose_auc(torch.full((4,), 90.0)).tolist() == [0, 0, 0]
    assert exact_pose_auc(torch.full((4,), math.nan)).tolist() == [0, 0, 0]
    assert pose_auc(torch.full((4,), math.nan)).tolist() == [0, 0, 0]


# Trajectories


def test_trajectories_are_aligned_first():
    true = random_rigid(2, 6)
    similarity = random_similarity()
    errors = trajectory_errors(moved_world(true, similarity), true)
    torch.testing.assert_close(errors.rmse, torch.zeros(2).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(errors.alignment.scale, 1 / similarity.scale.expand(2))


def test_cameras_in_one_place_are_as_far_off_as_the_truth_is_wide():
    true = random_rigid(5)
    centers = invert_rigid(true)[:, :, 3]
    distances = (centers - centers.mean(0)).norm(dim=-1)
    errors = trajectory_errors(torch.eye(3, 4).double().expand(5, 3, 4), true)
    torch.testing.assert_close(errors.rmse, distances.square().mean().sqrt())
    torch.testing.assert_close(errors.mean, distances.mean())
    torch.testing.assert_close(errors.median, distances.median())


def test_trajectory_of_known_cameras():
    predicted, true = random_rigid(2, 6), random_rigid(2, 6)
    mask = torch.tensor([[True] * 4 + [False] * 2, [True] * 2 + [False] * 4])
    true[~mask], predicted[0, 5] = math.nan, math.inf
    errors = trajectory_errors(predicted, true, mask)
    alone = trajectory_errors(predicted[0, :4], true[0, :4])
    torch.testing.assert_close(errors.rmse[0], alone.rmse)
    torch.testing.assert_close(errors.median[0], alone.median)
    assert errors.rmse[1].isnan(), "two cameras always fit"
    predicted[0, 0, 0, 0] = math.nan
    assert trajectory_errors(predicted, true, mask).rmse.isnan().all()


@pytest.mark.usefixtures("unchecked")
def test_what_is_refused():
    cameras = random_rigid(2, 3)
    with pytest.raises(ValueError, match=r"^predicted must have at least 2 views, got 1$"):
        pairwise_pose_errors(cameras[:, :1], cameras[:, :1])
    with pytest.raises(ValueError, match=r"^predicted must have at least 3 views, got 2$"):
        trajectory_errors(cameras[:, :2], cameras[:, :2])
    with pytest.raises(ValueError, match=r"^true must have shape \(2, 3, 3, 4\), got \(3, 3, 4\)$"):
        pairwise_pose_errors(cameras, cameras[0])
    with pytest.raises(ValueError, match=r"^mask must have shape \(2, 3\), got \(2, 2\)$"):
        trajectory_errors(cameras, cameras, torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"^mask must be bool, got torch.uint8$"):
        trajectory_errors(cameras, cameras, torch.ones(2, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"^thresholds must be whole degrees above 0, got 2.5$"):
        pose_auc(torch.zeros(3), (2.5,))
    with pytest.raises(ValueError, match=r"^thresholds must be positive, got 0$"):
        exact_pose_auc(torch.zeros(3), (0,))
    with pytest.raises(ValueError, match=r"^errors_deg must hold at least 1 pair, got \(2, 0\)$"):
        exact_pose_auc(torch.zeros(2, 0))


def test_float32_input_is_computed_in_float64():
    cameras = compose_rigid(random_rigid(4), torch.eye(3, 4).double()).float()
    turned = torch.cat([rodrigues(AXES[0], 1e-4).float() @ cameras[..., :3], cameras[..., 3:]], dim=-1)
    errors = pairwise_pose_errors(turned, cameras)
    assert errors.rotation_deg.dtype == torch.float64
    assert errors.rotation_deg.max() < 0.02, "acos in float32 would be off by up to 0.03 degrees"
