from __future__ import annotations

import pytest
import torch

from geomtx.geometry import depth_edges

K = torch.tensor([[100.0, 0, 20], [0, 100, 15], [0, 0, 1]])


def test_pixels_between_two_surfaces_are_on_an_edge_and_their_neighbours_are_not() -> None:
    depth = torch.full((30, 40), 3.0)
    depth[:, :15] = 1.0
    assert not depth_edges(depth, K).any()  # a step alone has none
    depth[:, 15], depth[:, 16] = 1.7, 2.3
    expected = torch.zeros(30, 40, dtype=torch.bool)
    expected[:, 15:17] = True
    assert torch.equal(depth_edges(depth, K), expected)
    turned = K[[1, 0, 2]][:, [1, 0, 2]]
    assert torch.equal(depth_edges(depth.mT, turned), expected.mT)


def test_slanted_surfaces_and_thin_things_are_no_edges() -> None:
    """A plane up to the largest slant, a pole in front and a gap to what is behind."""
    x = (torch.arange(40.0) - 20) / 100
    for slant in (60.0, 73.0):
        plane = 2 / (1 + x * torch.tan(torch.tensor(slant).deg2rad()))
        plane = plane.where(plane > 0, torch.nan).expand(30, 40)
        assert not depth_edges(plane, K).any()
    assert depth_edges(2 / (1 + x.clamp(min=-0.9 / 20) * 20).expand(30, 40), K, max_slant_deg=80).any()
    thin = torch.full((30, 40), 3.0)
    thin[:, 10], thin[:, 20] = 1.0, 9.0
    assert not depth_edges(thin, K).any()


def test_what_is_unknown_is_nobodys_neighbour() -> None:
    depth = torch.tensor([1.0, 2.0, 3.0, 4.0]).repeat(3, 1)
    assert depth_edges(depth, K).sum() == 6
    for hole in (torch.nan, 0.0, -1.0, torch.inf):
        holed = depth.clone()
        holed[:, 0] = hole
        assert depth_edges(holed, K).sum() == 3
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[:, 3] = False
    batch = depth_edges(depth.expand(2, 3, 4), K.expand(2, 3, 3), mask.expand(2, 3, 4))
    assert batch.sum((1, 2)).tolist() == [3, 3]
    assert not depth_edges(depth[:, :2], K).any()


def test_what_is_asked_of_edges_is_checked() -> None:
    with pytest.raises(ValueError, match=r"max_slant_deg must be in 0 … 90, got 120"):
        depth_edges(torch.ones(3, 4), K, max_slant_deg=120)
    with pytest.raises(ValueError, match=r"mask must have shape \(3, 4\), got \(4, 3\)"):
        depth_edges(torch.ones(3, 4), K, torch.ones(4, 3, dtype=torch.bool))
