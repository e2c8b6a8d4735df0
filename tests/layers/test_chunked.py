import pytest
import torch

from geomtx import TransformerBlock
from geomtx.layers import KeySubset, grid_positions, key_mask, rotary_table
from geomtx.layers.chunked import run_batch_in_chunks, run_in_chunks
from reference import randomize

DIM, HEADS, TOKENS = 24, 2, 13


def block(**options) -> TransformerBlock:
    return randomize(TransformerBlock(DIM, HEADS, **options)).double()


@pytest.mark.parametrize("chunk", [1, 4, 13, 100])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("masked", ["not", "keys", "pairs"])
def test_equals_the_block(chunk, qk_norm, masked):
    module, x = block(qk_norm=qk_norm), torch.randn(2, TOKENS, DIM, dtype=torch.float64)
    rope = rotary_table(grid_positions((3, 4), 1, x.device), DIM // HEADS, dtype=torch.float64)
    mask = {
        "not": None,
        "keys": key_mask(torch.rand(2, TOKENS) > 0.4),
        "pairs": torch.rand(1, 1, TOKENS, TOKENS) > 0.3,
    }[masked]
    with torch.no_grad():
        expected = module(x, rope=rope, mask=mask)
        assert run_in_chunks(module, x, chunk, rope=rope, mask=mask) is None
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("masked", ["not", "keys", "pairs"])
def test_fewer_keys(chunk, masked):
    module, x = block(qk_norm=True), torch.randn(2, TOKENS, DIM, dtype=torch.float64)
    rope = rotary_table(grid_positions((3, 4), 1, x.device), DIM // HEADS, dtype=torch.float64)
    chosen = torch.tensor([5, 0, 12, 7, 3])
    keys = KeySubset(torch.stack([chosen, chosen]), rope.rows(chosen))
    mask = {
        "not": None,
        "keys": key_mask(torch.rand(2, 5) > 0.4),
        "pairs": torch.rand(1, 1, TOKENS, 5) > 0.2,
    }[masked]
    with torch.no_grad():
        expected = module(x, rope=rope, mask=mask, keys=keys)
        run_in_chunks(module, x, chunk, rope=rope, mask=mask, keys=keys)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-12)


def test_without_positions():
    module, x = block(), torch.randn(1, TOKENS, DIM, dtype=torch.float64)
    with torch.no_grad():
        expected = module(x)
        run_in_chunks(module, x, 5)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-12)


def test_never_more_than_a_chunk_at_work():
    module, sizes = block(), []
    module.mlp.register_forward_hook(lambda _, args, __: sizes.append(args[0].shape[1]))
    with torch.no_grad():
        run_in_chunks(module, torch.randn(1, TOKENS, DIM, dtype=torch.float64), 5)
    assert sizes == [5, 5, 3]


@pytest.mark.parametrize("chunk", [1, 2, 5, 9])
@pytest.mark.parametrize("masked", [False, True])
def test_a_batch_in_pieces(chunk, masked):
    module, x = block(qk_norm=True), torch.randn(5, TOKENS, DIM, dtype=torch.float64)
    rope = rotary_table(grid_positions((3, 4), 1, x.device), DIM // HEADS, dtype=torch.float64)
    mask = key_mask(torch.rand(5, TOKENS) > 0.4) if masked else None
    sizes = []
    module.register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))
    with torch.no_grad():
        expected = module(x, rope=rope, mask=mask)
        sizes.clear()
        assert run_batch_in_chunks(module, x, chunk, rope=rope, mask=mask) is None
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-12)
    assert max(sizes) <= chunk
    assert sum(sizes) == 5


@pytest.mark.parametrize("run", [run_in_chunks, run_batch_in_chunks])
def test_not_with_gradients_and_not_in_no_pieces(run):
    x = torch.randn(1, TOKENS, DIM, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="chunks are worked on in place, which gradients can't follow"):
        run(block(), x, 5)
    with torch.no_grad(), pytest.raises(ValueError, match=r"^chunk must be positive, got 0$"):
        run(block(), x, 0)
