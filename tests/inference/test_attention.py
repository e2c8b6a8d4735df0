"""The attention of the ways of running, block by block, against the block itself or its attention with a mask."""

import pytest
import torch
from torch import Tensor, nn

from geomtx import AlternatingEncoder, TransformerBlock
from geomtx.encoder import PatchEmbedding
from geomtx.encoder.scopes import AcrossViews, WithinViews
from geomtx.inference.attention import KeysFirst, LocalFirst, ViewsInChunks, check_blocks
from geomtx.inference.keys import KeySubset
from geomtx.layers import grid_positions, key_mask, rotary_table
from reference import randomize

DIM, HEADS, VIEWS, TOKENS = 24, 2, 3, 13


def make_block() -> TransformerBlock:
    return randomize(TransformerBlock(DIM, HEADS, qk_norm=True)).double()


def draw_tokens() -> Tensor:
    return torch.randn(2, VIEWS, TOKENS, DIM, dtype=torch.float64)


def make_rope(num_views: int):
    table = rotary_table(grid_positions((3, 4), 1, torch.device("cpu")), DIM // HEADS, dtype=torch.float64)
    return table.repeat(num_views)


def draw_mask(kind: str, num_queries: int, num_keys: int, batch: int = 2) -> Tensor | None:
    """Return a mask of keys, of pairs, or none."""
    masks = {
        "none": lambda: None,
        "keys": lambda: key_mask(torch.rand(batch, num_keys) > 0.4),
        "pairs": lambda: torch.rand(1, 1, num_queries, num_keys) > 0.3,
    }
    return masks[kind]()


@pytest.mark.parametrize("chunk", [None, 1, 4, 39, 1000])
@pytest.mark.parametrize("masked", ["none", "keys", "pairs"])
@pytest.mark.parametrize("rotated", [True, False])
def test_keys_first_is_the_block(chunk, masked, rotated):
    block, x, num = make_block(), draw_tokens(), VIEWS * TOKENS
    rope, mask = make_rope(VIEWS) if rotated else None, draw_mask(masked, num, num)
    sizes = []
    block.mlp.register_forward_hook(lambda _, args, __: sizes.append(args[0].shape[1]))
    with torch.no_grad():
        expected = AcrossViews(rope, mask)(0, block, x)
        sizes.clear()
        out = KeysFirst(rope, mask, token_chunk=chunk)(0, block, x)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    assert max(sizes) <= (chunk or num), "no more tokens at a time than asked for"
    assert (out.data_ptr() == x.data_ptr()) == (chunk is not None), "chunks are written over their input"


@pytest.mark.parametrize("chunk", [None, 1, 4, 100])
@pytest.mark.parametrize("masked", ["none", "keys", "pairs"])
def test_fewer_keys_are_the_block_with_the_others_masked(chunk, masked):
    block, x, num = make_block(), draw_tokens(), VIEWS * TOKENS
    tokens = torch.stack([torch.randperm(num)[:5], torch.randperm(num)[:5]])
    # The rows of the rotary table are those of both scenes: positions are within a view.
    tokens[1] = (tokens[0] + TOKENS) % num
    rope, mask = make_rope(VIEWS), draw_mask(masked, num, 5)
    keys = KeySubset(tokens, rope.rows(tokens[0]))
    allowed = torch.zeros(2, 1, num, num, dtype=torch.bool)
    for scene in range(2):
        allowed[scene, :, :, tokens[scene]] = True if mask is None else mask.expand(2, 1, num, 5)[scene]
    with torch.no_grad():
        expected = AcrossViews(rope, allowed)(0, block, x)
        out = KeysFirst(rope, mask, keys, token_chunk=chunk)(0, block, x)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 2, 5, 9])
@pytest.mark.parametrize("masked", [False, True])
def test_views_in_chunks_are_the_block(chunk, masked):
    block, x = make_block(), draw_tokens()
    plain = WithinViews(make_rope(1), draw_mask("keys", TOKENS, TOKENS, 2 * VIEWS) if masked else None)
    sizes = []
    block.register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))
    with torch.no_grad():
        expected = plain(0, block, x)
        sizes.clear()
        out = ViewsInChunks(plain, chunk)(0, block, x)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    assert max(sizes) <= chunk
    assert sum(sizes) == 2 * VIEWS
    assert out.data_ptr() == x.data_ptr()


def test_the_first_blocks_may_be_local():
    seen = []
    table = LocalFirst(
        2, lambda n, b, x: (seen.append(("within", n)), x)[1], lambda n, b, x: (seen.append(("across", n)), x)[1]
    )
    for number in range(4):
        table(number, nn.Identity(), torch.zeros(1))
    assert seen == [("within", 0), ("within", 1), ("across", 2), ("across", 3)]


def test_gradcheck_with_fewer_keys():
    block = TransformerBlock(8, 2, qk_norm=True).double()
    keys = KeySubset(torch.tensor([[0, 3, 2], [1, 2, 4]]))
    attend = KeysFirst(None, key_mask(torch.tensor([[True, True, False], [True, True, True]])), keys)
    x = torch.randn(2, 1, 5, 8, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x: attend(0, block, x), (x,))


def test_other_blocks_project_no_keys():
    encoder = AlternatingEncoder(PatchEmbedding(8, patch_size=4), [nn.Linear(8, 8)], [nn.Linear(8, 8)], head_dim=8)
    with pytest.raises(ValueError, match=r"^blocks must be TransformerBlock for fewer keys, got Linear$"):
        check_blocks(encoder.global_blocks, "fewer keys")
