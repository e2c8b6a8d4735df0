import pytest
import torch
from torch import Tensor

from geomtx.tracking import WindowTracker, sample_views
from geomtx.tracking.correlation import sample_map
from reference import bilinear, randomize, without_gradient

C, MAP_HW = 8, (9, 13)


def tracker(**options) -> WindowTracker:
    numbers = {"num_levels": 2, "radius": 1, "num_iterations": 2, "test_iterations": 2, "window": 4, "window_stride": 2}
    numbers |= {"hidden_dim": 16, "num_heads": 2, "depth": 1, "num_virtual": 3, "stride": 2}
    return randomize(WindowTracker(C, **{**numbers, **options})).double().eval()


def draw_features(num_views: int, num_scenes: int = 1) -> Tensor:
    return torch.randn(num_scenes, num_views, C, *MAP_HW).double()


def draw_queries(views: list[int], num_scenes: int = 1) -> Tensor:
    view = torch.tensor(views).double().expand(num_scenes, -1)[..., None]
    return torch.cat([view, torch.rand(*view.shape[:2], 2).double() * torch.tensor([25, 17])], dim=-1)


def assert_close(ours, reference, atol: float = 1e-9) -> None:
    for a, b in zip(ours, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


def test_each_point_is_sampled_in_its_own_view():
    maps, view = torch.randn(2, 3, 5, 6, 7).double(), torch.randint(3, (2, 4))
    coords = torch.rand(2, 4, 2).double() * torch.tensor([9, 8]) - 1  # outside too
    ours = sample_views(maps, view, coords)
    for b in range(2):
        for n in range(4):
            x, y = coords[b, n].clamp(min=0).minimum(torch.tensor([6.0, 5.0])).tolist()
            torch.testing.assert_close(ours[b, n], bilinear(maps[b, view[b, n]], x, y))
            expected = sample_map(maps[b, view[b, n]][None], coords[b, n][None, None, None])[0, :, 0, 0]
            torch.testing.assert_close(ours[b, n], expected)


@pytest.mark.parametrize(
    ("num_views", "starts"), [(2, [0]), (4, [0]), (5, [0, 2]), (6, [0, 2]), (7, [0, 2, 4]), (9, [0, 2, 4, 6])]
)
def test_windows_cover_a_video_of_any_length(num_views, starts):
    tracks, windows = tracker()(draw_features(num_views), draw_queries([0, 1]))
    assert tracks.coords_px.shape == (1, num_views, 2, 2)
    assert tracks.visibility.shape == tracks.confidence.shape == (1, num_views, 2)
    assert windows.views[:, 0].tolist() == starts
    seen = windows.views[windows.views >= 0]
    assert seen.unique().tolist() == list(range(num_views))
    assert windows.coords_px.shape == (len(starts), 2, 1, 4, 2, 2)
    for part in (*tracks, *windows):
        assert part.isfinite().all()


def test_the_later_window_counts():
    """From a query on; logits become probabilities."""
    tracks, windows = tracker()(draw_features(7), draw_queries([0, 0, 0]))
    last = {view: (k, w) for k, row in enumerate(windows.views.tolist()) for w, view in enumerate(row)}
    for view in range(7):
        k, w = last[view]
        assert torch.equal(tracks.coords_px[:, view], windows.coords_px[k, -1, :, w])
        logits = windows.visibility_logits[k, -1, :, w]
        torch.testing.assert_close(tracks.visibility[:, view], 1 / (1 + (-logits).exp()))


def test_what_a_window_begins_with_is_what_the_last_one_ended_with(monkeypatch):
    model = tracker()
    begun, ended = [], []
    refine = model.refiner.forward

    def record(pyramid, state, queries, num_iterations):
        history = refine(pyramid, state, queries, num_iterations)
        begun.append(state)
        ended.append(history[-1])
        return history

    monkeypatch.setattr(model.refiner, "forward", record)
    queries = draw_queries([0, 3, 4])  # in the first window, in both, in the second
    model(draw_features(6), queries, backward=False)
    assert len(begun) == 2
    for ours, last in zip(begun[1], ended[0], strict=True):
        for track in (0, 1):
            assert torch.equal(ours[:, :2, track], last[:, 2:, track])
            assert torch.equal(ours[:, 2, track], last[:, 3, track])
            assert torch.equal(ours[:, 3, track], last[:, 3, track])
    assert torch.equal(begun[1].coords[:, :, 2], (queries[:, 2, 1:] / 2)[:, None].expand(-1, 4, -1))
    assert not begun[1].visibility[:, :, 2].any()


def test_the_end_of_a_short_video_is_padding_that_nothing_hears_of():
    """A window longer than the video is the window of its length."""
    torch.manual_seed(1)
    long = tracker(window=7, window_stride=2)
    short = tracker(window=3, window_stride=2)
    short.load_state_dict(long.state_dict())
    features, queries = draw_features(3), draw_queries([0, 1, 2])
    assert_close(long(features, queries).tracks, short(features, queries).tracks)


def test_scenes_know_nothing_of_each_other():
    model = tracker()
    features, views = draw_features(7, 3), [0, 5, 3]
    queries = torch.cat([draw_queries(views), draw_queries([6, 6, 6]), draw_queries([2, 0, 0])])
    together = model(features, queries)
    for b in range(3):
        alone = model(features[b : b + 1], queries[b : b + 1])
        assert_close(alone.tracks, (part[b : b + 1] for part in together.tracks))


def test_the_order_of_queries_means_nothing():
    model, features, queries = tracker(), draw_features(7, 2), draw_queries([0, 5, 3, 3, 6], 2)
    order = torch.randperm(5)
    ours, reference = model(features, queries[:, order]).tracks, model(features, queries).tracks
    assert_close(ours, (part[:, :, order] for part in reference))


def test_a_query_keeps_its_place_in_its_own_view():
    views = [0, 2, 5, 6, 3]
    for backward in (True, False):
        queries = draw_queries(views)
        tracks = tracker()(draw_features(7), queries, backward=backward).tracks
        for track, view in enumerate(views):
            torch.testing.assert_close(tracks.coords_px[0, view, track], queries[0, track, 1:])


def test_backwards_is_forwards_in_the_reversed_video():
    model, features = tracker(), draw_features(7)
    queries = draw_queries([3, 5, 6])
    tracks = model(features, queries).tracks
    mirrored = torch.cat([6 - queries[..., :1], queries[..., 1:]], dim=-1)
    reverse = model(features.flip(1), mirrored).tracks
    elsewhere = torch.arange(7)[:, None] != torch.tensor([3, 5, 6])  # the query's own view is of the pass forwards
    assert_close((part[:, elsewhere] for part in tracks), (part.flip(1)[:, elsewhere] for part in reverse))
    forwards = model(features, queries, backward=False).tracks
    for track, view in enumerate([3, 5, 6]):
        assert torch.equal(forwards.coords_px[:, view:, track], tracks.coords_px[:, view:, track])
        before = forwards.coords_px[0, :view, track]
        torch.testing.assert_close(before, queries[0, track, 1:].expand_as(before))
        assert not forwards.visibility[:, :view, track].any()
        assert not forwards.confidence[:, :view, track].any()


def test_tracks_to_come_have_no_influence():
    """Until the windows reach their queries."""
    model, features, queries = tracker(), draw_features(8), draw_queries([0, 1, 6])
    other = torch.cat([queries[:, :2], draw_queries([7])], dim=1)
    ours, reference = (model(features, q, backward=False).tracks for q in (queries, other))
    for a, b in zip(ours, reference, strict=True):
        assert torch.equal(a[:, :2, :2], b[:, :2, :2])
        assert not torch.equal(a[:, 4:, :2], b[:, 4:, :2])


def test_tracks_inform_each_other_and_views_too():
    model, features, queries = tracker(), draw_features(6), draw_queries([0, 0])
    coords = model(features, queries).tracks.coords_px
    moved = queries.clone()
    moved[:, 1, 1:] += 1
    assert not torch.allclose(model(features, moved).tracks.coords_px[:, 1:, 0], coords[:, 1:, 0])
    changed = features.clone()
    changed[:, 3] = torch.randn_like(changed[:, 3])
    assert not torch.allclose(model(changed, queries).tracks.coords_px[:, 1, 0], coords[:, 1, 0])


def test_refinements_by_mode_or_by_number():
    model, features, queries = tracker(num_iterations=3, test_iterations=5), draw_features(4), draw_queries([0])
    assert model(features, queries).windows.coords_px.shape[1] == 5
    assert model(features, queries, num_iterations=1).windows.coords_px.shape[1] == 1
    assert model.train()(features, queries).windows.coords_px.shape[1] == 3


def test_every_parameter_and_the_features_get_a_gradient():
    model, features = tracker().train(), draw_features(6).requires_grad_()
    windows = model(features, draw_queries([0, 1, 4]), backward=False).windows
    sum((part * torch.randn_like(part)).sum() for part in windows[:3]).backward()
    assert without_gradient(model) == []
    assert features.grad.flatten(2).any(-1).all()


def test_half_precision_and_autocast_stay_float32_where_it_counts():
    model, features, queries = tracker().float(), draw_features(6).float(), draw_queries([0, 2]).float()
    exact = model(features, queries).tracks
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = model(features, queries).tracks
    assert cast.coords_px.dtype == torch.float32
    assert (cast.coords_px - exact.coords_px).abs().max() < 2
    half = model.bfloat16()(features.bfloat16(), queries).tracks
    assert half.coords_px.dtype == torch.float32
    assert half.coords_px.isfinite().all()


@pytest.mark.usefixtures("unchecked")
def test_errors():
    model = tracker()
    with pytest.raises(ValueError, match=r"^video must have at least 2 frames to track in, got 1$"):
        model(draw_features(1), draw_queries([0]))
    with pytest.raises(ValueError, match=r"^query_points must "):
        model(draw_features(3), draw_queries([0, 1])[..., 1:])
    with pytest.raises(ValueError, match=r"^features must "):
        model(draw_features(3)[:, :, :4], draw_queries([0]))
    with pytest.raises(ValueError, match=r"^num_iterations must "):
        model(draw_features(3), draw_queries([0]), num_iterations=0)
    with pytest.raises(ValueError, match=r"^window_stride must "):
        tracker(window=4, window_stride=4)
    with pytest.raises(ValueError, match=r"^window must "):
        tracker(window=1)
