from __future__ import annotations

import logging

import pytest

from geomtx.data import SceneRequest, ViewCountSampler


def test_all_of_a_batch_share_views_and_aspect_and_fill_the_budget() -> None:
    for batch in ViewCountSampler(10, num_batches=200):
        assert len({(request.num_views, request.aspect) for request in batch}) == 1
        num_views, aspect = batch[0].num_views, batch[0].aspect
        assert 2 <= num_views <= 24
        assert len(batch) == 48 // num_views
        assert 0.33 <= aspect <= 1.0
        assert aspect == round(aspect, 2)
        assert all(0 <= request.scene < 10 for request in batch)


def test_every_number_of_views_is_equally_likely_for_a_batch() -> None:
    """1/23 of the batches, but 24/126 of the scenes have two views."""
    sampler = ViewCountSampler(10, num_batches=4600)
    scenes = [
        p * sampler.scenes_per_batch(int(views)) for views, p in zip(sampler.views, sampler.probabilities, strict=True)
    ]
    assert scenes[0] / sum(scenes) == pytest.approx(24 / 126)
    list(sampler)
    assert set(sampler.histogram) == set(range(2, 25))
    assert min(sampler.histogram.values()) > 140
    assert max(sampler.histogram.values()) < 260


def test_every_number_of_views_is_equally_likely_for_a_scene() -> None:
    sampler = ViewCountSampler(10, num_batches=1, weights="per_sequence_uniform")
    shares = [
        p * sampler.scenes_per_batch(int(views)) for views, p in zip(sampler.views, sampler.probabilities, strict=True)
    ]
    assert shares == pytest.approx([shares[0]] * 23)


def test_weights_of_a_table() -> None:
    sampler = ViewCountSampler(10, num_batches=400, weights={2: 3.0, 24: 1.0})
    list(sampler)
    assert set(sampler.histogram) == {2, 24}
    assert 250 < sampler.histogram[2] < 350


def test_one_view_is_rare() -> None:
    sampler = ViewCountSampler(10, num_batches=1, num_views=(1, 24))
    assert sampler.probabilities[0] == pytest.approx(0.1 / 23.1)
    assert sampler.probabilities[1] == pytest.approx(1 / 23.1)


def test_more_views_than_the_budget() -> None:
    (batch,) = ViewCountSampler(10, num_batches=1, num_views=(6, 6), budget=4)
    assert len(batch) == 1


def test_seeds_epochs_and_ranks() -> None:
    def draw(*, seed: int = 1, rank: int = 0, epoch: int = 0) -> list[list[SceneRequest]]:
        sampler = ViewCountSampler(1000, num_batches=5, seed=seed, rank=rank)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert draw() == draw()
    others = [draw(), draw(seed=2), draw(rank=1), draw(epoch=1), draw(epoch=2), draw(rank=2)]
    for index, one in enumerate(others):
        assert all(one != other for other in others[:index])
    seeds = [request.seed for batch in draw() for request in batch]
    assert len(set(seeds)) == len(seeds)


def test_iterating_twice_gives_the_same_epoch() -> None:
    sampler = ViewCountSampler(1000, num_batches=5)
    assert list(sampler) == list(sampler)
    assert len(sampler) == 5


@pytest.mark.parametrize("aspect", [1.0, (1.0, 1.0)])
def test_fixed_aspect(aspect: float | tuple[float, float]) -> None:
    sampler = ViewCountSampler(10, num_batches=20, aspect=aspect)
    assert {batch[0].aspect for batch in sampler} == {1.0}


def test_the_histogram_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    sampler = ViewCountSampler(10, num_batches=4, weights={2: 1.0})
    assert sampler.describe() == "no batches yet"
    with caplog.at_level(logging.INFO, "geomtx.data.sampling"):
        list(sampler)
    assert caplog.messages[-1] == ("4 batches, 96 scenes; views: share of batches / of scenes: 2: 100.0% / 100.0%")


@pytest.mark.parametrize(
    ("options", "first"),
    [
        ({"num_views": (8, 24)}, "2, 3, 4, 5, 6, 7;"),
        ({"num_views": (2, 23)}, "24;"),
        ({"weights": {2: 1.0, 3: 1.0}}, "4, 5,"),
        ({"weights": "per_sequence_uniform"}, "2, 3;"),
        ({"weights": {**dict.fromkeys(range(2, 25), 1.0), 5: 0.1}}, "5;"),
    ],
)
def test_gaps_are_warned_of(options: dict, first: str, caplog: pytest.LogCaptureFixture) -> None:
    ViewCountSampler(10, num_batches=1, **options)
    (message,) = caplog.messages
    assert message.startswith(f"numbers of views below 1 % of the batches: {first}")


@pytest.mark.parametrize("options", [{}, {"num_views": (1, 24)}, {"num_views": (2, 40)}])
def test_no_warning_without_gaps(options: dict, caplog: pytest.LogCaptureFixture) -> None:
    ViewCountSampler(10, num_batches=1, **options)
    assert caplog.messages == []


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_scenes": 0}, r"^num_scenes must be positive, got 0$"),
        ({"num_batches": 0}, r"^num_batches must be positive, got 0$"),
        ({"num_views": (0, 4)}, r"^num_views must be \(least, most\), both positive, got \(0, 4\)$"),
        ({"budget": 0}, r"^budget must be positive, got 0$"),
        ({"num_views": (5, 4)}, r"^num_views must be "),
        ({"aspect": 0.0}, r"^aspect must be a positive number or range, got 0.0$"),
        ({"aspect": (1.0, 0.5)}, r"^aspect must be a positive number or range, got \(1.0, 0.5\)$"),
        ({"weights": "even"}, r"^weights must be one of 'uniform', 'per_sequence_uniform', got 'even'$"),
        ({"weights": {1: 1.0}}, r"^weights must be ≥ 0, of 2 … 24 views, and not all 0, got \{1: 1.0\}$"),
        ({"weights": {2: -1.0}}, r"^weights must be ≥ 0, .* got \{2: -1.0\}$"),
        ({"weights": {2: float("inf")}}, r"^weights must be ≥ 0, .* got \{2: inf\}$"),
        ({"weights": {2: 0.0}}, r"^weights must be ≥ 0, .* got \{2: 0.0\}$"),
        ({"weights": {}}, r"^weights must be ≥ 0, .* got \{\}$"),
    ],
)
def test_refused_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViewCountSampler(**{"num_scenes": 10, "num_batches": 1, **options})
