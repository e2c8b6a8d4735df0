import torch
from torch import Tensor

from geomtx.layers.position import sample_grid_signal
from geomtx.tracking import build_pyramid, correlate
from geomtx.tracking.video import TrackState, WindowQueries, WindowRefiner
from reference import gelu, normalize, randomize, without_gradient

B, W, N, C = 2, 4, 3, 8
MAP_HW = (12, 16)


def refiner() -> WindowRefiner:
    numbers = {"num_levels": 2, "radius": 1, "hidden_dim": 16, "num_heads": 2, "depth": 1, "num_virtual": 3}
    return randomize(WindowRefiner(C, **numbers)).double()


def draw() -> tuple[list[Tensor], TrackState, WindowQueries]:
    pyramid = build_pyramid(torch.randn(B * W, C, *MAP_HW).double(), 2)
    size = torch.tensor([15.0, 11.0]).double()
    state = TrackState(
        torch.rand(B, W, N, 2).double() * size,
        torch.randn(B, W, N, C).double(),
        torch.randn(B, W, N).double(),
        torch.randn(B, W, N).double(),
    )
    own = torch.zeros(B, W, N, dtype=torch.bool)
    own[0, 1, 0] = own[0, 3, 2] = own[1, 0] = True
    view_mask = torch.ones(B, W, dtype=torch.bool)
    view_mask[0, 3] = False
    return (
        pyramid,
        state,
        WindowQueries(
            torch.rand(B, N, 2).double() * size, own, view_mask, torch.tensor([[True, False, True], [True, True, True]])
        ),
    )


def refine_by_formula(
    model: WindowRefiner, pyramid: list[Tensor], state: TrackState, queries: WindowQueries
) -> TrackState:
    """One iteration, a token at a time."""
    p = dict(model.named_parameters())

    def wave(value: Tensor, dim: int, base: float) -> Tensor:
        angles = torch.stack([value * base ** (-i / (dim // 2)) for i in range(dim // 2)])
        return torch.cat([angles.sin(), angles.cos()])

    correlation = correlate(pyramid, state.features.flatten(0, 1), state.coords.flatten(0, 1), radius=1)
    hidden = gelu(correlation @ p["correlation_mlp.expand.weight"].T + p["correlation_mlp.expand.bias"])
    correlation = hidden @ p["correlation_mlp.contract.weight"].T + p["correlation_mlp.contract.bias"]
    correlation = correlation.unflatten(0, (B, W))
    place = sample_grid_signal(queries.coords, MAP_HW, C, base=10000.0)
    tokens = torch.zeros(B, N, W, 16 + 6 * C + 3, dtype=torch.float64)
    for b, n, w in torch.cartesian_prod(torch.arange(B), torch.arange(N), torch.arange(W)).tolist():
        coords = state.coords[b, :, n]
        still = torch.zeros(2, dtype=torch.float64)

        def step(a: int, c: int, coords: Tensor = coords, still: Tensor = still, b: int = b) -> Tensor:
            return coords[c] - coords[a] if a >= 0 and c < W and queries.view_mask[b, c] else still

        moves = torch.cat([coords[w] - queries.coords[b, n], step(w - 1, w), step(w, w + 1)])
        waves = torch.cat([wave(value, C // 2, 100.0) for value in moves])
        logits = torch.stack([state.visibility[b, w, n], state.confidence[b, w, n]])
        time = wave(torch.tensor(float(w)).double(), C, 10000.0)
        own = queries.in_own_view[b, w, n].double()[None]
        parts = [
            waves,
            correlation[b, w, n],
            state.features[b, w, n],
            1 / (1 + (-logits).exp()),
            place[b, n],
            time,
            own,
        ]
        tokens[b, n, w] = torch.cat(parts)
    update = model.updater(tokens, queries.view_mask, track_mask=queries.track_mask).transpose(1, 2)
    change = normalize(update[..., 4:], p["feature_norm.weight"], p["feature_norm.bias"])
    change = gelu(change @ p["feature_update.weight"].T + p["feature_update.bias"])
    coords = torch.where(queries.in_own_view[..., None], queries.coords[:, None], state.coords + update[..., :2])
    return TrackState(
        coords, state.features + change, state.visibility + update[..., 2], state.confidence + update[..., 3]
    )


def test_equals_the_formulas():
    model, (pyramid, state, queries) = refiner(), draw()
    history = model(pyramid, state, queries, 2)
    assert len(history) == 2
    for after in history:
        state = refine_by_formula(model, pyramid, state, queries)
        for ours, reference in zip(after, state, strict=True):
            torch.testing.assert_close(ours, reference, rtol=0, atol=1e-10)


def test_every_parameter_gets_a_gradient():
    model, (pyramid, state, queries) = refiner(), draw()
    last = model(pyramid, state, queries, 2)[-1]
    sum((part * torch.randn_like(part)).sum() for part in last).backward()
    assert without_gradient(model) == []


def test_it_begins_with_hardly_any_motion():
    numbers = {"num_levels": 2, "radius": 1, "hidden_dim": 16, "num_heads": 2, "depth": 1, "num_virtual": 3}
    pyramid, state, queries = draw()
    after = WindowRefiner(C, **numbers).double()(pyramid, state, queries, 1)[-1]
    start = torch.where(queries.in_own_view[..., None], queries.coords[:, None], state.coords)
    assert (after.coords - start).abs().max() < 0.05


def test_time_counts():
    """Views in another order are another window."""
    model, (pyramid, state, queries) = refiner(), draw()
    queries = queries._replace(view_mask=torch.ones_like(queries.view_mask))
    turn = torch.tensor([2, 0, 3, 1])
    turned = [level.unflatten(0, (B, W))[:, turn].flatten(0, 1) for level in pyramid]
    other = model(
        turned, TrackState(*(t[:, turn] for t in state)), queries._replace(in_own_view=queries.in_own_view[:, turn]), 1
    )[-1]
    assert not torch.allclose(other.features, model(pyramid, state, queries, 1)[-1].features[:, turn], atol=1e-3)
