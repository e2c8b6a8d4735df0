from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import geomtx
from geomtx.cli import main
from geomtx.files import is_own, is_own_picture
from geomtx.views.video import read_timeline
from views.video_files import write_clip

pytest.importorskip("av", reason="PyAV is not installed")

TINY = ["--preset", "tiny", "--size", "56"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a video of 6 frames and two photos in `photos`."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (6, 12, 16, 3)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
    write_clip(tmp_path / "clip.mp4", pictures)
    (tmp_path / "photos").mkdir()
    for index in range(2):
        Image.fromarray(pictures[index]).save(tmp_path / "photos" / f"{index}.png")
    return tmp_path


def test_tracks_of_a_video(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["track", "clip.mp4", "--grid", "2", *TINY]) == 0
    output = folder / "clip-tracks"
    assert capsys.readouterr().out.splitlines()[0] == "wrote clip-tracks: tracks.json, tracks.npz, tracks.mp4"
    with np.load(output / "tracks.npz") as arrays:
        assert arrays["query_points"].tolist() == [[0, 23.5, 31.5], [0, 23.5, 95.5], [0, 71.5, 31.5], [0, 71.5, 95.5]]
        assert arrays["tracks"].shape == (4, 6, 2)
        np.testing.assert_allclose(arrays["tracks"][:, 0], arrays["query_points"][:, [2, 1]], atol=1e-3)
        np.testing.assert_allclose(arrays["times"], np.arange(6) / 10)
        x, y = arrays["tracks"][..., 0], arrays["tracks"][..., 1]
        outside = (x < -0.5) | (x > 127.5) | (y < -0.5) | (y > 95.5)
        assert (arrays["occluded"] == ((arrays["visibility"] <= 0.5) | outside)).all()
        assert arrays["occluded"].dtype == bool
        in_json = json.loads((output / "tracks.json").read_text())["tracks"]
        assert [entry["x"] for entry in in_json[3]["views"]] == pytest.approx(arrays["tracks"][3, :, 0].tolist())
    assert [entry["time"] for entry in in_json[0]["views"]][:3] == [0, 0.1, 0.2]
    np.testing.assert_allclose(read_timeline(output / "tracks.mp4").times, np.arange(6) / 10, atol=1e-3)

    # Its own files are replaced, by the same bytes.
    first = {path.name: path.read_bytes() for path in output.iterdir()}
    assert all(is_own(path) for path in output.iterdir())
    assert main(["track", "clip.mp4", "--grid", "2", *TINY]) == 0
    assert {path.name: path.read_bytes() for path in output.iterdir()} == first


def test_tracks_of_photos(folder: Path):
    assert main(["track", "photos", "--query", "1,40,-0.5", "--query", "0,3,4", "-o", "out", *TINY]) == 0
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        "geomtx.json", "tracks.json", "tracks.npz", "tracks.png",
    ]  # fmt: skip
    assert is_own_picture(folder / "out" / "tracks.png")
    with np.load(folder / "out" / "tracks.npz") as arrays:
        assert arrays["query_points"].tolist() == [[1, -0.5, 40], [0, 4, 3]]
        assert np.isnan(arrays["times"]).all()
        assert arrays["names"].tolist() == ["0.png", "1.png"]
    # A video into the same folder leaves no sheet behind.
    assert main(["track", "clip.mp4", "--query", "0,3,4", "-o", "out", "--max-views", "2", *TINY]) == 0
    assert "tracks.png" not in {path.name for path in (folder / "out").iterdir()}


def test_a_video_tracker_tracks(folder: Path):
    torch.manual_seed(0)
    geomtx.VideoTracker(geomtx.VideoTrackerConfig.tiny()).save_pretrained("tracker")
    arguments = ["--query", "5,60,40", "--weights", "tracker", "--size", "56", "-o", "out"]
    assert main(["track", "clip.mp4", *arguments]) == 0
    content = json.loads((folder / "out" / "tracks.json").read_text())
    assert len(content["tracks"][0]["views"]) == 6
    assert content["tracks"][0]["views"][5]["x"] == pytest.approx(60, abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("clip.mp4 --query 0,128,3", "query 0 (0, 128, 3) must lie inside clip_000000.jpg, 128 x 96 pixels, got x 128"),
        ("clip.mp4 --query 12,3,3", "query 0 (12, 3, 3) must name a view from 0 to 5, got view 12"),
        ("clip.mp4 --query 0.5,3,3", "must name a view from 0 to 5, got view 0.5"),
        ("clip.mp4 --query 0,3", "argument --query: must be VIEW,X,Y, three numbers, got '0,3'"),
        ("clip.mp4", "one of the arguments --query --grid is required"),
        ("clip.mp4 --grid 0", "argument --grid: must be a whole number above 0, got '0'"),
        ("clip.mp4 --grid 2 --query 0,1,1", "not allowed with argument --grid"),
        ("clip.mp4 --grid 2 --weights no_tracks", "must have a head that tracks, got a VGGT with the heads camera"),
        ("clip.mp4 --grid 2 --weights nvs", "a VGGT or a VideoTracker, got those of a VGGTForNVS"),
        ("gone.mp4 --grid 2", "video 'gone.mp4' must be an existing file, got none"),
        ("photos --grid 2 --fps 3", "--fps must be for a video, got photos"),
        ("clip.mp4 --grid 2 -o photos", "got tracks.npz; choose another folder"),
    ],
)  # fmt: skip
def test_mistakes(folder: Path, capsys: pytest.CaptureFixture[str], arguments: str, message: str):
    if "no_tracks" in arguments:
        geomtx.VGGT(geomtx.VGGTConfig.tiny(heads=("camera",))).save_pretrained("no_tracks")
    if "nvs" in arguments:
        geomtx.VGGTForNVS(geomtx.NVSConfig.tiny()).save_pretrained("nvs")
    (folder / "photos" / "tracks.npz").write_bytes(b"another's")
    before = sorted(folder.rglob("*"))
    weights = "" if "--weights" in arguments else "--preset tiny"
    assert main(f"track {arguments} {weights}".split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("geomtx: error: ")
    assert message in line
    assert sorted(folder.rglob("*")) == before
