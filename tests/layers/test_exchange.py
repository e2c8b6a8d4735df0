from typing import Any

import pytest
import torch

from geomtx.layers import resolve_backend
from geomtx.layers.exchange import SharedAttention, Shares


def test_shares():
    shares = Shares((3, 1, 2), 2)
    assert (shares.start, shares.here) == (4, slice(4, 6))
    assert [shares._replace(rank=rank).here for rank in (0, 1)] == [slice(0, 3), slice(3, 4)]
    assert shares.times(5) == Shares((15, 5, 10), 2)


Results = dict[int, list[dict[str, Any]]]


@pytest.mark.parametrize("num_processes", [2, 3])
@pytest.mark.parametrize("heads", [6, 5])
def test_attention_is_that_of_all_tokens(parallel_results: Results, num_processes: int, heads: int):
    """Heads that processes can share, and heads that they can't; some keys are out."""
    for results in parallel_results[num_processes]:
        here, expected = results[f"attention {heads} torch.float64"]
        assert here.shape == expected.shape
        torch.testing.assert_close(here, expected, rtol=0, atol=1e-14)


def test_half_precision_stays_what_it_is(parallel_results: Results):
    for results in parallel_results[2] + parallel_results[3]:
        here, expected = results["attention 6 torch.bfloat16"]
        assert here.dtype == torch.bfloat16
        torch.testing.assert_close(here, expected)


def test_nothing_is_exchanged_where_all_keys_are_here():
    q, k, v = torch.randn(2, 4, 3, 8), *torch.randn(2, 2, 4, 7, 8)
    mask = torch.rand(2, 1, 1, 7) > 0.3
    shared = SharedAttention(resolve_backend("math"), Shares((3, 4), 0), mask)
    assert torch.equal(shared(q, k, v, mask[..., :3]), resolve_backend("math")(q, k, v, mask))
    assert shared.__name__ == "attend_math"
