import pytest
import torch

from geomtx.layers.placement import empty_on


def test_shape_precision_and_device():
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
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_what_waits_for_a_gpu_is_pinned():
    maps = torch.zeros(2, 5, 7, 3, device="cuda").movedim(-1, 1)
    assert empty_on(torch.device("cpu"), maps).is_pinned()
    assert not empty_on(torch.device("cpu"), maps.cpu()).is_pinned()
    assert empty_on(None, maps).is_cuda
