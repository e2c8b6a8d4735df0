import pytest

from geomtx.inference.shares import Shares, deal_out


def test_shares():
    shares = Shares((3, 1, 2), 2)
    assert (shares.start, shares.here) == (4, slice(4, 6))
    assert [shares._replace(rank=rank).here for rank in (0, 1)] == [slice(0, 3), slice(3, 4)]
    assert shares.times(5) == Shares((15, 5, 10), 2)


def test_views_are_dealt_out_within_a_process_group():
    with pytest.raises(RuntimeError, match=r"^torch\.distributed has no process group; call init_process_group first$"):
        deal_out(3)
