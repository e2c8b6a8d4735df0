from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from data.layouts import OPTIONS
from data.plane_scenes import write_unified, write_virtual_kitti
from geomtx.data import (
    SceneError,
    SceneMixture,
    SceneRequest,
    SceneSource,
    UnifiedDataset,
    ViewCountSampler,
    VirtualKittiDataset,
    check_values,
    collate_scenes,
)
from geomtx.types import SceneBatch


class Numbered:
    """Scenes whose pictures say which scene it is; those in `broken` cannot be used."""

    def __init__(self, first: int, num_scenes: int, broken: tuple[int, ...] = ()) -> None:
        self.first, self.num_scenes, self.broken = first, num_scenes, broken
        self.requests: list[SceneRequest] = []

    def __len__(self) -> int:
        return self.num_scenes

    def __getitem__(self, request: SceneRequest) -> SceneBatch:
        self.requests.append(request)
        if request.scene in self.broken:
            raise SceneError(f"scene {request.scene} must exist, got none")
        return SceneBatch(torch.full((1, request.num_views, 3, 2, 2), float(self.first + request.scene)))


def number(scene: SceneBatch) -> int:
    return int(scene.images.flatten()[0])


def test_lengths_are_the_ratio_and_scenes_are_uniform() -> None:
    mixture = SceneMixture([Numbered(0, 5), Numbered(100, 2)], lengths=[300, 100])
    assert len(mixture) == 400
    drawn = Counter(number(mixture[SceneRequest(index, 2, 1.0, index)]) for index in range(400))
    assert sum(count for scene, count in drawn.items() if scene >= 100) == 100
    assert set(drawn) == {0, 1, 2, 3, 4, 100, 101}
    assert min(drawn[scene] for scene in range(5)) > 35
    assert min(drawn[100], drawn[101]) > 30


def test_without_lengths_every_scene_is_equally_likely() -> None:
    assert len(SceneMixture([Numbered(0, 5), Numbered(100, 2)])) == 7


def test_equal_requests_give_equal_scenes_and_others_differ() -> None:
    dataset = Numbered(0, 1000)
    mixture = SceneMixture([dataset])
    for request in (SceneRequest(3, 2, 0.5, 7), SceneRequest(3, 2, 0.5, 7), SceneRequest(3, 2, 0.5, 8)):
        mixture[request]
    first, again, other = dataset.requests
    assert first == again
    assert first.scene != other.scene
    assert first.seed != other.seed
    assert first[1:3] == (2, 0.5)


def test_broken_scenes_are_counted_and_others_drawn(caplog: pytest.LogCaptureFixture) -> None:
    dataset = Numbered(0, 4, broken=(0, 1))
    mixture = SceneMixture([dataset], max_skips=30)
    drawn = {number(mixture[SceneRequest(0, 2, 1.0, seed)]) for seed in range(40)}
    assert drawn == {2, 3}
    assert mixture.num_skipped == len(dataset.requests) - 40 == len(caplog.messages) > 20
    assert len({request.seed for request in dataset.requests}) == len(dataset.requests)
    assert caplog.messages[0].startswith("left out a scene, the 1. so far: scene ")
    assert all("\n" not in message for message in caplog.messages)


def test_a_broken_dataset_doesnt_change_the_ratio_but_stops() -> None:
    bad = Numbered(100, 3, broken=(0, 1, 2))
    mixture = SceneMixture([Numbered(0, 5), bad], max_skips=4)
    number(mixture[SceneRequest(0, 2, 1.0)])
    with pytest.raises(SceneError, match=r"^dataset 1 must have scenes that can be read, got 5 broken: scene \d must"):
        mixture[SceneRequest(5, 2, 1.0)]
    assert mixture.num_skipped == 5


def test_other_errors_are_not_swallowed() -> None:
    class Faulty(Numbered):
        def __getitem__(self, request: SceneRequest) -> SceneBatch:
            raise KeyError("a mistake in the code")

    with pytest.raises(KeyError, match="a mistake in the code"):
        SceneMixture([Faulty(0, 1)])[SceneRequest(0, 2, 1.0)]


@pytest.mark.parametrize("index", [-1, 7])
def test_no_such_index(index: int) -> None:
    with pytest.raises(IndexError, match=rf"^scene must be in 0 … 6, got {index}$"):
        SceneMixture([Numbered(0, 7)])[SceneRequest(index, 2, 1.0)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), r"^datasets must hold at least one, got none$"),
        (([Numbered(0, 0)],), r"^length of dataset 0 must be positive, got 0$"),
        (([Numbered(0, 1)], [1, 2]), r"^lengths must be one per dataset, 1, got 2$"),
        (([Numbered(0, 1)], [0]), r"^lengths must be positive, got 0$"),
    ],
)
def test_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SceneMixture(*arguments)
    with pytest.raises(ValueError, match=r"^max_skips must be positive, got 0$"):
        SceneMixture([Numbered(0, 1)], max_skips=0)


def test_a_loader_from_end_to_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two layouts, a broken scene, batches of equal shape; workers give what one process gives."""
    write_unified(tmp_path / "rooms", "good")
    folder = write_unified(tmp_path / "rooms", "bad")
    write_virtual_kitti(tmp_path / "drives")
    rooms = UnifiedDataset(tmp_path / "rooms", options=OPTIONS)
    for path in (folder / "images").iterdir():
        path.unlink()
    drives = VirtualKittiDataset(tmp_path / "drives", min_frames=2, options=OPTIONS)
    assert isinstance(rooms, SceneSource)
    mixture = SceneMixture([rooms, drives], lengths=[50, 50])
    sampler = ViewCountSampler(len(mixture), num_batches=6, num_views=(2, 4), budget=8)
    with caplog.at_level(logging.WARNING):
        batches = list(DataLoader(mixture, batch_sampler=sampler, collate_fn=collate_scenes))
    assert mixture.num_skipped > 0
    for batch, requests in zip(batches, sampler, strict=True):
        assert batch.images.shape[:2] == (len(requests), requests[0].num_views)
        assert batch.images.shape[-2:] == OPTIONS.image_hw(requests[0].aspect)
        check_values(batch)
    parallel = DataLoader(mixture, batch_sampler=sampler, collate_fn=collate_scenes, num_workers=2)
    for one, other in zip(batches, parallel, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.depth, other.depth)
