import pytest
import torch

from geomtx.tracking import matching
from geomtx.tracking.matching import (
    DescriptorMaps,
    find_reciprocal,
    follow_pixels,
    match_descriptors,
    mutual_neighbours,
)


def shifted_maps(shift: int = 3, noise: float = 0.0) -> DescriptorMaps:
    """Descriptors of two images of one picture, the second one moved to the left."""
    wide = torch.nn.functional.normalize(torch.randn(12, 16 + shift, 10), dim=-1)
    first, second = wide[:, :16], wide[:, shift:]
    first = torch.nn.functional.normalize(first + noise * torch.randn_like(first), dim=-1)
    return DescriptorMaps(first, second, 1 + torch.rand(12, 16), 1 + torch.rand(12, 16))


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_pixels_of_one_place_are_matched(noise):
    found = match_descriptors(shifted_maps(noise=noise), subsample=2)
    right = (found.coords1_px - found.coords2_px == torch.tensor([3, 0])).all(1)
    assert len(right) >= 60
    assert right.double().mean() > (0.6 if noise else 0.8)


def test_matches_are_mutual_and_found_once():
    maps = shifted_maps(noise=0.6)
    first, second = maps.first.flatten(0, 1), maps.second.flatten(0, 1)
    every = set(zip(*(each.tolist() for each in mutual_neighbours(first, second)), strict=True))
    some = find_reciprocal(first, second, torch.arange(0, 192, 3))
    pairs = list(zip(*(each.tolist() for each in some), strict=True))
    assert len(set(pairs)) == len(pairs)
    assert set(pairs) <= every
    everywhere = find_reciprocal(first, second, torch.arange(192), max_rounds=1000)
    assert set(zip(*(each.tolist() for each in everywhere), strict=True)) == every


def test_both_passes_add_up_and_the_first_one_keeps_its_confidence():
    maps = shifted_maps(noise=0.3)
    swapped = maps._replace(confidence1=maps.confidence1 + 5, confidence2=maps.confidence2 + 5)
    one, both = match_descriptors(maps), match_descriptors(maps, swapped)
    assert torch.equal(one.coords1_px, both.coords1_px)
    x1, y1 = one.coords1_px.T
    x2, y2 = one.coords2_px.T
    torch.testing.assert_close(both.confidence, (maps.confidence1[y1, x1] * maps.confidence2[y2, x2]).sqrt())
    torch.testing.assert_close(one.confidence, torch.minimum(maps.confidence1[y1, x1], maps.confidence2[y2, x2]))


def test_the_size_of_blocks_changes_nothing(monkeypatch):
    maps = shifted_maps(noise=0.5)
    whole = match_descriptors(maps, subsample=2)
    points, others = torch.rand(50, 3), torch.rand(40, 3)
    others[20:30] = others[:10]  # alike: the first one counts
    start = torch.arange(50)
    near = matching.find_reciprocal(points, others, start, by_distance=True)
    monkeypatch.setattr(matching, "_TILE_OF_CPU", (7, 11))
    assert all(map(torch.equal, whole, match_descriptors(maps, subsample=2)))
    assert all(map(torch.equal, near, matching.find_reciprocal(points, others, start, by_distance=True)))
    assert not ((near[1] >= 20) & (near[1] < 30)).any()


def test_pixels_are_followed():
    start = torch.tensor([[5, 1], [9, 4], [0, 0]])
    kept, there = follow_pixels(shifted_maps(), start)
    assert {(5, 1), (9, 4)} <= set(map(tuple, kept.tolist()))
    assert torch.equal(there[:2], kept[:2] - torch.tensor([3, 0]))


def test_bad_input():
    maps = shifted_maps()
    with pytest.raises(ValueError, match=r"second must have shape \(H, W, 10\), got"):
        match_descriptors(maps._replace(second=maps.second[..., :5]))
    with pytest.raises(ValueError, match="subsample must be a whole number"):
        match_descriptors(maps, subsample=0)
