from __future__ import annotations

import numpy as np
import pytest
import torch

from geometry.random_cameras import random_rigid, rodrigues
from geomtx.data import FrameChoice, SceneError, rank_by_pose
from geomtx.geometry import invert_rigid, rotation_angle


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_uniform_choice_reaches_all_frames(rng: np.random.Generator) -> None:
    chosen = np.stack([FrameChoice()(10, 4, rng) for _ in range(500)])
    assert chosen.shape == (500, 4)
    assert chosen.dtype == np.int64
    for column in chosen.T:
        assert np.bincount(column, minlength=10).min() > 25


def test_sequences_shorter_than_the_number_of_views_repeat(rng: np.random.Generator) -> None:
    assert set(FrameChoice()(2, 24, rng)) == {0, 1}


def test_without_duplicates(rng: np.random.Generator) -> None:
    choice = FrameChoice(allow_duplicates=False)
    for _ in range(20):
        assert sorted(choice(6, 6, rng)) == list(range(6))
    with pytest.raises(SceneError, match=r"^num_views must be at most 6 without duplicates, got 7$"):
        choice(6, 7, rng)
    with pytest.raises(SceneError, match=r"^num_views must be at most 1 without duplicates, got 2$"):
        choice(1, 2, rng)


@pytest.mark.parametrize(
    ("choice", "radius"),
    [(FrameChoice(expand_ratio=2), 8), (FrameChoice(expand_ratio=0.1), 1), (FrameChoice(expand_range=5), 5)],
)
def test_nearby_choice(choice: FrameChoice, radius: int, rng: np.random.Generator) -> None:
    offsets = []
    for _ in range(300):
        anchor, *others = choice(100, 4, rng)
        assert all(0 <= other < 100 for other in others)
        offsets += [other - anchor for other in others]
    assert min(offsets) == -radius
    assert max(offsets) == radius - 1


def test_choice_by_ranking(rng: np.random.Generator) -> None:
    ranking = (np.arange(8)[:, None] + np.arange(8)) % 8  # the next ones are the nearest
    offsets = set()
    for _ in range(200):
        anchor, *others = FrameChoice(num_nearest=3)(8, 5, rng, ranking=ranking)
        offsets |= {(other - anchor) % 8 for other in others}
    assert offsets == {0, 1, 2}


def test_single_view(rng: np.random.Generator) -> None:
    assert FrameChoice(expand_ratio=2)(5, 1, rng).shape == (1,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rng: FrameChoice()(0, 2, rng), r"^num_frames must be positive, got 0$"),
        (lambda rng: FrameChoice()(3, 0, rng), r"^num_views must be positive, got 0$"),
        (lambda rng: FrameChoice(expand_ratio=0.0), r"^expand_ratio must be positive, got 0.0$"),
        (lambda rng: FrameChoice(expand_range=-1), r"^expand_range must be positive, got -1$"),
        (lambda rng: FrameChoice(num_nearest=0), r"^num_nearest must be positive, got 0$"),
        (lambda rng: FrameChoice(1.0, 2), r"^expand_range must be None beside expand_ratio, got 2$"),
    ],
)
def test_refused(call: object, message: str, rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match=message):
        call(rng)


# Ranking


def test_ranking_against_the_formula() -> None:
    poses = random_rigid(9)
    centers = invert_rigid(poses)[..., 3]
    apart = torch.cdist(centers, centers)
    median = apart[tuple(torch.triu_indices(9, 9, 1))].quantile(0.5)
    angle = rotation_angle(poses[:, None, :, :3].expand(9, 9, 3, 3), poses[None, ..., :3].expand(9, 9, 3, 3))
    for weight in (1.0, 0.0, 3.0):
        distance = angle / torch.pi + weight * apart / median
        ranking = rank_by_pose(poses.numpy(), translation_weight=weight)
        ranked = distance.gather(1, torch.from_numpy(ranking))[:, 1:]
        assert (ranked.diff(dim=1) >= -1e-9).all()
        np.testing.assert_array_equal(ranking[:, 0], np.arange(9))
        np.testing.assert_array_equal(np.sort(ranking), np.tile(np.arange(9), (9, 1)))


def test_ranking_doesnt_depend_on_the_unit() -> None:
    poses = random_rigid(12).numpy()
    scaled = poses.copy()
    scaled[:, :, 3] *= 1000
    np.testing.assert_array_equal(rank_by_pose(poses), rank_by_pose(scaled))


def test_ranking_of_small_angles_from_one_place() -> None:
    """A millionth of a degree apart: the trace of a rotation doesn't tell them from zero."""
    axis = torch.tensor([0.0, 1, 0])
    rotations = torch.stack([rodrigues(axis, 1e-8 * number) for number in (0, 3, 1, 2)])
    poses = torch.cat([rotations, torch.zeros(4, 3, 1, dtype=torch.float64)], dim=-1)
    np.testing.assert_array_equal(rank_by_pose(poses.numpy())[0], [0, 2, 3, 1])


def test_ranking_keeps_the_nearest_and_the_frame_first() -> None:
    poses = random_rigid(1).repeat(6, 1, 1).numpy()
    ranking = rank_by_pose(poses, num_nearest=3)
    assert ranking.shape == (6, 3)
    np.testing.assert_array_equal(ranking[:, 0], np.arange(6))
    assert rank_by_pose(poses[:1]).tolist() == [[0]]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_ranking_refuses(value: float) -> None:
    poses = random_rigid(3).numpy()
    with pytest.raises(ValueError, match=r"^cam_from_world must have shape \(N, 3, 4\), got \(3, 4\)$"):
        rank_by_pose(poses[0])
    with pytest.raises(ValueError, match=r"^cam_from_world must have shape \(N, 3, 4\), got \(0, 3, 4\)$"):
        rank_by_pose(poses[:0])
    poses[1, 2, 3] = value
    with pytest.raises(ValueError, match=r"^cam_from_world must be finite, got NaN or infinity$"):
        rank_by_pose(poses)
