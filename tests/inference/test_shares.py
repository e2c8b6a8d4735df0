from typing import Any

import pytest
import torch

from geomtx.inference.shares import Shares, deal_out

Results = dict[int, list[dict[str, Any]]]


def test_shares():
    shares = Shares((3, 1, 2), 2)
    assert (shares.start, shares.here) == (4, slice(4, 6))
    assert [shares._replace(rank=rank).here for rank in (0, 1)] == [slice(0, 3), slice(3, 4)]
    assert shares.times(5) == Shares((15, 5, 10), 2)


def test_views_are_dealt_out_within_a_process_group():
    with pytest.raises(RuntimeError, match=r"^torch\.distributed has no process group; call init_process_group first$"):
        deal_out(3)


@pytest.mark.parametrize("num_processes", [2, 3])
def test_attention_is_that_of_all_tokens(parallel_results: Results, num_processes: int):
    """Processes exchange heads; some keys are masked."""
    for results in parallel_results[num_processes]:
        here, expected = results["attention torch.float64"]
        assert here.shape == expected.shape
        torch.testing.assert_close(here, expected, rtol=0, atol=1e-14)


def test_half_precision_stays_what_it_is(parallel_results: Results):
    for results in parallel_results[2] + parallel_results[3]:
        here, expected = results["attention torch.bfloat16"]
        assert here.dtype == torch.bfloat16
        torch.testing.assert_close(here, expected)
