from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest
import torch

import geomtx
from geomtx.export import SCENE_FILES, files
from geomtx.types import DenseMap


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


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

    monkeypatch.setattr(files, "write_ply", fail)
    with pytest.raises(OSError, match="No space left"):
        scene.rescale(2).save(tmp_path, report=False)
    assert digests(tmp_path) == before


def test_stale_tracks_go(scene: geomtx.Scene, tmp_path: Path) -> None:
    scene.save(tmp_path, report=False)
    assert (tmp_path / "tracks.json").exists()
    without = scene.predictions._replace(tracks=None)
    dataclasses.replace(scene, predictions=without, query_points=None).save(tmp_path, report=False)
    assert not (tmp_path / "tracks.json").exists()


def test_a_scene_without_a_finite_point_is_an_error_and_writes_nothing(scene: geomtx.Scene, tmp_path: Path) -> None:
    depth = DenseMap(torch.full((4, 84, 112), torch.nan), torch.ones(4, 84, 112))
    broken = dataclasses.replace(scene, predictions=scene.predictions._replace(depth=depth))
    with pytest.raises(ValueError, match="at least one valid pixel"):
        broken.save(tmp_path / "out")
    assert not list(tmp_path.iterdir())
