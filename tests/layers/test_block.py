import pytest
import torch

from geomtx import TransformerBlock
from geomtx.layers import grid_positions, key_mask, rotary_table
from reference import gelu, normalize, randomize, rotate, self_attention, without_gradient

DIM, HEADS = 16, 2


def reference_block(block: TransformerBlock, x: torch.Tensor, positions, mask, eps: float) -> torch.Tensor:
    """The two lines of the paper, from the block's parameters."""
    p = dict(block.named_parameters())

    def change(heads, name):
        heads = normalize(heads, p[f"attention.{name}_norm.weight"], p[f"attention.{name}_norm.bias"])
        return rotate(heads, positions, 100.0)

    normed = normalize(x, p["attention_norm.weight"], p["attention_norm.bias"], eps=eps)
    packed = [(p[f"attention.{name}.weight"], p[f"attention.{name}.bias"]) for name in ("qkv", "out")]
    x = x + p["attention_scale.gamma"] * self_attention(normed, *packed, HEADS, mask=mask, change=change)
    hidden = normalize(x, p["mlp_norm.weight"], p["mlp_norm.bias"], eps=eps)
    hidden = gelu(torch.einsum("bnc,dc->bnd", hidden, p["mlp.expand.weight"]) + p["mlp.expand.bias"])
    update = torch.einsum("bnc,dc->bnd", hidden, p["mlp.contract.weight"]) + p["mlp.contract.bias"]
    return x + p["mlp_scale.gamma"] * update


@pytest.mark.parametrize("backend", ["sdpa", "math"])
@pytest.mark.parametrize("eps", [1e-5, 1e-2])
def test_equals_the_formulas(backend, eps):
    block = randomize(TransformerBlock(DIM, HEADS, qk_norm=True, mlp_ratio=2.5, norm_eps=eps, backend=backend)).double()
    positions = grid_positions((2, 4), 3, torch.device("cpu"))
    x = torch.randn(3, 11, DIM).double()
    mask = key_mask(torch.rand(3, 11) < 0.7)
    out = block(x, rope=rotary_table(positions, DIM // HEADS, dtype=torch.float64), mask=mask)
    torch.testing.assert_close(out, reference_block(block, x, positions, mask, eps), rtol=0, atol=1e-12)


def test_every_parameter_gets_a_gradient():
    block = randomize(TransformerBlock(DIM, HEADS, qk_norm=True)).double()
    block(torch.randn(2, 6, DIM).double()).square().sum().backward()
    assert without_gradient(block) == []


def test_gradcheck():
    block = randomize(TransformerBlock(8, 2, qk_norm=True)).double()
    table = rotary_table(grid_positions((1, 2), 1, torch.device("cpu")), 4, dtype=torch.float64)
    x = torch.randn(1, 3, 8, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x: block(x, rope=table), (x,))


def test_is_near_the_identity_when_new():
    x = torch.randn(2, 6, DIM)
    update = TransformerBlock(DIM, HEADS, layer_scale=0.01)(x) - x
    assert 0 < update.abs().max() < 0.1


def test_layer_scale_of_zero_is_the_identity():
    x = torch.randn(2, 6, DIM)
    assert torch.equal(TransformerBlock(DIM, HEADS, layer_scale=0.0)(x), x)


@pytest.mark.parametrize("masked", [False, True])
def test_piece_by_piece(masked):
    block = randomize(TransformerBlock(DIM, HEADS, qk_norm=True)).double()
    x = torch.randn(2, 9, DIM, dtype=torch.float64)
    table = rotary_table(grid_positions((2, 4), 1, x.device), DIM // HEADS, dtype=torch.float64)
    mask = key_mask(torch.rand(2, 9) < 0.7) if masked else None
    keys, values = block.project_keys(x, rope=table)
    part = slice(3, 7)
    of_part = table.rows(part)
    pieces = block.attend_to(x[:, part], keys, values, rope=of_part, mask=mask)
    torch.testing.assert_close(pieces, block(x, rope=table, mask=mask)[:, part], rtol=0, atol=1e-12)
