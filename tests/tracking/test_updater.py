import pytest
import torch
from torch import Tensor

from geomtx.layers import key_mask
from geomtx.tracking import TrackUpdater
from geomtx.tracking.updater import TrackBlock
from reference import gelu, normalize, randomize, self_attention, without_gradient


def updater(**options) -> TrackUpdater:
    options = {"dim": 16, "num_heads": 2, "depth": 2, "num_virtual": 3, **options}
    return randomize(TrackUpdater(10, 6, **options)).double().eval()


def block_by_formula(block: TrackBlock, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    p = dict(block.named_parameters())
    x = normalize(x, p["norm.weight"], p["norm.bias"])
    if context is not None:
        context = normalize(context, p["context_norm.weight"], p["context_norm.bias"])
    packed = [(p[f"attention.{name}.weight"], p[f"attention.{name}.bias"]) for name in ("qkv", "out")]
    x = x + self_attention(x, *packed, 2, context=context, mask=mask)
    hidden = normalize(x, p["mlp_norm.weight"], p["mlp_norm.bias"]) @ p["mlp.expand.weight"].T + p["mlp.expand.bias"]
    return x + gelu(hidden) @ p["mlp.contract.weight"].T + p["mlp.contract.bias"]


def update_by_formula(model: TrackUpdater, tokens: Tensor, view_mask: Tensor | None = None) -> Tensor:
    """Track by track and view by view, with loops."""
    p = dict(model.named_parameters())
    num_points, num_views = tokens.shape[1:3]
    out = []
    for index, scene in enumerate(tokens):
        normed = normalize(scene, p["input_norm.weight"], p["input_norm.bias"])
        projected = normed @ p["input_project.weight"].T + p["input_project.bias"]
        x = torch.cat([projected, p["virtual_tracks"][0].expand(-1, num_views, -1)])
        mask = None if view_mask is None else view_mask[index][None, None, None]
        for depth in range(len(model.view_blocks)):
            x = torch.cat([block_by_formula(model.view_blocks[depth], track[None], mask=mask) for track in x])
            views = []
            for view in x.transpose(0, 1):
                points, virtual = view[None, :num_points], view[None, num_points:]
                virtual = block_by_formula(model.virtual_from_point[depth], virtual, points)
                virtual = block_by_formula(model.virtual_blocks[depth], virtual)
                points = block_by_formula(model.point_from_virtual[depth], points, virtual)
                views.append(torch.cat([points, virtual], dim=1)[0])
            x = torch.stack(views, dim=1)
        x = normalize(x[:num_points] + projected, p["output_norm.weight"], p["output_norm.bias"])
        out.append(x @ p["output_project.weight"].T + p["output_project.bias"])
    return torch.stack(out)


@pytest.mark.parametrize("with_context", [False, True])
def test_a_block_equals_the_formulas(with_context):
    block = randomize(TrackBlock(16, 2, with_context=with_context)).double()
    x, context = torch.randn(3, 5, 16).double(), torch.randn(3, 4, 16).double() if with_context else None
    mask = key_mask(torch.rand(3, 4 if with_context else 5) < 0.6)
    expected = block_by_formula(block, x, context, mask)
    torch.testing.assert_close(block(x, context, mask=mask), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_points", [1, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_formulas(num_points, masked):
    model, tokens = updater(), torch.randn(2, num_points, 4, 10, dtype=torch.float64)
    view_mask = torch.tensor([[True, True, False, True], [True, False, False, True]]) if masked else None
    expected = update_by_formula(model, tokens, view_mask)
    torch.testing.assert_close(model(tokens, view_mask), expected, rtol=0, atol=1e-11)


def test_neither_order_matters():
    model, tokens = updater(), torch.randn(2, 5, 4, 10, dtype=torch.float64)
    points, views = [3, 0, 4, 1, 2], [2, 0, 3, 1]
    out = model(tokens)
    torch.testing.assert_close(model(tokens[:, points]), out[:, points], rtol=0, atol=1e-11)
    torch.testing.assert_close(model(tokens[:, :, views]), out[:, :, views], rtol=0, atol=1e-11)


def test_tracks_see_each_other_through_virtual_tracks():
    model, tokens = updater(), torch.randn(1, 5, 4, 10, dtype=torch.float64)
    other = torch.cat([tokens[:, :4], torch.randn(1, 1, 4, 10).double()], dim=1)
    assert not torch.allclose(model(tokens)[:, 0], model(other)[:, 0], atol=1e-4)


def test_masked_views_change_nothing_elsewhere():
    model, tokens = updater(), torch.randn(1, 5, 4, 10, dtype=torch.float64)
    mask = torch.tensor([[True, True, False, True]])
    other = tokens.clone()
    other[:, :, 2] = 100 * torch.randn(1, 5, 10)
    kept = [0, 1, 3]
    out = model(tokens, mask)
    torch.testing.assert_close(model(other, mask)[:, :, kept], out[:, :, kept], rtol=0, atol=1e-12)
    torch.testing.assert_close(model(tokens[:, :, kept]), out[:, :, kept], rtol=0, atol=1e-11)


@pytest.mark.parametrize("backend", ["sdpa", "math"])
def test_a_scene_without_any_view_stays_finite_and_apart(backend):
    model, tokens = updater(backend=backend), torch.randn(2, 5, 4, 10, dtype=torch.float64)
    mask = torch.tensor([[True, True, True, True], [False, False, False, False]])
    out = model(tokens, mask)
    out.sum().backward()
    assert out.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    torch.testing.assert_close(out[:1], model(tokens[:1]), rtol=0, atol=1e-11)


def test_every_parameter_gets_a_gradient():
    model = updater()
    out = model(torch.randn(2, 5, 4, 10, dtype=torch.float64))
    (out * torch.randn_like(out)).sum().backward()
    assert without_gradient(model) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_ends_in_float32(dtype):
    out = updater().to(dtype)(torch.randn(1, 5, 4, 10).to(dtype))
    assert out.dtype == torch.float32
    assert not torch.equal(out, out.to(dtype).float())


def test_no_track_hears_of_a_masked_one():
    model, tokens = updater(), torch.randn(2, 5, 4, 10).double()
    mask = torch.tensor([[True, True, False, True, False], [False, True, True, True, True]])
    changed = torch.where(mask[:, :, None, None], tokens, torch.randn_like(tokens))
    ours, other = (model(t, track_mask=mask)[mask] for t in (tokens, changed))
    assert torch.equal(ours, other)
    alone = model(tokens[:1, mask[0]])
    torch.testing.assert_close(model(tokens, track_mask=mask)[0, mask[0]], alone[0], rtol=0, atol=1e-12)


def test_without_any_track_the_update_is_finite():
    assert updater()(torch.randn(1, 3, 4, 10).double(), track_mask=torch.zeros(1, 3, dtype=torch.bool)).isfinite().all()
