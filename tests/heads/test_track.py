from functools import partial

import pytest
import torch

from geomtx import DPTDecoder, Tracker, TrackHead
from geomtx.inference import track_in_chunks
from heads.random_tokens import random_tokens
from reference import randomize, without_gradient


def head(**options) -> TrackHead:
    decoder = DPTDecoder(
        16, 8, channels=(8, 12, 16, 4), taps=(0, 1, 2, 3), out_channels=8, stride=2, position_signal=False
    )
    numbers = {"num_levels": 3, "radius": 1, "num_iterations": 2, "hidden_dim": 16, "num_heads": 2, "depth": 1}
    tracker = Tracker(8, **{**numbers, "num_virtual": 3, **options})
    return randomize(TrackHead(decoder, tracker)).double().eval()


def queries(num_scenes: int = 2, num_points: int = 4) -> torch.Tensor:
    return torch.rand(num_scenes, num_points, 2, dtype=torch.float64) * torch.tensor([41, 27])


def test_tracks_are_the_last_iteration_and_probabilities():
    model, tokens, query = head(), random_tokens(), queries()
    tracks, iterations = model(tokens, query)
    assert iterations.coords_px.shape == (2, 2, 3, 4, 2)
    assert torch.equal(tracks.coords_px, iterations.coords_px[-1])
    for ours, logits in (
        (tracks.visibility, iterations.visibility_logits),
        (tracks.confidence, iterations.confidence_logits),
    ):
        torch.testing.assert_close(ours, 1 / (1 + (-logits).exp()), rtol=0, atol=1e-14)


def test_features_can_be_kept_for_several_sets_of_queries():
    model, tokens = head(), random_tokens()
    features = model.extract(tokens)
    assert features.shape == (2, 3, 8, 14, 21)
    for _ in range(2):
        query = queries()
        tracks, iterations = model.track(features, query)
        expected = model(tokens, query)
        assert torch.equal(iterations.coords_px, expected.iterations.coords_px)
        assert torch.equal(tracks.confidence, expected.tracks.confidence)


@pytest.mark.parametrize("query_chunk", [1, 3])
def test_queries_in_chunks_are_tracked_as_if_alone(query_chunk):
    """In any view; without the others the tracks differ, as they inform each other."""
    model, tokens = head(), random_tokens()
    features = model.extract(tokens)
    query = torch.cat([torch.randint(3, (2, 4, 1)).double(), queries()], dim=-1)
    chunked, whole = track_in_chunks(partial(model.track, features), query, query_chunk), model(tokens, query)
    alone = [model(tokens, part) for part in query.split(query_chunk, dim=1)]
    assert torch.equal(chunked.tracks.coords_px, torch.cat([part.tracks.coords_px for part in alone], dim=2))
    logits = [part.iterations.visibility_logits for part in alone]
    assert torch.equal(chunked.iterations.visibility_logits, torch.cat(logits, dim=2))
    assert chunked.iterations.coords_px.shape == whole.iterations.coords_px.shape
    assert not torch.allclose(chunked.tracks.coords_px, whole.tracks.coords_px)


@pytest.mark.usefixtures("unchecked")
def test_queries_of_kept_features_are_looked_at():
    model, query = head(), queries(1)
    features = model.extract(random_tokens(1))
    height, width = (2 * side for side in features.shape[-2:])
    expected = model.track(features, query).tracks
    for ours, reference in zip(model.track(features, query[0]).tracks, expected, strict=True):
        assert torch.equal(ours, reference)
    model.track(features, torch.tensor([[2, width + 0.5, height + 0.5]]).double())  # of images that are larger by one
    for row, message in (
        ([3.0, 5, 5], rf"lie in one of 3 views of {width}x{height} pixels, got \[3.0, "),
        ([0, width + 1.0, 5], rf"lie in one of 3 views of {width}x{height} pixels, got "),
        ([0.5, 5, 5], r"name views by whole numbers, as \(view, x, y\), got \[0.5, "),
        ([0, 5, torch.nan], r"be finite, got \[0.0, 5.0, nan\]$"),
    ):
        with pytest.raises(ValueError, match=r"^query_points must " + message):
            model.track(features, torch.tensor([[0, 5, 5], row]).double())
    with pytest.raises(ValueError, match=r"^query_points must be a tensor, got list; "):
        model.track(features, [[1.0, 2.0]])
    with pytest.raises(ValueError, match=r"^query_points must "):
        model.track(features, queries(2))
    with pytest.raises(ValueError, match=r"^features must "):
        model.track(features[0], query)


def test_every_parameter_gets_a_gradient():
    """Of the decoder too, through the correlations of the last iteration."""
    model = head()
    iterations = model(random_tokens(), queries()).iterations
    sum((part * torch.randn_like(part)).sum() for part in iterations).backward()
    assert without_gradient(model) == []


def test_a_masked_view_is_no_view():
    model, tokens, query = head(), random_tokens(1, 3), queries(1)
    mask = torch.ones(1, 3, 9, dtype=torch.bool)
    mask[:, 1] = False
    masked = model(tokens._replace(mask=mask), query).tracks
    without = model(tokens._replace(layers={k: v[:, [0, 2]] for k, v in tokens.layers.items()}), query).tracks
    for ours, reference in zip(masked, without, strict=True):
        torch.testing.assert_close(ours[:, [0, 2]], reference, rtol=0, atol=1e-6)
        assert ours.isfinite().all()


def test_decoder_and_tracker_must_fit():
    decoder = DPTDecoder(16, 8, channels=(8, 8, 8, 8), out_channels=8, stride=1)
    numbers = {"num_levels": 2, "hidden_dim": 16, "num_heads": 2, "depth": 1}
    with pytest.raises(ValueError, match=r"^decoder must have 8 channels and stride 2, as the tracker, got 8 and 1$"):
        TrackHead(decoder, Tracker(8, **numbers))
    with pytest.raises(ValueError, match=r"^decoder must "):
        TrackHead(decoder, Tracker(12, stride=1, **numbers))
