import pytest
import torch

from geomtx.heads.chunk import map_chunks


@pytest.mark.parametrize("view_chunk", [None, 1, 2, 3, 5, 7, 100])
def test_pieces_are_put_together_in_order(view_chunk):
    x = torch.randn(7, 3)
    doubled, rows = map_chunks(lambda part: (2 * x[part], x[part].sum(-1)), 7, view_chunk)
    assert torch.equal(doubled, 2 * x)
    assert torch.equal(rows, torch.cat([row[None] for row in x.sum(-1)]))


@pytest.mark.parametrize(("view_chunk", "sizes"), [(None, [7]), (1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (9, [7])])
def test_never_more_at_a_time_than_asked(view_chunk, sizes):
    x, seen = torch.randn(7, 2), []

    def function(part):
        seen.append(len(x[part]))
        return (x[part],)

    map_chunks(function, 7, view_chunk)
    assert seen == sizes


def test_gradients_flow_through_the_pieces():
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x: map_chunks(lambda part: (x[part].exp(), x[part] ** 3), 5, 2), (x,))


@pytest.mark.parametrize("view_chunk", [0, -1])
def test_chunks_have_views(view_chunk):
    with pytest.raises(ValueError, match=rf"^view_chunk must be positive, got {view_chunk}$"):
        map_chunks(lambda part: (torch.zeros(1),), 3, view_chunk)


@pytest.mark.parametrize("view_chunk", [None, 2])
def test_outputs_may_be_put_together_elsewhere(view_chunk):
    x = torch.randn(5, 3)
    (there,) = map_chunks(lambda part: (x[part],), 5, view_chunk, device=torch.device("meta"))
    assert (there.device.type, there.shape) == ("meta", (5, 3))
    (here,) = map_chunks(lambda part: (x[part],), 5, view_chunk, device=torch.device("cpu"))
    assert torch.equal(here, x)


@pytest.mark.cuda
def test_from_the_gpu_to_pinned_memory_of_the_host():
    x = torch.randn(500, 300, device="cuda")
    (out,) = map_chunks(lambda part: (x[part] * 2,), 500, 7, device=torch.device("cpu"))
    assert out.is_pinned()
    assert torch.equal(out, (x * 2).cpu())
