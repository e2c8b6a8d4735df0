import pytest
import torch

from geomtx.inference.chunks import empty_on, map_chunks


@pytest.mark.parametrize(
    ("chunk", "sizes"), [(None, [7]), (1, [1] * 7), (2, [2, 2, 2, 1]), (3, [3, 3, 1]), (7, [7]), (100, [7])]
)
def test_chunks_are_put_together_in_order(chunk, sizes):
    x, seen = torch.randn(7, 3), []

    def function(part):
        seen.append(len(x[part]))
        return 2 * x[part], {"sum": x[part].sum(-1)}

    doubled, rows = map_chunks(function, 7, chunk)
    assert torch.equal(doubled, 2 * x)
    assert torch.equal(rows["sum"], x.sum(-1))
    assert seen == sizes


def test_chunks_along_another_axis():
    x = torch.randn(2, 7, 3)
    assert torch.equal(map_chunks(lambda part: x[:, part] + 1, 7, 3, dim=1), x + 1)


def test_gradients_flow_through_chunks():
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x: map_chunks(lambda part: (x[part].exp(), x[part] ** 3), 5, 2), (x,))


def test_chunks_have_entries():
    with pytest.raises(ValueError, match=r"^chunk must be positive, got -1$"):
        map_chunks(lambda part: (torch.zeros(1),), 3, -1)


@pytest.mark.parametrize("chunk", [None, 2])
def test_outputs_may_be_put_together_on_another_device(chunk):
    x = torch.randn(5, 3)
    (there,) = map_chunks(lambda part: (x[part],), 5, chunk, device=torch.device("meta"))
    assert (there.device.type, there.shape) == ("meta", (5, 3))
    (here,) = map_chunks(lambda part: (x[part],), 5, chunk, device=torch.device("cpu"))
    assert torch.equal(here, x)


def test_an_empty_tensor_has_the_shape_precision_and_device_that_are_asked_for():
    like = torch.zeros(2, 3, dtype=torch.float16)
    for device in (None, torch.device("cpu"), torch.device("meta")):
        out = empty_on(device, like)
        assert (out.shape, out.dtype, out.device) == ((2, 3), torch.float16, device or like.device)
    assert empty_on(None, like, 5, 3).shape == (5, 3)


@pytest.mark.parametrize("num", [1, 4])
def test_maps_keep_the_order_of_their_channels(num):
    first, last = torch.zeros(2, 3, 5, 7), torch.zeros(2, 5, 7, 3).movedim(-1, 1)
    assert empty_on(None, first, num, 3, 5, 7).is_contiguous()
    out = empty_on(None, last, num, 3, 5, 7)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert out.shape == (num, 3, 5, 7)


@pytest.mark.cuda
def test_from_the_gpu_to_pinned_memory_of_the_host():
    x = torch.randn(500, 300, device="cuda")
    (out,) = map_chunks(lambda part: (x[part] * 2,), 500, 7, device=torch.device("cpu"))
    assert out.is_pinned()
    torch.cuda.synchronize()
    assert torch.equal(out, (x * 2).cpu())
    assert not empty_on(torch.device("cpu"), x.cpu()).is_pinned()
    assert empty_on(None, x).is_cuda
