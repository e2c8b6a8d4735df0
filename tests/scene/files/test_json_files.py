from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import geomtx
from geomtx.scene.files import write_cameras, write_tracks
from geomtx.scene.files.json_file import to_plain, write_json
from geomtx.types import Predictions
from geomtx.views import ViewTransform


def test_floats_survive_and_lists_of_numbers_stay_on_a_line(tmp_path: Path) -> None:
    values = torch.randn(50, 3) * 10.0 ** torch.randint(-8, 8, (50, 1))
    write_json(tmp_path / "a.json", {"values": to_plain(values), "name": "[\n1,\n2]", "bad": "\udcff"})
    text = (tmp_path / "a.json").read_text()
    read = json.loads(text)
    assert torch.equal(torch.tensor(read["values"]), values)
    assert read["name"] == "[\n1,\n2]"
    assert read["bad"] == r"\xff"
    assert len(text.splitlines()) == 50 + 6


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": to_plain(torch.tensor([1.0, torch.nan, torch.inf]))})
    assert '"x": [1.0, null, null]' in (tmp_path / "a.json").read_text()


def test_cameras(scene: geomtx.Scene, tmp_path: Path) -> None:
    turned = ViewTransform((84, 112), (84, 112), exif_orientation=6)
    scene = dataclasses.replace(scene, transforms=(turned, *scene.transforms[1:]), notice="careful").rescale(
        2, units="metres"
    )
    write_cameras(tmp_path / "cameras.json", scene)
    content = json.loads((tmp_path / "cameras.json").read_text())
    assert (content["format"], content["version"]) == ("geomtx.cameras", 1)
    assert (content["units"], content["notice"]) == ("metres", "careful")
    assert content["conventions"]["axes"] == "OpenCV: x right, y down, z forward"
    first = content["views"][0]
    assert (first["name"], first["width"], first["height"], first["exif_orientation"]) == ("view_0.png", 112, 84, 6)
    assert ViewTransform.from_dict(first["transform"]) == turned
    assert scene.cameras is not None
    for view, pose, k in zip(content["views"], *scene.cameras, strict=True):
        np.testing.assert_array_equal(np.float32(view["cam_from_world"]), pose.numpy())
        np.testing.assert_array_equal(np.float32(view["intrinsics"]), k.numpy())


def test_tracks(scene: geomtx.Scene, tmp_path: Path) -> None:
    assert scene.predictions.tracks is not None
    coords = scene.predictions.tracks.coords_px.clone()
    coords[2, 1] = torch.tensor([111.6, 3])
    coords[3, 1] = torch.nan
    tracks = scene.predictions.tracks._replace(coords_px=coords)
    scene = dataclasses.replace(scene, predictions=scene.predictions._replace(tracks=tracks))
    write_tracks(tmp_path / "tracks.json", scene)
    content = json.loads((tmp_path / "tracks.json").read_text())
    assert "notice" not in content
    first, second = content["tracks"]
    assert first["query"] == {"view": 0, "name": "view_0.png", "x": 30.0, "y": 40.0}
    own = first["views"][0]
    assert (own["name"], own["inside"], own["visibility"]) == ("view_0.png", True, 0.899999976)
    assert abs(own["x"] - 30) + abs(own["y"] - 40) < 1e-3
    assert second["views"][2]["inside"] is False
    last = second["views"][3]
    assert (last["x"], last["y"], last["inside"]) == (None, None, False)
    assert last["confidence"] == 0.800000012


def test_what_is_missing_is_an_error(scene: geomtx.Scene, tmp_path: Path) -> None:
    bare = dataclasses.replace(scene, predictions=Predictions(), query_points=None)
    with pytest.raises(ValueError, match="scene must have cameras"):
        write_cameras(tmp_path / "cameras.json", bare)
    with pytest.raises(ValueError, match="scene must have tracks"):
        write_tracks(tmp_path / "tracks.json", bare)
