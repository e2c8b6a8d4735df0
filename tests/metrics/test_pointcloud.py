import math

import pytest
import torch
from torch import Tensor

from geometry.random_cameras import AXES, random_rotations, rodrigues
from geomtx.geometry import Similarity, apply_similarity
from geomtx.metrics import (
    DTUScan,
    align_by_nearest,
    dtu_scores,
    point_map_normals,
    point_map_scores,
    pointcloud_scores,
)


def random_points(*shape: int) -> Tensor:
    return torch.randn(*shape, 3, dtype=torch.float64)


def planes(distance: float = 0.3, size: int = 12) -> tuple[Tensor, Tensor]:
    """The same lattice of unit spacing twice, `distance` apart along z: predicted, true."""
    x, y = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    true = torch.stack([x, y, torch.zeros_like(x)], dim=-1).reshape(-1, 3).double()
    return true + torch.tensor([0, 0, distance]).double(), true


def test_a_cloud_compared_with_itself():
    points = random_points(300)
    scores = pointcloud_scores(points, points[torch.randperm(300)])
    assert [score.item() for score in scores[:5]] == [0] * 5
    assert scores.normal_consistency.isnan()


def test_distances_both_ways_by_brute_force():
    predicted, true = random_points(200), random_points(331) * 1.4
    distances = (predicted[:, None] - true).norm(dim=-1)
    there, back = distances.min(1).values, distances.min(0).values
    scores = pointcloud_scores(predicted, true)
    torch.testing.assert_close(scores.accuracy, there.mean())
    torch.testing.assert_close(scores.completeness, back.mean())
    torch.testing.assert_close(scores.overall, (there.mean() + back.mean()) / 2)
    torch.testing.assert_close(scores.accuracy_median, there.quantile(0.5))
    torch.testing.assert_close(scores.completeness_median, back.quantile(0.5))
    scores = pointcloud_scores(predicted, true, max_distance=0.5)
    torch.testing.assert_close(scores.accuracy, there[there < 0.5].mean())
    torch.testing.assert_close(scores.completeness_median, back[back < 0.5].quantile(0.5))


def test_which_way_is_which():
    """A part of the truth is accurate, not complete; the truth and more is complete, not accurate."""
    true = random_points(300)
    part = pointcloud_scores(true[:30], true)
    assert part.accuracy == 0
    assert part.completeness > 0.1
    more = pointcloud_scores(torch.cat([true, random_points(300) * 3]), true)
    assert more.completeness == 0
    assert more.accuracy > 0.1


def test_fewer_queries_still_look_at_all_points():
    predicted, true = random_points(500), random_points(700)
    scores = pointcloud_scores(predicted, true, max_queries=100)
    chosen = torch.arange(0, 500, 5)
    torch.testing.assert_close(scores.accuracy, pointcloud_scores(predicted[chosen], true).accuracy)
    chosen = torch.arange(0, 700, 7)
    torch.testing.assert_close(scores.completeness, pointcloud_scores(predicted, true[chosen]).completeness)
    torch.testing.assert_close(
        pointcloud_scores(predicted, true, max_queries=700), pointcloud_scores(predicted, true), equal_nan=True
    )


def test_normals_of_any_sign_and_length():
    predicted, true = planes()
    normals = torch.tensor([0.0, 0, 1]).double().expand(len(true), 3).clone()
    tilted = normals @ rodrigues(AXES[0], math.radians(60)).mT * torch.randn(len(true), 1) * 5
    scores = pointcloud_scores(predicted, true, predicted_normals=tilted, true_normals=normals)
    torch.testing.assert_close(scores.normal_consistency, torch.tensor(0.5).double())
    tilted[::2] = 0
    scores = pointcloud_scores(predicted, true, predicted_normals=tilted, true_normals=normals)
    torch.testing.assert_close(scores.normal_consistency, torch.tensor(0.5).double())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_clouds_that_are_empty_or_not_finite_are_nan(bad):
    points = random_points(10)
    broken = points.clone()
    broken[3, 1] = bad
    for predicted, true in ((points[:0], points), (points, points[:0]), (broken, points), (points, broken)):
        assert all(score.isnan() for score in pointcloud_scores(predicted, true))


# Point maps


def test_point_maps_are_aligned_by_their_pixels():
    true = random_points(2, 6, 8)
    similarity = Similarity(torch.tensor(3.0).double(), random_rotations(), random_points())
    predicted = apply_similarity(similarity, true.reshape(-1, 3)).reshape(true.shape)
    scores = point_map_scores(predicted, true)
    torch.testing.assert_close(scores.overall, torch.zeros(()).double(), rtol=0, atol=1e-12)
    assert point_map_scores(predicted, true, align=False).overall > 0.1


def test_pixels_that_are_not_known_count_for_nothing():
    predicted, true = random_points(2, 6, 8), random_points(2, 6, 8)
    mask = torch.rand(2, 6, 8) < 0.6
    expected = point_map_scores(predicted, true, mask)
    predicted[~mask], true[~mask] = math.nan, math.inf
    torch.testing.assert_close(point_map_scores(predicted, true, mask), expected, equal_nan=True)
    torch.testing.assert_close(point_map_scores(predicted, true), expected, equal_nan=True)
    nothing = point_map_scores(predicted, true, torch.zeros_like(mask))
    assert all(score.isnan() for score in nothing)
    predicted[mask] = math.nan
    assert point_map_scores(predicted, true, mask).overall.isnan()


def test_normals_of_a_plane():
    rows, columns = torch.meshgrid(torch.arange(7), torch.arange(9), indexing="ij")
    turn = random_rotations()
    points = torch.stack([columns * 0.1, rows * 0.2, torch.zeros_like(rows)], dim=-1).double() @ turn.mT + 3
    mask = torch.ones(7, 9, dtype=torch.bool)
    mask[3, 4] = False
    points[3, 4] = math.nan
    normals = point_map_normals(points, mask)
    has_normal = torch.zeros(7, 9, dtype=torch.bool)
    has_normal[1:-1, 1:-1] = True
    for row, column in ((2, 4), (4, 4), (3, 3), (3, 5)):
        has_normal[row, column] = False
    assert (normals[~has_normal] == 0).all()
    torch.testing.assert_close(normals[has_normal], turn[:, 2].expand(int(has_normal.sum()), 3))
    scores = point_map_scores(points, points, mask, with_normals=True)
    torch.testing.assert_close(scores.normal_consistency, torch.ones(()).double())


def test_iterated_closest_points_finish_an_alignment():
    target = random_points(400) * torch.tensor([3.0, 2.0, 1.0])
    turn, shift = rodrigues(AXES[3], 0.03), torch.tensor([0.02, -0.03, 0.01]).double()
    source = (target[:300] - shift) @ turn
    outlier = torch.full((1, 3), 100.0).double()
    found = align_by_nearest(torch.cat([source, outlier]), target, max_distance=0.5)
    torch.testing.assert_close(found.rotation, turn, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.translation, shift, rtol=0, atol=1e-9)
    assert found.scale == 1
    nothing = align_by_nearest(outlier, target, max_distance=0.5)
    torch.testing.assert_close(nothing.rotation, torch.eye(3).double())


@pytest.mark.parametrize(("max_distance", "takes_part"), [(0.49, False), (0.5, True)])
def test_pairs_take_part_up_to_the_largest_distance(max_distance, takes_part):
    """Three points are in place; the fourth's nearest is 0.5 away, along an axis in which all could move."""
    target = torch.tensor([[0.0, 0, 0], [10, 0, 0], [0, 10, 0], [0, 0, 10]]).double()
    source = target.clone()
    source[3, 2] += 0.5
    found = align_by_nearest(source, target, max_distance=max_distance)
    moved = (found.translation.abs().max() > 1e-3) or ((found.rotation - torch.eye(3).double()).abs().max() > 1e-3)
    assert bool(moved) == takes_part


# DTU


def scan(**changes: object) -> DTUScan:
    """A floor of 101×101 points, 1 mm apart, in a volume of 100×100×40 mm; all of it above the ground plane."""
    _, points = planes(size=101)
    whole = DTUScan(
        points,
        torch.tensor([[0.0, 0, -20], [100, 100, 20]]).double(),
        torch.ones(51, 51, 21, dtype=torch.bool),
        2.0,
        torch.tensor([0.0, 0, 1, 10]).double(),
    )
    return whole._replace(**changes)


def test_dtu_of_a_floor_3_mm_too_high():
    predicted = scan().points + torch.tensor([0, 0, 3.0])
    scores = dtu_scores(predicted, scan())
    assert [score.item() for score in scores] == [3] * 5
    assert torch.stack(dtu_scores(scan().points, scan())).abs().max() == 0


def test_dtu_leaves_out_what_is_far_outside_and_what_is_20_mm_off():
    true = scan()
    box_low, box_high = true.box[0] - 60, true.box[1] + 120
    outside = torch.stack([box_low - 0.01, box_high])
    inside = torch.stack([box_low, box_high - 0.01])
    assert dtu_scores(torch.cat([true.points, outside, inside]), true).overall == 0
    lifted = true.points + torch.tensor([0, 0, 19.9])
    assert dtu_scores(lifted, true).accuracy.item() == pytest.approx(19.9)
    assert all(score.isnan() for score in dtu_scores(true.points + torch.tensor([0, 0, 20.0]), true))
    assert dtu_scores(outside, true).completeness.isnan()


def test_dtu_margin_is_60_mm_below_and_120_above():
    """A true point at the margin is found where the prediction there is kept, and missed where it is cut away."""
    box = scan().box
    for end, margin in ((0, -60.0), (1, 120.0)):
        at_edge = box[end] + margin
        for step, inside in ((-0.5, end == 1), (0.5, end == 0)):
            point = (at_edge + step)[None]
            true = scan(points=point, ground=torch.tensor([0.0, 0, 0, 1]).double())
            assert dtu_scores(point, true, spacing=0).completeness.isnan().item() != inside


def test_dtu_looks_from_observed_voxels_only():
    true = scan()
    observed = true.observed.clone()
    observed[25:] = False  # x of 49 mm and more, for voxels of 2 mm whose centres are at multiples
    predicted = true.points.clone()
    predicted[predicted[:, 0] > 49, 2] += 5
    scores = dtu_scores(predicted, true._replace(observed=observed))
    assert scores.accuracy == 0
    assert scores.completeness > 1


def test_dtu_asks_for_points_above_the_table_only():
    true = scan()
    half = scan(ground=torch.tensor([1.0, 0, 0, -50]).double())  # x > 50
    predicted = true.points[true.points[:, 0] > 50]
    assert dtu_scores(predicted, half).completeness == 0
    assert dtu_scores(predicted, true).completeness > 1


def test_dtu_thins_where_points_are_dense():
    """A hundred copies of a bad point weigh like one."""
    true = scan()
    bad = torch.tensor([[50.0, 50, 10]]).double() + torch.rand(100, 3).double() * 0.1
    count = len(true.points)
    scores = dtu_scores(torch.cat([true.points, bad]), true)
    assert scores.accuracy.item() == pytest.approx(10 / (count + 1), rel=0.02)
    assert dtu_scores(torch.cat([true.points, bad]), true, spacing=0).accuracy > 50 * scores.accuracy


@pytest.mark.usefixtures("unchecked")
def test_what_is_refused():
    points = random_points(4)
    with pytest.raises(ValueError, match=r"^predicted must have shape \(N, 3\), got \(2, 4, 3\)$"):
        pointcloud_scores(random_points(2, 4), points)
    with pytest.raises(ValueError, match=r"^normals must be given for both clouds, got them for one$"):
        pointcloud_scores(points, points, true_normals=points)
    with pytest.raises(ValueError, match=r"^predicted_normals must have shape \(4, 3\), got \(5, 3\)$"):
        pointcloud_scores(points, points, predicted_normals=random_points(5), true_normals=points)
    with pytest.raises(ValueError, match=r"^true_normals must have shape \(4, 3\), got \(4, 2\)$"):
        pointcloud_scores(points, points, predicted_normals=points, true_normals=points[:, :2])
    with pytest.raises(ValueError, match=r"^max_distance must be positive, got 0$"):
        pointcloud_scores(points, points, max_distance=0)
    with pytest.raises(ValueError, match=r"^max_queries must be positive, got 0$"):
        pointcloud_scores(points, points, max_queries=0)
    with pytest.raises(ValueError, match=r"^true must have shape \(2, 4, 3\), got \(4, 3\)$"):
        point_map_scores(random_points(2, 4), points)
    with pytest.raises(ValueError, match=r"^mask must have shape \(2, 4\), got \(2, 3\)$"):
        point_map_normals(random_points(2, 4), torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"^mask must be bool, got torch.float32$"):
        point_map_scores(random_points(2, 4), random_points(2, 4), torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"^num_iterations must be positive, got 0$"):
        align_by_nearest(points, points, max_distance=1.0, num_iterations=0)
    with pytest.raises(ValueError, match=r"^spacing must be positive, got -1$"):
        dtu_scores(points, scan(), spacing=-1)
    with pytest.raises(ValueError, match=r"^predicted must be finite, got NaN or inf$"):
        dtu_scores(points / 0, scan(), spacing=0)
