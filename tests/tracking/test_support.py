import pytest
import torch

from geomtx.tracking import local_queries, support_queries


def test_a_grid_in_the_view_of_all_queries():
    queries = torch.tensor([[[2.0, 5, 5], [2, 8, 1]], [[0, 1, 1], [0, 2, 2]]])
    grid = support_queries(queries, (20, 30), 5)
    assert grid.shape == (2, 25, 3)
    assert (grid[..., 0] == torch.tensor([[2.0], [0.0]])).all()
    wanted = {(6 * i + 2.5, 4 * j + 1.5) for i in range(5) for j in range(5)}
    assert {tuple(xy) for xy in grid[0, :, 1:].tolist()} == wanted


def test_views_of_the_grid_are_those_of_the_queries_whatever_their_order():
    view = torch.tensor([0.0, 3, 3, 3, 7, 0])
    queries = torch.cat([view[:, None], torch.rand(6, 2)], dim=-1)[None]
    grid = support_queries(queries, (20, 30), 6)
    counts = {v: int((grid[0, :, 0] == v).sum()) for v in (0, 3, 7)}
    assert counts == {0: 12, 3: 18, 7: 6}
    assert torch.equal(grid, support_queries(queries[:, torch.randperm(6)], (20, 30), 6))
    # Over the whole image in every view.
    for v in (0, 3):
        spread = grid[0, grid[0, :, 0] == v][:, 1:]
        assert (spread.amax(0) - spread.amin(0) >= torch.tensor([15, 10])).all()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 13])
def test_every_point_of_the_grid_is_there_once(size):
    grid = support_queries(torch.rand(1, 3, 3), (64, 64), size)[0, :, 1:]
    assert len({tuple(xy) for xy in grid.tolist()}) == size * size


def test_a_local_grid_is_around_its_query_and_within_the_image():
    queries = torch.tensor([[[1.0, 40, 30], [4, 2, 59]]])
    grid = local_queries(queries, (60, 80), 8, extent_px=16)
    assert grid.shape == (1, 128, 3)
    assert grid[0, :, 0].tolist() == [1.0] * 64 + [4.0] * 64
    first, second = grid[0, :, 1:].split(64)
    torch.testing.assert_close(first.mean(0), torch.tensor([40.0, 30]))
    assert first.amin(0).tolist() == [33, 23]
    assert first.amax(0).tolist() == [47, 37]
    assert second.amin() == 0
    assert second[:, 1].max() == 59


@pytest.mark.usefixtures("unchecked")
def test_errors():
    with pytest.raises(ValueError, match=r"^query_points must have shape \(B, N, 3\), got \(1, 2, 2\)$"):
        support_queries(torch.rand(1, 2, 2), (20, 20), 5)
    with pytest.raises(ValueError, match=r"^size must be a whole number, at least 1, got 0$"):
        local_queries(torch.rand(1, 2, 3), (20, 20), 0)
    with pytest.raises(ValueError, match=r"^extent_px must be positive, got 0$"):
        local_queries(torch.rand(1, 2, 3), (20, 20), 2, extent_px=0)
