import pytest
import torch

from geomtx.models.queries import batch_queries, check_queries

IMAGES = torch.zeros(2, 3, 3, 10, 20)


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
    check_queries(torch.tensor([row]).expand(2, 1, 3), IMAGES)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([3, 5, 5], r"^query_points must lie in one of 3 views of 20x10 pixels, got \[3"),
        ([-1, 5, 5], r"^query_points must lie in one of 3 views of 20x10 pixels, got \[-1"),
        ([0, 20.0, 5], r"^query_points must lie in one of 3 views of 20x10 pixels, got \[0.0, 20.0"),
        ([0, 5, float("nan")], r"^query_points must lie in one of 3 views of 20x10 pixels, got "),
        ([0.5, 5, 5], r"^query_points must name views by whole numbers, as \(view, x, y\), got \[0.5, "),
    ],
)
def test_queries_outside(row, message):
    with pytest.raises(ValueError, match=message):
        check_queries(torch.tensor([[1.0, 2, 3], row]).expand(2, 2, 3), IMAGES)
