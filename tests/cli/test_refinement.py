from __future__ import annotations

import json
from pathlib import Path

import pytest

import geomtx
from geomtx.cli import main
from geomtx.data.synthetic.photos import save_photos
from scene.known_scene import render_room


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refine")
    save_photos(render_room(4, (96, 128)).images[0], folder / "photos")
    return folder / "photos"


def run(photos: Path, *options: str) -> int:
    weights = () if "--preset" in options else ("--weights", "nano")
    return main(["reconstruct", str(photos), "-o", str(photos.parent / "out"), *weights, "--device", "cpu", *options])


@pytest.mark.parametrize(("options", "solver"), [
    ((), "torch"),
    (("--refine-from", "depth", "--refine-solver", "pycolmap"), "pycolmap"),
])  # fmt: skip
def test_a_refined_scene_is_written_with_the_first_cameras(photos, small_pictures, options, solver):
    if solver == "pycolmap":
        pytest.importorskip("pycolmap")
    assert run(photos, "--refine", *options) == 0
    scene = geomtx.Scene.load(photos.parent / "out")
    assert scene.refined
    assert scene.provenance["refinement"].startswith(f"{solver}, cauchy, focal lengths")
    assert scene.first_cameras is not None
    cameras = json.loads((photos.parent / "out" / "cameras.json").read_text(encoding="utf-8"))
    assert all("first" in view for view in cameras["views"])


def test_what_can_not_be_refined_is_written_with_one_warning(photos, capsys, tmp_path):
    one = tmp_path / "one"
    one.mkdir()
    first = sorted(photos.iterdir())[0]
    (one / first.name).write_bytes(first.read_bytes())
    assert main(["reconstruct", str(one), "-o", str(tmp_path / "out"), "--weights", "nano", "--refine"]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "not refined" in line]
    assert len(warnings) == 1
    assert "geomtx: warning: not refined, the result is the model's own: too few observations" in warnings[0]
    scene = geomtx.Scene.load(tmp_path / "out")
    assert not scene.refined
    assert scene.cameras is not None


@pytest.mark.parametrize(("options", "message"), [
    (("--refine-focal", "free"), "--refine-focal must go with --refine"),
    (("--refine", "--refine-from", "mat"), "invalid choice: 'mat'"),
    (("--refine", "--heads", "depth"), "--heads must hold camera, and depth or points, for --refine, got depth"),
    (("--refine", "--refine-from", "tracks", "--window", "2"), "--refine-from tracks must not go with --window"),
])  # fmt: skip
def test_options_that_do_not_go_together(photos, capsys, options, message):
    assert run(photos, *options) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", [("--refine-from", "sift"), ("--refine-solver", "pycolmap")])
def test_an_extra_that_is_not_installed(photos, capsys, monkeypatch, option):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(photos, "--refine", *option) == 2
    error = capsys.readouterr().err
    assert f"{' '.join(option)} needs pycolmap, which is not installed: pip install 'geomtx[colmap]'" in error
