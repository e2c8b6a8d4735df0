from __future__ import annotations

import pytest
import torch
from torch import Tensor

from geometry.random_cameras import random_rigid, random_rotations
from geomtx.geometry.similarity import Similarity, fit_camera_similarity
from geomtx.scene.known.agreement import agree_on_cameras, agree_on_positions, agree_on_scale


def moved(poses: Tensor, similarity: Similarity) -> Tensor:
    """`world_from_cam` in another world."""
    scale, rotation, translation = similarity
    centers = scale * poses[..., 3] @ rotation.mT + translation
    return torch.cat([rotation @ poses[..., :3], centers[..., None]], dim=-1)


def some_similarity() -> Similarity:
    return Similarity(torch.tensor(2.7).double(), random_rotations(1)[0], 5 * torch.randn(3).double())


def assert_same(got: Similarity, want: Similarity, tolerance: float = 1e-9) -> None:
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("places", ["apart", "line", "two"])
def test_cameras_with_rotations_determine_a_similarity(places: str) -> None:
    torch.manual_seed(0)
    source = random_rigid(2 if places == "two" else 6)
    if places == "line":
        source[..., 3] = torch.arange(6.0).double()[:, None] * torch.tensor([1.0, 2, 3]) + 4
    want = some_similarity()
    assert_same(fit_camera_similarity(source, moved(source, want)), want)
    assert_same(agree_on_cameras(source, moved(source, want)).similarity, want)


def test_a_fit_is_batched_and_weighted() -> None:
    torch.manual_seed(1)
    source, want = random_rigid(3, 5), some_similarity()
    target = moved(source, want)
    target[:, 0] = random_rigid(3)
    weights = torch.ones(3, 5)
    weights[:, 0] = 0
    got = fit_camera_similarity(source, target, weights)
    for scene in range(3):
        assert_same(Similarity(*(part[scene] for part in got)), want)


@pytest.mark.parametrize("wrong", [3, 11])
def test_outliers_count_for_nothing_though_they_are_most(wrong: int) -> None:
    torch.manual_seed(2)
    source, want = random_rigid(18), some_similarity()
    target = moved(source, want)
    target[:wrong] = random_rigid(wrong)
    found = agree_on_cameras(source, target)
    assert_same(found.similarity, want)
    assert found.agrees.tolist() == [False] * wrong + [True] * (18 - wrong)
    assert found.distance[wrong:].max() < 1e-9
    assert found.angle is not None
    assert found.angle[wrong:].max() < 1e-6
    again = agree_on_positions(source[..., 3], target[..., 3])
    assert_same(again.similarity, want)
    assert again.agrees.tolist() == found.agrees.tolist()


def test_a_wrong_rotation_alone_is_an_outlier() -> None:
    torch.manual_seed(3)
    source, want = random_rigid(6), some_similarity()
    target = moved(source, want)
    target[2, :, :3] = random_rotations(1)[0]
    assert agree_on_cameras(source, target).agrees.tolist() == [True, True, False, True, True, True]


def test_noise_is_averaged_and_many_cameras_are_drawn_the_same_every_time() -> None:
    torch.manual_seed(4)
    source, want = random_rigid(70), some_similarity()
    target = moved(source, want)
    target[..., 3] += 0.05 * torch.randn(70, 3).double()
    found, again = (agree_on_cameras(source, target) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(found.similarity, again.similarity, strict=True))
    assert found.agrees.all()
    assert_same(found.similarity, want, 0.05)


def test_many_that_agree_badly_outweigh_two_that_agree_well() -> None:
    """Errors of a tenth of the extent in all cameras: the fit is to most of them, and nearly as good as that to all."""
    torch.manual_seed(8)
    source, want = random_rigid(8), some_similarity()
    target = moved(source, want)
    target[..., 3] += 0.5 * torch.randn(8, 3).double()
    found = agree_on_cameras(source, target)
    assert found.agrees.sum() >= 7
    assert found.threshold > 0.3
    assert found.distance.square().mean().sqrt() < 1.2


def test_cameras_that_hardly_agree_have_a_wider_threshold() -> None:
    torch.manual_seed(5)
    source = random_rigid(9)
    found = agree_on_cameras(source, random_rigid(9))
    assert found.agrees.sum() >= 2
    assert found.similarity.scale.isfinite()
    tight = agree_on_cameras(source, moved(source, some_similarity()), threshold=1e-3)
    assert tight.threshold == pytest.approx(1e-3)


def test_what_determines_no_similarity_is_refused() -> None:
    torch.manual_seed(6)
    source = random_rigid(5)
    line = source.clone()
    line[..., 3] = torch.arange(5.0).double()[:, None] * torch.tensor([1.0, 2, 3]) + 4
    place = source.clone()
    place[..., 3] = 3.0
    with pytest.raises(ValueError, match="known camera positions must not lie on a line, which leaves"):
        agree_on_positions(source[..., 3], line[..., 3])
    hidden = line.clone()
    hidden[4, :, 3] = torch.tensor([1.0, -7, 3])
    with pytest.raises(ValueError, match="camera positions must not lie on a line"):
        agree_on_positions(hidden[..., 3], torch.cat([2 * line[:4, :, 3], line[4:, :, 3] + 30]))
    with pytest.raises(ValueError, match="known cameras must not all be in one place"):
        agree_on_cameras(source, place)
    with pytest.raises(ValueError, match="cameras in both worlds must be at least 3, got 2"):
        agree_on_positions(source[:2, :, 3], source[:2, :, 3])


def test_most_lengths_agree_on_a_scale() -> None:
    torch.manual_seed(7)
    source = torch.rand(1000).double() + 0.1
    target = 3.3 * source * (1 + 0.01 * torch.randn(1000).double())
    target[:600] = torch.rand(600).double() * 9 + 0.1
    scale, agrees = agree_on_scale(source, target)
    assert scale == pytest.approx(3.3, rel=2e-3)
    assert agrees[600:].float().mean() > 0.98
    assert agrees[:600].float().mean() < 0.2
    alone, _ = agree_on_scale(torch.tensor([2.0]), torch.tensor([5.0]))
    assert alone == pytest.approx(2.5)
    apart, _ = agree_on_scale(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 4.0]))
    assert apart.isfinite()
