import pytest
import torch

from geomtx import Attention
from geomtx.layers import CrossAttention, DecoderBlock, grid_positions, rotary_table
from reference import gelu, normalize, randomize, rotate, self_attention, without_gradient

DIM, HEADS = 16, 2


def packed(layer) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Projection and output of an attention as (weight, bias) each."""
    if isinstance(layer, CrossAttention):
        thirds = (layer.query, layer.key, layer.value)
        first = (torch.cat([each.weight for each in thirds]), torch.cat([each.bias for each in thirds]))
    else:
        first = (layer.qkv.weight, layer.qkv.bias)
    return [first, (layer.out.weight, layer.out.bias)]


def reference_block(block: DecoderBlock, x, y, positions, other_positions) -> torch.Tensor:
    """The three lines of the paper."""

    def norm(layer, tokens):
        return normalize(tokens, layer.weight, layer.bias, eps=1e-6)

    normed = norm(block.attention_norm, x)
    attention = packed(block.attention)
    x = x + self_attention(normed, *attention, HEADS, change=lambda h, _: rotate(h, positions, 100.0))
    x = x + self_attention(
        norm(block.cross_norm, x),
        *packed(block.cross_attention),
        HEADS,
        context=norm(block.context_norm, y),
        change=lambda h, name: rotate(h, positions if name == "q" else other_positions, 100.0),
    )
    hidden = gelu(norm(block.mlp_norm, x) @ block.mlp.expand.weight.T + block.mlp.expand.bias)
    return x + hidden @ block.mlp.contract.weight.T + block.mlp.contract.bias


@pytest.mark.parametrize("backend", ["sdpa", "math"])
def test_equals_the_formulas(backend):
    block = randomize(DecoderBlock(DIM, HEADS, mlp_ratio=2.5, backend=backend)).double()
    grids = [grid_positions(grid, 0, torch.device("cpu")) for grid in ((2, 4), (3, 2))]
    ropes = [rotary_table(grid, DIM // HEADS, dtype=torch.float64) for grid in grids]
    x, y = torch.randn(3, 8, DIM).double(), torch.randn(3, 6, DIM).double()
    out = block(x, y, rope=ropes[0], context_rope=ropes[1])
    torch.testing.assert_close(out, reference_block(block, x, y, *grids), rtol=0, atol=1e-12)


def test_every_parameter_gets_a_gradient():
    block = randomize(DecoderBlock(DIM, HEADS)).double()
    context = torch.randn(2, 5, DIM, dtype=torch.float64, requires_grad=True)
    block(torch.randn(2, 6, DIM).double(), context).square().sum().backward()
    assert without_gradient(block) == []
    assert context.grad.abs().min() > 0


def test_cross_attention_is_attention_with_its_projection_in_thirds():
    whole = randomize(Attention(DIM, HEADS)).double()
    thirds = CrossAttention(DIM, HEADS).double()
    for name, weight, bias in zip(
        ("query", "key", "value"), whole.qkv.weight.chunk(3), whole.qkv.bias.chunk(3), strict=True
    ):
        getattr(thirds, name).load_state_dict({"weight": weight, "bias": bias})
    thirds.out.load_state_dict(whole.out.state_dict())
    x, y = torch.randn(2, 5, DIM).double(), torch.randn(2, 7, DIM).double()
    rope = rotary_table(torch.randint(0, 9, (5, 2)), DIM // HEADS, dtype=torch.float64)
    torch.testing.assert_close(thirds(x, y, rope=rope), whole(x, y, rope=rope), rtol=0, atol=1e-12)
    torch.testing.assert_close(thirds(x, rope=rope), whole(x, rope=rope), rtol=0, atol=1e-12)
