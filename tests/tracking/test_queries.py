import pytest
import torch

from geomtx.tracking import local_queries, support_queries
from geomtx.tracking.queries import batch_queries, check_queries

HW = (10, 20)


def test_queries_get_the_axis_of_scenes():
    assert batch_queries(torch.zeros(4, 3), 1, 2, 3).shape == (1, 4, 3)
    assert batch_queries(torch.zeros(2, 4, 2), 2, 2, 3).shape == (2, 4, 2)
    with pytest.raises(ValueError, match=r"^query_points must have shape \(2, N, 3\), got \(2, 4, 2\)$"):
        batch_queries(torch.zeros(2, 4, 2), 2, 3)


@pytest.mark.usefixtures("unchecked")
def test_a_list_is_no_tensor():
    with pytest.raises(ValueError, match=r"^query_points must be a tensor, got list; "):
        batch_queries([(0, 1.0, 2.0)], 1, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("row", [[0, -0.5, -0.5], [2, 19.5, 9.5], [1, 3.25, 4.75]])
def test_queries_inside(row):
    check_queries(torch.tensor([row]).expand(2, 1, 3), 3, HW)
    check_queries(torch.tensor([row]), 3, HW)
    check_queries(torch.tensor([row[1:]]), 1, HW)
    check_queries(torch.zeros(2, 0, 3), 3, HW)


OUTSIDE = [
    ([3, 5, 5], r"lie in one of 3 views of 20x10 pixels, got \[3"),
    ([-1, 5, 5], r"lie in one of 3 views of 20x10 pixels, got \[-1"),
    ([0, 20.0, 5], r"lie in one of 3 views of 20x10 pixels, got \[0.0, 20.0"),
    ([0, 5, 9.75], r"lie in one of 3 views of 20x10 pixels, got \[0.0, 5.0, 9.75"),
    ([0, 5, float("nan")], r"be finite, got \[0.0, 5.0, nan"),
    ([float("nan"), 5, 5], r"be finite, got \[nan, 5.0"),
    ([0, float("inf"), 5], r"be finite, got \[0.0, inf"),
    ([0.5, 5, 5], r"name views by whole numbers, as \(view, x, y\), got \[0.5, "),
]


@pytest.mark.parametrize(("row", "message"), OUTSIDE)
def test_queries_outside(row, message):
    queries = torch.tensor([[1.0, 2, 3], row]).expand(2, 2, 3)
    with pytest.raises(ValueError, match=r"^query_points must " + message):
        check_queries(queries, 3, HW)
    with pytest.raises(ValueError, match=r"^points must " + message.replace("view", "frame")):
        check_queries(queries, 3, HW, name="points", view="frame")


def test_an_image_may_be_larger_than_its_maps_say():
    queries = torch.tensor([[0, 22.5, 12.5]])
    check_queries(queries, 1, HW, slack_px=3)
    with pytest.raises(
        ValueError, match=r"^query_points must lie in one of 1 views of 20x10 pixels, got \[0.0, 22.5, "
    ):
        check_queries(queries, 1, HW, slack_px=2)
    with pytest.raises(
        ValueError, match=r"^query_points must lie in one of 1 views of 20x10 pixels, got \[0.0, -0.75, "
    ):
        check_queries(torch.tensor([[0, -0.75, 0]]), 1, HW, slack_px=3)


def test_nothing_is_looked_at_where_there_are_no_values():
    outside = torch.tensor([[7.0, 5, 5]])
    check_queries(outside.to("meta"), 3, HW, on_any_device=True)

    def double(queries: torch.Tensor) -> torch.Tensor:
        check_queries(queries, 3, HW, on_any_device=True)
        return 2 * queries

    compiled = torch.compile(double, backend="eager", fullgraph=True)
    assert torch.equal(compiled(outside), 2 * outside)


@pytest.mark.cuda
def test_an_accelerator_is_waited_for_only_on_demand():
    outside = torch.tensor([[7.0, 5, 5]], device="cuda")
    check_queries(outside, 3, HW)
    with pytest.raises(ValueError, match=r"^query_points must lie in one of 3 views of 20x10 pixels, got \[7.0, "):
        check_queries(outside, 3, HW, on_any_device=True)


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
    with pytest.raises(ValueError, match=r"^size must "):
        local_queries(torch.rand(1, 2, 3), (20, 20), 0)
    with pytest.raises(ValueError, match=r"^extent_px must "):
        local_queries(torch.rand(1, 2, 3), (20, 20), 2, extent_px=0)
