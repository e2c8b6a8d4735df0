import pytest
import torch
from torch import nn

from geomtx.encoder.scopes import ask_head_dim, check_order, mask_own_view, number_blocks
from geomtx.layers.block import TransformerBlock


def test_cross_attention_is_of_other_views_where_there_are_any():
    x = torch.zeros(1, 2, 2, 4)
    pairs = mask_own_view(x, None)
    assert pairs[0, 0].int().tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
    alone = mask_own_view(x, torch.tensor([[[True, False], [False, False]]]))
    assert alone[0, 0].int().tolist() == [[1, 0, 0, 0]] * 4


def test_blocks_are_numbered_frame_and_global_apart():
    order = (("frame", "global"), ("cross", "frame"), ("frame",))
    assert number_blocks(order) == (
        (("frame", 0), ("global", 0)), (("cross", 1), ("frame", 1)), (("frame", 2),),
    )  # fmt: skip


@pytest.mark.usefixtures("unchecked")
def test_orders_use_up_the_blocks():
    check_order((("frame", "global"), ("cross", "frame")), 2, 2)
    with pytest.raises(ValueError, match=r"^order must use each block once, 1 frame and 1 global ones, got 2 and 0"):
        check_order((("frame", "frame"),), 1, 1)
    with pytest.raises(ValueError, match=r"^scope must "):
        check_order((("local",),), 1, 0)  # type: ignore[arg-type]


def test_the_head_dimension_is_asked_of_the_first_block_that_has_one():
    assert ask_head_dim([nn.Identity(), TransformerBlock(16, 2)]) == 8
    with pytest.raises(ValueError, match=r"^head_dim must be given for blocks without"):
        ask_head_dim([nn.Identity()])
