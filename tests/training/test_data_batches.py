from collections import Counter

import pytest
import torch

from geomtx.data.sampling import rare_view_counts
from geomtx.data.scene_check import SceneError
from geomtx.data.synthetic.render import is_held_out
from geomtx.training.config import DataSection, ValidationSection
from geomtx.training.data import SceneStream, load_batches, split_batch, validation_batches
from geomtx.types import SceneBatch
from training.small_run import random_scenes


def draw(
    seeds: list[int], num_views: int, image_hw: tuple[int, int], *, device: torch.device | None = None
) -> SceneBatch:
    """The seed is the value of all pixels."""
    values = torch.tensor(seeds, dtype=torch.float64)
    return SceneBatch(images=values[:, None, None, None, None].expand(-1, num_views, 3, *image_hw))


def stream(rank: int = 0, num_processes: int = 1, **section: object) -> SceneStream:
    numbers = {"image_hw": (4, 6), "images": 12, "views": {2: 1.0, 3: 2.0, 5: 1.0}, **section}
    return SceneStream(DataSection(**numbers), draw, patch_size=2, seed=5, rank=rank, num_processes=num_processes)


def test_a_step_has_its_scenes_whenever_it_is_asked_for():
    first, second = stream(), stream()
    for step in (7, 3, 7):
        assert torch.equal(first[step].images, second[step].images)
    assert not torch.equal(first[3].images[:1, :1, 0, 0, 0], first[4].images[:1, :1, 0, 0, 0])
    assert len({seed for step in range(50) for seed in first.seeds(step)}) == sum(
        len(first.seeds(step)) for step in range(50)
    )


def test_budget_and_weights_of_the_numbers_of_views():
    batches = stream()
    counts = Counter(batches.num_views(step) for step in range(4000))
    for views, share in {2: 0.25, 3: 0.5, 5: 0.25}.items():
        assert counts[views] / 4000 == pytest.approx(share, abs=0.03)
    for step in range(10):
        views = batches.num_views(step)
        assert batches[step].images.shape == (12 // views, views, 3, 4, 6)
    assert stream(images=1)[0].images.shape[0] == 1


def test_processes_share_the_scenes_of_one_with_all_the_budget():
    whole = stream(images=12, views={3: 1.0})
    parts = [stream(rank, 2, images=6, views={3: 1.0}) for rank in range(2)]
    for step in range(5):
        assert sorted(whole.seeds(step)) == sorted(parts[0].seeds(step) + parts[1].seeds(step))
        assert not set(parts[0].seeds(step)) & set(parts[1].seeds(step))


def test_processes_draw_their_numbers_of_views_by_themselves():
    one, two = stream(0, 2), stream(1, 2)
    pairs = {(one.num_views(step), two.num_views(step)) for step in range(200)}
    assert len(pairs) == 9


def test_numbers_of_views_that_are_left_out():
    assert rare_view_counts(DataSection().views) == []
    assert rare_view_counts({2: 1.0, 3: 1.0}) == list(range(4, 25))
    assert rare_view_counts(dict.fromkeys(range(1, 24), 1.0) | {7: 0.1, 24: 0.3}) == [7]


def test_aspects_are_in_range_and_in_whole_patches():
    batches = stream(image_hw=(60, 60), aspect=(0.33, 1.0))
    heights = {batches[step].images.shape[-2] for step in range(200)}
    assert min(heights) in (18, 20)
    assert max(heights) in (58, 60)
    assert all(height % 2 == 0 for height in heights)
    assert all(batches[step].images.shape[-1] == 60 for step in range(5))


def test_sides_that_are_no_multiples_of_the_patch():
    with pytest.raises(ValueError, match=r"^data\.image_hw must be a multiple of 2, got 5$"):
        stream(image_hw=(4, 5))


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_is_the_stream_in_order(workers: int):
    batches = stream()
    loaded = list(load_batches(batches, range(3, 7), workers=workers))
    assert len(loaded) == 4
    for step, batch in zip(range(3, 7), loaded, strict=True):
        assert torch.equal(batch.images, batches[step].images)
        assert batch.tracks is None


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_workers_are_what_they_are_without(workers: int):
    def fail(*_: object, **__: object) -> SceneBatch:
        raise SceneError("pictures of 'a' must exist, got none")

    batches = SceneStream(DataSection(image_hw=(4, 6)), fail, patch_size=2, seed=5)
    with pytest.raises(SceneError, match=r"^pictures of 'a' must exist, got none$"):
        next(iter(load_batches(batches, range(2), workers=workers)))


def test_validation_scenes_are_held_out_and_always_the_same():
    section = ValidationSection(every=1, scenes=5, views=(2, 4))
    data = DataSection(image_hw=(4, 6), images=8)
    batches = list(validation_batches(section, data, draw, torch.device("cpu")))
    assert [(n, len(batch.images)) for n, batch in batches] == [(2, 4), (2, 1), (4, 2), (4, 2), (4, 1)]
    assert all(is_held_out(int(seed)) for _, batch in batches for seed in batch.images[:, 0, 0, 0, 0])
    again = list(validation_batches(section, data, draw, torch.device("cpu")))
    assert all(torch.equal(a.images, b.images) for (_, a), (_, b) in zip(batches, again, strict=True))


@pytest.mark.parametrize(("chunks", "sizes"), [(1, [5]), (2, [3, 2]), (4, [2, 1, 1, 1]), (9, [1] * 5)])
def test_chunks_are_nearly_equal_and_none_is_lost(chunks: int, sizes: list[int]):
    batch = random_scenes(5)
    parts = split_batch(batch, chunks)
    assert [len(part.images) for part in parts] == sizes
    assert torch.equal(torch.cat([part.cameras.cam_from_world for part in parts]), batch.cameras.cam_from_world)
    assert torch.equal(torch.cat([part.tracks.visible for part in parts]), batch.tracks.visible)
    assert all(part.camera_mask is None for part in parts)
