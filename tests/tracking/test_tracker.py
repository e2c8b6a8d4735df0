import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from geomtx import Tracker
from geomtx.tracking import build_pyramid, correlate
from reference import gelu, normalize, randomize, without_gradient

DIM, MAP_HW = 8, (9, 13)


def tracker(**options) -> Tracker:
    numbers = {"num_levels": 3, "radius": 1, "num_iterations": 2, "hidden_dim": 16, "num_heads": 2, "depth": 1}
    return randomize(Tracker(DIM, **{**numbers, "num_virtual": 3, **options})).double().eval()


def draw_features(num_scenes: int = 2, num_views: int = 3) -> Tensor:
    return torch.randn(num_scenes, num_views, DIM, *MAP_HW, dtype=torch.float64)


def draw_queries(num_scenes: int = 2, num_points: int = 4) -> Tensor:
    return torch.rand(num_scenes, num_points, 2, dtype=torch.float64) * torch.tensor([25, 17])


def track_by_formula(model: Tracker, features: Tensor, query_px: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries in view 0, a scene and a point at a time where it can be."""
    p = dict(model.named_parameters())
    maps = normalize(features.movedim(2, -1), p["map_norm.weight"], p["map_norm.bias"]).movedim(-1, 2)
    (height, width), num_views = maps.shape[-2:], maps.shape[1]
    query = query_px / model.stride

    def sample(table: Tensor, points: Tensor) -> Tensor:  # (B, C, H, W), (B, N, 2) → (B, N, C)
        grid = points * 2 / torch.tensor([width - 1, height - 1]) - 1
        out = F.grid_sample(table, grid[:, None], padding_mode="border", align_corners=True)
        return out[:, :, 0].mT

    token_dim = 3 * DIM + 4
    table = torch.zeros(token_dim, height, width, dtype=torch.float64)
    quarter = token_dim // 4
    for i in range(quarter):
        frequency = 10000 ** (-i / quarter)
        x, y = (frequency * torch.arange(size, dtype=torch.float64) for size in (width, height))
        table[i], table[quarter + i] = x.sin(), x.cos()
        table[2 * quarter + i], table[3 * quarter + i] = y.sin()[:, None], y.cos()[:, None]
    position = sample(table.expand(len(maps), -1, -1, -1), query)

    track = sample(maps[:, 0], query)[:, None].expand(-1, num_views, -1, -1)
    coords, history = query[:, None].expand(-1, num_views, -1, -1), []
    pyramid = build_pyramid(maps.flatten(0, 1), model.num_levels)
    for _ in range(model.num_iterations):
        window = correlate(pyramid, track.flatten(0, 1), coords.flatten(0, 1), radius=model.radius)
        window = gelu(window @ p["correlation_mlp.expand.weight"].T + p["correlation_mlp.expand.bias"])
        window = window @ p["correlation_mlp.contract.weight"].T + p["correlation_mlp.contract.bias"]
        flow = coords - coords[:, :1]
        waves = []
        for value in flow.unbind(-1):
            for k in range(0, DIM // 2, 2):
                waves += [(value * k * 1000 / (DIM // 2)).sin(), (value * k * 1000 / (DIM // 2)).cos()]
        parts = [torch.stack(waves, dim=-1), flow / 518, flow / 518, window.unflatten(0, coords.shape[:2]), track]
        tokens = torch.cat(parts, dim=-1) + position[:, None]
        reference = p["query_token"][0]
        tokens = tokens + torch.stack([reference[min(view, 1)] for view in range(num_views)])[None, :, None]
        update = model.updater(tokens.transpose(1, 2)).transpose(1, 2)
        normed = normalize(update[..., 2:], p["feature_norm.weight"], p["feature_norm.bias"])
        track = track + gelu(normed @ p["feature_update.weight"].T + p["feature_update.bias"])
        coords = coords + update[..., :2]
        coords = torch.cat([query[:, None], coords[:, 1:]], dim=1)
        history.append(coords * model.stride)
    logits = [track @ p[f"{name}.weight"][0] + p[f"{name}.bias"] for name in ("visibility", "confidence")]
    return torch.stack(history), *logits


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_equals_the_formulas(stride):
    model, features, query = tracker(stride=stride), draw_features(), draw_queries()
    for ours, reference in zip(model(features, query), track_by_formula(model, features, query), strict=True):
        # The fastest wave makes 10^-16 of a pixel into 10^-13, every iteration anew.
        torch.testing.assert_close(ours, reference, rtol=0, atol=1e-8)


def test_shapes_and_iterations():
    result = tracker(num_iterations=5)(draw_features(2, 4), draw_queries(2, 7))
    assert result.coords_px.shape == (5, 2, 4, 7, 2)
    assert result.visibility_logits.shape == result.confidence_logits.shape == (2, 4, 7)
    assert (result.coords_px[1:] != result.coords_px[:-1])[:, :, 1:].all()


def test_queries_stay_where_they_are_in_their_own_view():
    model, features, points = tracker(), draw_features(1, 3), draw_queries(1, 6)
    views = torch.tensor([0, 1, 2, 2, 1, 0])
    query = torch.cat([views[None, :, None].double(), points], dim=-1)
    coords = model(features, query).coords_px
    for index, view in enumerate(views.tolist()):
        torch.testing.assert_close(coords[:, 0, view, index], points[0, index].expand(2, 2), rtol=0, atol=1e-14)
        others = [v for v in range(3) if v != view]
        assert (coords[:, 0, others, index] - points[0, index]).abs().min() > 1e-6


def test_view_zero_is_the_short_form():
    model, features, query = tracker(), draw_features(), draw_queries()
    long = torch.cat([torch.zeros(2, 4, 1).double(), query], dim=-1)
    for ours, reference in zip(model(features, long), model(features, query), strict=True):
        assert torch.equal(ours, reference)


def test_a_query_in_another_view_is_one_in_view_zero_of_permuted_views():
    """The views have no order but for whose the query is."""
    model, features, query = tracker(), draw_features(2, 4), draw_queries()
    for view in range(4):
        order = [view, *(v for v in range(4) if v != view)]
        long = torch.cat([torch.full((2, 4, 1), float(view)).double(), query], dim=-1)
        first = model(features[:, order], query)
        ours = model(features, long)
        torch.testing.assert_close(ours.coords_px[:, :, order], first.coords_px, rtol=0, atol=1e-8)
        torch.testing.assert_close(ours.visibility_logits[:, order], first.visibility_logits, rtol=0, atol=1e-8)
        torch.testing.assert_close(ours.confidence_logits[:, order], first.confidence_logits, rtol=0, atol=1e-8)


def test_order_of_queries_does_not_matter():
    model, features, query = tracker(), draw_features(), draw_queries()
    order = [2, 0, 3, 1]
    ours = model(features, query[:, order]).coords_px
    torch.testing.assert_close(ours, model(features, query).coords_px[:, :, :, order], rtol=0, atol=1e-8)


@pytest.mark.parametrize("num_points", [0, 1])
def test_few_queries(num_points):
    model, features = tracker(), draw_features()
    result = model(features, draw_queries(2, num_points))
    assert result.coords_px.shape == (2, 2, 3, num_points, 2)
    assert all(part.isfinite().all() for part in result)


def test_a_single_view_gives_the_query_back():
    query = draw_queries()
    coords = tracker()(draw_features(2, 1), query).coords_px
    torch.testing.assert_close(coords, query[None, :, None].expand(2, -1, -1, -1, -1), rtol=0, atol=1e-14)


def test_scenes_of_a_batch_do_not_see_each_other():
    model, features, query = tracker(), draw_features(3), draw_queries(3)
    together = model(features, query)
    for scene in range(3):
        alone = model(features[scene : scene + 1], query[scene : scene + 1])
        torch.testing.assert_close(together.coords_px[:, scene : scene + 1], alone.coords_px, rtol=0, atol=1e-8)


def test_masked_views_change_nothing_elsewhere():
    model, features, query = tracker(), draw_features(2, 4), draw_queries()
    mask = torch.tensor([[True, True, False, True], [True, True, False, True]])
    kept = [0, 1, 3]
    masked, without = model(features, query, view_mask=mask), model(features[:, kept], query)
    torch.testing.assert_close(masked.coords_px[:, :, kept], without.coords_px, rtol=0, atol=1e-8)
    torch.testing.assert_close(masked.visibility_logits[:, kept], without.visibility_logits, rtol=0, atol=1e-8)
    everything = model(features, query, view_mask=torch.ones(2, 4, dtype=torch.bool))
    torch.testing.assert_close(everything.coords_px, model(features, query).coords_px, rtol=0, atol=1e-8)


def test_queries_outside_the_image_are_finite():
    query = torch.tensor([[[-500.0, 3.0], [1e5, -1e5], [0.0, 0.0], [25.9, 17.9]]], dtype=torch.float64)
    result = tracker()(draw_features(1), query)
    assert all(part.isfinite().all() for part in result)


def test_the_gradient_is_cut_at_the_coordinates():
    """Of a later iteration with respect to the query's coordinates only what the last step adds is left."""
    model, features = tracker(num_iterations=2), draw_features(1)
    steps = []
    model.updater.register_forward_hook(lambda _, __, out: steps.append(out))
    coords = model(features, draw_queries(1)).coords_px
    (first,) = torch.autograd.grad(coords[0, :, 1].sum(), steps[0], retain_graph=True)
    assert torch.equal(first[:, :, 1, :2], torch.full((1, 4, 2), 2.0, dtype=torch.float64))
    # The second position holds the first correction only as a constant; what flows goes through the features.
    (second,) = torch.autograd.grad(coords[1, :, 1].sum(), steps[0])
    assert not second[..., :2].any()
    assert second[..., 2:].any()


def test_every_parameter_gets_a_gradient():
    model = tracker()
    result = model(draw_features(), draw_queries())
    sum((part * torch.randn_like(part)).sum() for part in result).backward()
    assert without_gradient(model) == []


@pytest.mark.parametrize("how", ["weights", "autocast"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_ends_in_float32(dtype, how):
    model, features, query = tracker(num_iterations=1), draw_features(), draw_queries()
    reference = model(features, query)
    if how == "weights":
        result = copy.deepcopy(model).to(dtype)(features.to(dtype), query.float())
    else:
        with torch.autocast("cpu", dtype):
            result = copy.deepcopy(model).float()(features.float(), query.float())
    assert {part.dtype for part in result} == {torch.float32}
    torch.testing.assert_close(result.coords_px[:, :, 0], reference.coords_px[:, :, 0].float(), rtol=0, atol=1e-5)
    moved = (reference.coords_px - query[None, :, None]).norm()
    error = (result.coords_px - reference.coords_px).norm() / moved
    assert error < 100 * torch.finfo(dtype).eps


def test_too_small_maps_and_wrong_shapes():
    model = tracker()
    with pytest.raises(
        ValueError, match=r"^features must have at least 4 pixels a side for 3 levels, got \(3, 9\); use larger images$"
    ):
        model(torch.zeros(1, 2, DIM, 3, 9).double(), draw_queries(1))
    with pytest.raises(ValueError, match=r"^features must have shape \(B, S, 8, H, W\), got \(1, 2, 6, 9, 13\)$"):
        model(torch.zeros(1, 2, 6, 9, 13).double(), draw_queries(1))
    wanted = r"^query_points must have shape \(2, N, 2\) or \(2, N, 3\), got "
    with pytest.raises(ValueError, match=wanted + r"\(2, 4, 4\)$"):
        model(draw_features(), torch.zeros(2, 4, 4).double())
    with pytest.raises(ValueError, match=r"^dim must "):
        Tracker(6)
    with pytest.raises(ValueError, match=r"^num_iterations must "):
        tracker(num_iterations=0)


@pytest.mark.usefixtures("unchecked")
def test_queries_of_another_batch():
    with pytest.raises(ValueError, match=r"^query_points must have shape \(2, N, 2\) or \(2, N, 3\), got \(3, 4, 2\)$"):
        tracker()(draw_features(), draw_queries(3))


def test_views_of_queries_are_the_nearest_whole_ones_in_range():
    model, features, points = tracker(), draw_features(1, 3), draw_queries(1, 6)

    def track(views: list[float]) -> Tensor:
        return model(features, torch.cat([torch.tensor(views).double()[None, :, None], points], dim=-1)).coords_px

    assert torch.equal(track([0.9999, 2.0001, 1.2, -7.0, 99.0, 0.0]), track([1.0, 2.0, 1.0, 0.0, 2.0, 0.0]))


def test_displacements_are_given_over_a_length():
    short, long, query = tracker(max_displacement=1.0), tracker(), draw_queries()
    long.load_state_dict(short.state_dict())
    features = draw_features()
    first, second = (model(features, query).coords_px for model in (short, long))
    assert torch.equal(first[0], second[0])  # where nothing is displaced yet
    assert not torch.allclose(first[1], second[1], atol=1e-3)


@pytest.mark.parametrize(("num_levels", "stride", "side"), [(7, 2, 128), (3, 4, 16), (1, 1, 1)])
def test_smallest_image(num_levels, stride, side):
    assert Tracker(DIM, num_levels=num_levels, stride=stride).min_image_side == side
