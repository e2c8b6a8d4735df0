from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import geomtx
from geomtx.cli import main
from geomtx.cli.demo_scene import render_room
from geomtx.geometry import project, unproject


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geomtx.cli.demo_scene.render_room", lambda: render_room(5, (168, 224)))
    (tmp_path / "out" / "photos").mkdir(parents=True)
    (tmp_path / "out" / "photos" / "mine.txt").write_text("keep")
    assert main(["demo", "-o", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert "RANDOM WEIGHTS" in out
    assert "RANDOM WEIGHTS" in err
    assert "5 views" in out
    assert len(list((tmp_path / "out" / "photos").glob("*.png"))) == 5
    assert (tmp_path / "out" / "photos" / "mine.txt").read_text() == "keep"
    assert "RANDOM WEIGHTS" in geomtx.Scene.load(tmp_path / "out").notice


def test_the_truth_of_the_room_is_consistent() -> None:
    """A surface point of one view has the same colour and depth in another, where that view sees it."""
    first, second = render_room(2, (168, 224))
    points = unproject(*(torch.from_numpy(part) for part in (first.depth, first.intrinsics, first.cam_from_world)))
    k, pose = torch.from_numpy(second.intrinsics), torch.from_numpy(second.cam_from_world)
    pixels, depth = project(points.reshape(-1, 3), k, pose)
    x, y = pixels.round().long().numpy().T
    inside = (x >= 0) & (x < 224) & (y >= 0) & (y < 168)
    seen = np.abs(second.depth[y[inside], x[inside]] - depth.numpy()[inside]) < 0.05
    assert seen.mean() > 0.7
    difference = np.abs(
        first.image.reshape(-1, 3)[inside][seen] - second.image[y[inside], x[inside]][seen].astype(float)
    )
    assert np.median(difference) < 6
