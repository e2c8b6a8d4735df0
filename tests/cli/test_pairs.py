"""`geomtx reconstruct` with models that see pairs."""

import json
from pathlib import Path

import pytest
import torch

import geomtx
from families import facing
from geomtx.cli import main
from geomtx.scene.pairs import SparseOptions

RANDOM = {"depth": 2, "encoder_depth": 1, "image_size": 48}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights of a DUSt3R whose points lie in front of the camera, and fan out with the pixels."""
    torch.manual_seed(0)
    model = facing(geomtx.DUSt3R(geomtx.DUSt3RConfig.tiny(head="linear", **RANDOM)))
    return model.save_pretrained(tmp_path / "weights", names="published")


def test_photos_become_a_scene_with_all_files(photos: Path, weights: Path, tmp_path: Path, capsys):
    command = ["reconstruct", str(photos), "--weights", str(weights), "--pair-folder", str(tmp_path / "pairs")]
    out = tmp_path / "out"
    assert main([*command, "-o", str(out), "--formats", "ply,colmap-text", "--refine"]) == 0
    scene = geomtx.Scene.load(out)
    assert scene.provenance["pairs"] == "6, complete"
    assert "refinement" in scene.provenance
    torch.testing.assert_close(scene.cameras.cam_from_world[0], torch.eye(3, 4))
    assert {"points.ply", "report.html", "report.png", "colmap-text"} <= {path.name for path in out.iterdir()}
    assert "wrote " in capsys.readouterr().out
    assert len(list((tmp_path / "pairs").glob("pairs-*"))) == 6
    known = str(out / "cameras.json")
    assert main([*command, "-o", str(tmp_path / "known"), "--cameras", known, "--cameras-fixed"]) == 0
    placed = geomtx.Scene.load(tmp_path / "known")
    torch.testing.assert_close(placed.cameras.cam_from_world, scene.cameras.cam_from_world, rtol=1e-4, atol=1e-4)
    windows = ["--window", "2", "--overlap", "1", "--cameras", known]
    assert main([*command[:-1], str(tmp_path / "parts"), *windows, "-o", str(tmp_path / "windows")]) == 0
    stitched = geomtx.Scene.load(tmp_path / "windows").provenance
    assert stitched["window"] == "2 views, 1 shared"
    assert "cameras agree" in stitched["alignment"]


def test_photos_are_brought_together_by_matches(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    few = SparseOptions(coarse_steps=2, fine_steps=2)
    monkeypatch.setattr("geomtx.scene.pairs.SparseOptions", lambda: few)
    torch.manual_seed(0)
    model = facing(geomtx.MASt3R(geomtx.MASt3RConfig.tiny(**RANDOM)))
    weights = model.save_pretrained(tmp_path / "weights", names="published")
    command = ["reconstruct", str(photos), "--weights", str(weights), "-o", str(tmp_path / "out")]
    assert main([*command, "--alignment", "matches", "--pairs", "swin-1"]) == 0
    scene = geomtx.Scene.load(tmp_path / "out")
    assert scene.units == "metres"
    assert scene.matched is not None


def test_one_photo(photos: Path, weights: Path, tmp_path: Path):
    photo = str(sorted(photos.iterdir())[0])
    assert main(["reconstruct", photo, "--weights", str(weights), "-o", str(tmp_path / "out")]) == 0
    assert geomtx.Scene.load(tmp_path / "out").predictions.depth.value.shape == (1, 32, 48)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--query", "0,1,1"], "--query must be left out for a DUSt3R"),
        (["--heads", "depth"], "--heads must be left out for a DUSt3R"),
        (["--reference", "middle"], "--reference must be left out for a DUSt3R"),
        (["--memory", "low"], "--memory must be left out for a DUSt3R"),
        (["--refine", "--refine-from", "tracks"], "--refine-from tracks must be left out for a DUSt3R, which has no"),
        (["--key-stride", "2"], "--key-stride must be left out for a DUSt3R"),
        (["--alignment", "matches"], "alignment must be of points for a DUSt3R, which has no descriptors to match"),
        (["--pairs", "windows"], "graph must be one of 'complete', 'oneref', 'swin', "),
        (["--pairs", "oneref-9"], "reference of the graph must be one of 0, 1, 2, got 9"),
    ],
)
def test_what_does_not_go_with_pairs_is_one_line(options, message, photos: Path, weights: Path, tmp_path: Path, capsys):
    command = ["reconstruct", str(photos), "--weights", str(weights), "-o", str(tmp_path / "out"), *options]
    assert main(command) == 2
    assert f"geomtx: error: {message}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_options_of_pairs_are_for_models_that_see_them(photos: Path, tmp_path: Path, capsys):
    command = ["reconstruct", str(photos), "--weights", "nano", "-o", str(tmp_path / "out"), "--pair-folder", "x"]
    assert main(command) == 2
    assert "--pair-folder must be left out for a VGGT, which sees all photos at once" in capsys.readouterr().err


def test_a_video_in_which_things_move(photos: Path, weights: Path, tmp_path: Path, capsys):
    tracker = geomtx.VideoTracker(geomtx.VideoTrackerConfig.tiny(features="images", stride=2, levels=1))
    moving = str(tracker.save_pretrained(tmp_path / "tracker"))
    command = ["reconstruct", str(photos), "--weights", str(weights), "--moving", moving, "-o", str(tmp_path / "out")]
    assert main([*command, "--alignment", "matches"]) == 2
    assert "--alignment must be points with --moving, got matches" in capsys.readouterr().err
    assert main([*command[:-3], str(weights), *command[-2:]]) == 2
    assert "VideoTracker" in capsys.readouterr().err
    assert main(command) == 0
    assert geomtx.Scene.load(tmp_path / "out").moving.shape == geomtx.Scene.load(tmp_path / "out").masks.shape
    cameras = tmp_path / "cameras.json"
    known = json.loads((tmp_path / "out" / "cameras.json").read_text())
    known["views"][1]["intrinsics"][0][0] *= 1.21
    cameras.write_text(json.dumps(known))
    assert main([*command[:-1], str(tmp_path / "other"), "--cameras", str(cameras)]) == 2
    assert "focals must be one where images share it, as frames of a video do, got" in capsys.readouterr().err
    poses = [[1, 0, 0, 9], [0, 1, 0, -7], [0, 0, 1, 3]]
    for index, view in enumerate(known["views"]):
        view["intrinsics"] = [[40, 0, 24], [0, 40, 16], [0, 0, 1]]
        view["cam_from_world"] = [[*row[:3], index * row[3]] for row in poses]
    cameras.write_text(json.dumps(known))
    assert main([*command[:-1], str(tmp_path / "other"), "--cameras", str(cameras)]) == 0
    assert geomtx.Scene.load(tmp_path / "other").predictions.depth.value.isfinite().all()
    assert "moving by itself: " in capsys.readouterr().out
