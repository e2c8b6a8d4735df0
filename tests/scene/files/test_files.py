from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_map

import geomtx
from geomtx.scene.files import SCENE_FILES, save
from geomtx.types import DenseMap


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.usefixtures("small_pictures")
def test_the_same_bytes_every_time(scene: geomtx.Scene, tmp_path: Path) -> None:
    paths = scene.save(tmp_path / "one", max_points=1000)
    scene.save(tmp_path / "two", max_points=1000)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert sorted(path.name for path in paths) == sorted(SCENE_FILES) == sorted(digests(tmp_path / "one"))
    geomtx.Scene.load(tmp_path / "one").save(tmp_path / "three", max_points=1000)
    assert digests(tmp_path / "one") == digests(tmp_path / "three")


def test_a_failure_leaves_the_old_files(scene: geomtx.Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.save(tmp_path, report=False)
    before = digests(tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(save, "write_ply", fail)
    with pytest.raises(OSError, match="No space left"):
        scene.rescale(2).save(tmp_path, report=False)
    assert digests(tmp_path) == before


def test_stale_tracks_go(scene: geomtx.Scene, tmp_path: Path) -> None:
    scene.save(tmp_path, report=False)
    assert (tmp_path / "tracks.json").exists()
    without = scene.predictions._replace(tracks=None)
    dataclasses.replace(scene, predictions=without, query_points=None).save(tmp_path, report=False)
    assert not (tmp_path / "tracks.json").exists()


@pytest.mark.usefixtures("small_pictures")
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_predictions_that_are_not_finite_give_everything_but_points(
    scene: geomtx.Scene, tmp_path: Path, caplog: pytest.LogCaptureFixture, value: float
) -> None:
    scene.save(tmp_path, report=False)
    predictions = tree_map(lambda t: None if t is None else torch.full_like(t, value), scene.predictions)
    broken = dataclasses.replace(scene, predictions=predictions)
    with pytest.raises(ValueError, match="no finite points: the predictions are not finite"):
        broken.points()
    broken.save(tmp_path)
    assert caplog.messages == ["left out points.ply, no finite points: the predictions are not finite"]
    assert set(digests(tmp_path)) == set(SCENE_FILES) - {"points.ply"}


def test_depth_that_is_nowhere_positive_is_named(scene: geomtx.Scene) -> None:
    depth = DenseMap(torch.zeros(4, 84, 112), torch.ones(4, 84, 112))
    behind = dataclasses.replace(scene, predictions=scene.predictions._replace(depth=depth))
    with pytest.raises(ValueError, match="no points: the predicted depth is not positive anywhere"):
        behind.points()
