import copy
import pickle

import pytest
import torch

from geomtx import Attention
from geomtx.layers import grid_positions, key_mask, rotary_table
from reference import attend, normalize, randomize, rotate, self_attention, without_gradient

DIM, HEADS = 24, 3


def attention(**options) -> Attention:
    return randomize(Attention(DIM, HEADS, **options)).double()


def packed(module: Attention) -> tuple:
    return (module.qkv.weight, module.qkv.bias), (module.out.weight, module.out.bias), HEADS


@pytest.mark.parametrize("backend", ["sdpa", "math"])
@pytest.mark.parametrize("masked", [False, True])
def test_self_attention_equals_the_formulas(backend, masked):
    module, x = attention(backend=backend), torch.randn(2, 7, DIM).double()
    mask = key_mask(torch.tensor([[True] * 7, [True, False, True, True, False, False, True]])) if masked else None
    torch.testing.assert_close(module(x, mask=mask), self_attention(x, *packed(module), mask=mask), rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["sdpa", "math"])
def test_cross_attention_equals_the_formulas(backend):
    module = attention(backend=backend)
    x, context = torch.randn(2, 7, DIM).double(), torch.randn(2, 12, DIM).double()
    mask = torch.rand(2, 1, 7, 12) < 0.5
    mask[..., 3] = True
    expected = self_attention(x, *packed(module), context=context, mask=mask)
    torch.testing.assert_close(module(x, context, mask=mask), expected, rtol=0, atol=1e-12)


def test_cross_attention_over_itself_is_self_attention():
    module, x = attention(), torch.randn(2, 5, DIM).double()
    torch.testing.assert_close(module(x, x), module(x), rtol=0, atol=1e-13)


def test_norm_comes_before_rotation_and_spares_values():
    module, x = attention(qk_norm=True), torch.randn(2, 5 + 6, DIM).double()
    positions = grid_positions((2, 3), 5, x.device)

    def change(heads, name):
        norm = module.q_norm if name == "q" else module.k_norm
        return rotate(normalize(heads, norm.weight, norm.bias), positions, 100.0)

    out = module(x, rope=rotary_table(positions, DIM // HEADS, base=100.0, dtype=torch.float64))
    torch.testing.assert_close(out, self_attention(x, *packed(module), change=change), rtol=0, atol=1e-12)


def test_backends_agree_in_gradients_of_every_parameter():
    x, target = torch.randn(2, 7, DIM).double(), torch.randn(2, 7, DIM).double()
    gradients = {}
    for backend in ("sdpa", "math"):
        torch.manual_seed(1)
        module = attention(backend=backend, qk_norm=True)
        ((module(x) - target) ** 2).sum().backward()
        # A key's common offset cancels in the softmax, so without a norm the bias of k would get none.
        assert without_gradient(module) == []
        gradients[backend] = [p.grad for p in module.parameters()]
    for a, b in zip(*gradients.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_masked_keys_change_nothing():
    module, x = attention(), torch.randn(2, 9, DIM).double()
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[0, 4:] = False
    other = torch.where(valid[..., None], x, torch.randn_like(x) * 100)
    mask = key_mask(valid)
    torch.testing.assert_close(module(x, mask=mask)[valid], module(other, mask=mask)[valid], rtol=0, atol=1e-13)
    alone = module(x[:1, :4])
    torch.testing.assert_close(module(x, mask=mask)[:1, :4], alone, rtol=0, atol=1e-13)


@pytest.mark.parametrize("backend", ["sdpa", "math"])
def test_a_sequence_without_keys_stays_finite(backend):
    module = attention(backend=backend)
    x = torch.randn(2, 4, DIM).double().requires_grad_()
    out = module(x, mask=key_mask(torch.tensor([[True] * 4, [False] * 4])))
    out.square().sum().backward()
    assert out.isfinite().all()
    assert x.grad.isfinite().all()


def test_key_mask_of_an_all_false_row_lets_all_in():
    mask = key_mask(torch.tensor([[True, False, True], [False, False, False]]))
    assert mask.shape == (2, 1, 1, 3)
    assert mask[:, 0, 0].tolist() == [[True, False, True], [True, True, True]]


def test_order_of_keys_does_not_matter():
    module, x, context = attention(), torch.randn(1, 3, DIM).double(), torch.randn(1, 8, DIM).double()
    torch.testing.assert_close(module(x, context), module(x, context[:, torch.randperm(8)]), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_in_half_precision_out(dtype):
    module = attention(qk_norm=True)
    x = torch.randn(2, 7, DIM).double()
    table = rotary_table(grid_positions((2, 3), 1, x.device), DIM // HEADS)
    out = copy.deepcopy(module).to(dtype)(x.to(dtype), rope=table)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), module(x, rope=table), rtol=0, atol=20 * torch.finfo(dtype).eps)


class Widen(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float()


def test_autocast_runs_the_product_in_half_precision():
    module = attention().float()
    module.q_norm = module.k_norm = Widen()  # as LayerNorm does under autocast on some devices
    seen = []
    kernel = module.backend
    module.backend = lambda q, k, v, mask: (seen.extend([q.dtype, k.dtype, v.dtype]), kernel(q, k, v, mask))[1]
    with torch.autocast("cpu", torch.bfloat16):
        module(torch.randn(2, 7, DIM))
    assert set(seen) == {torch.bfloat16}


def test_pickles_and_names_its_backend():
    module, x = attention(backend="math"), torch.randn(1, 3, DIM).double()
    torch.testing.assert_close(pickle.loads(pickle.dumps(module))(x), module(x), rtol=0, atol=0)
    assert "num_heads=3, backend=math" in repr(module)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match=r"^dim \(for 5 heads\) must be a multiple of 5, got 24$"):
        Attention(24, 5)
    with pytest.raises(ValueError, match=r"^dim \(for 0 heads\) must be a multiple of 0, got 24$"):
        Attention(24, 0)


@pytest.mark.usefixtures("unchecked")
def test_unknown_backend():
    with pytest.raises(ValueError, match=r"^backend must be one of .*, got 'fast'$"):
        Attention(24, 3, backend="fast")


def test_the_definition_itself_on_numbers_done_by_hand():
    """Two keys with scores 0 and ln 3: weights 1/4 and 3/4."""
    q, k = torch.tensor([[[[2.0]]]]), torch.tensor([[[[0.0], [0.5 * torch.log(torch.tensor(3.0))]]]])
    v = torch.tensor([[[[4.0], [8.0]]]])
    torch.testing.assert_close(attend(q, k, v), torch.tensor([[[[7.0]]]]))


def test_a_context_has_a_rotary_table_of_its_own():
    module, x = attention(qk_norm=True), torch.randn(1, 7, DIM).double()
    table = rotary_table(grid_positions((2, 3), 1, x.device), DIM // HEADS, dtype=torch.float64)
    expected = module(x, rope=table)
    torch.testing.assert_close(module(x, x, rope=table, context_rope=table), expected, rtol=0, atol=1e-12)
    part = slice(2, 5)
    queries = module(x[:, part], x, rope=table.rows(part), context_rope=table)
    torch.testing.assert_close(queries, expected[:, part], rtol=0, atol=1e-12)
    assert not torch.allclose(module(x, x, rope=table), expected)


def test_another_core_takes_the_backends_place():
    module, x, mask = attention(), torch.randn(1, 4, DIM).double(), torch.rand(1, 1, 1, 4) > 0.2
    seen = []

    def core(q, k, v, mask):
        seen.append((q.shape, mask))
        return 2 * v

    expected = module.out(2 * module.project(x)[2].flatten(2))
    torch.testing.assert_close(module(x, mask=mask, core=core), expected)
    assert seen == [((1, HEADS, 4, DIM // HEADS), mask)]


def test_a_start_by_similarity_looks_at_what_looks_alike():
    torch.manual_seed(0)
    module = Attention(64, 4, qk_norm=True, backend="math")
    kinds = torch.randn(5, 64)
    x = kinds[torch.tensor([0, 1, 2, 3, 4, 3])][None]
    seen = []

    def attend(q, k, v, mask):
        seen.append((q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1).mean((0, 1))[3])
        return v

    module.backend = attend
    module(x)
    module.start_by_similarity(1.5)
    module(x)
    before, after = seen
    assert before[[3, 5]].sum() < 0.5
    assert after[[3, 5]].sum() > 0.9
    with torch.no_grad():
        module.start_by_similarity(0.5)
    module(x)
    assert seen[-1][[3, 5]].sum() < after[[3, 5]].sum(), "a smaller gain looks at more"


def test_a_start_by_similarity_needs_norms():
    with pytest.raises(ValueError, match="qk_norm must be on to start by similarity, got False"):
        Attention(DIM, HEADS).start_by_similarity(1.0)


def test_what_stands_in_for_the_projection_is_called():
    """An adapter, say; in pieces too, which take a part of the projection."""
    module = Attention(8, 2).double()
    x = torch.randn(1, 5, 8, dtype=torch.float64)
    expected = module(2 * x)

    class Adapter(torch.nn.Module):
        def __init__(self, inner: torch.nn.Linear) -> None:
            super().__init__()
            self.inner, self.weight, self.bias = inner, inner.weight, inner.bias

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(2 * x)

    module.qkv = Adapter(module.qkv)
    torch.testing.assert_close(module(x), expected)
    torch.testing.assert_close(module.attend(module.project_queries(x), *module.project_keys(x)), expected)


def test_the_bias_is_multiplied_by_its_mask():
    """In every way of projecting; other masks than the one at the start count too."""
    module, x = attention(masked_bias=True, qk_norm=True), torch.randn(2, 5, DIM).double()
    assert module.qkv.bias_mask.tolist() == DIM * [1] + DIM * [0] + DIM * [1]
    module.qkv.bias_mask.copy_(torch.rand(3 * DIM) < 0.5)
    plain = attention(qk_norm=True)
    plain.load_state_dict({name: value for name, value in module.state_dict().items() if "mask" not in name})
    with torch.no_grad():
        plain.qkv.bias *= module.qkv.bias_mask
    assert torch.equal(module(x), plain(x))
    q, (k, v) = module.project_queries(x), module.project_keys(x)
    for ours, expected in zip((q, k, v), plain.project(x), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    module.bfloat16()
    module.qkv.bias_mask = module.qkv.bias_mask.float()  # as in a file that holds both
    assert module(x.bfloat16()).dtype == torch.bfloat16
