from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

import geomtx
from geomtx.cli import demo, demo_errors, main
from geomtx.data.synthetic.photos import save_photos, truth_in_views
from geomtx.data.synthetic.render import is_held_out, render_scenes, training_seed
from geomtx.data.synthetic.rooms import RoomStyle
from geomtx.files import save_picture
from geomtx.geometry import normalize_scene
from geomtx.scene.files import SCENE_FILES
from geomtx.types import DenseMap, Predictions
from scene.known_scene import KnownScene

HEADS = ("camera", "depth", "points", "tracks")


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_PHOTO_HW", (56, 72)), ("_SUPERSAMPLE", 1), ("_NUM_GUESS_SCENES", 2), ("_NUM_TRACKS", 6)):
        monkeypatch.setattr(demo, name, value)


def save_random_weights(folder: Path, heads: tuple[str, ...] = HEADS) -> Path:
    torch.manual_seed(0)
    geomtx.VGGT(geomtx.VGGTConfig.tiny(heads=heads, image_size=42)).save_pretrained(folder / "random")
    return folder / "random"


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("_small", "drawn_reports")
def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    (out / "photos").mkdir(parents=True)
    for name in ("view_2.png", "view_23.png"):  # of an earlier run
        save_picture(Image.new("RGB", (4, 4)), out / "photos" / name, "photo")
    (out / "photos" / "mine.txt").write_text("mine")
    weights = save_random_weights(tmp_path)
    assert main(["demo", "-o", str(out), "--views", "3", "--scene", "7", "--weights", str(weights)]) == 0
    printed, said = capsys.readouterr()
    assert said == ""
    assert printed.startswith("held-out scene 7, 3 photos, weights random\n")
    assert "3 views" in printed
    assert names(out) == {
        *SCENE_FILES, "truth.png", "errors.json", "photos/mine.txt", *(f"photos/view_{n}.png" for n in range(3)),
    }  # fmt: skip
    assert Image.open(out / "photos" / "view_2.png").size == (72, 56)
    errors = json.loads((out / "errors.json").read_text())
    assert (errors["scene"], errors["weights"]) == (7, "random")
    assert set(errors["model"]) == set(errors["guess"])
    for measure in demo_errors._MEASURES:
        (line,) = (line for line in printed.splitlines() if line.startswith(measure.title))
        for value in (errors["model"][measure.name], errors["guess"][measure.name]):
            assert value is not None
            assert f" {measure.factor * value:.{measure.digits}f} " in line
    scene = geomtx.Scene.load(out)
    assert scene.notice == ""
    assert scene.query_points is not None
    assert len(scene.query_points) == 6


@pytest.mark.usefixtures("_small", "drawn_reports")
def test_weights_without_all_heads_are_measured_where_they_can(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = save_random_weights(tmp_path, ("depth",))
    assert main(["demo", "-o", str(tmp_path / "out"), "--views", "2", "--weights", str(weights)]) == 0
    errors = json.loads((tmp_path / "out" / "errors.json").read_text())
    assert [name for name, value in errors["model"].items() if value is not None] == ["depth_abs_rel", "depth_delta"]
    assert None not in errors["guess"].values()
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.startswith("pose AUC")).split()[2] == "-"
    assert not (tmp_path / "out" / "tracks.json").exists()


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--views", "1"], "--views must be in 2 … 24, got 1"),
        (["--views", "25"], "--views must be in 2 … 24, got 25"),
        (["--scene", "-1"], "--scene must be in 0 … 999999, got -1"),
        (["--device", "abacus"], "--device must be a device of this machine, got 'abacus'"),
        (["--weights", "WEIGHTS/nowhere.safetensors"], "nowhere.safetensors"),
    ],
)
def test_errors_leave_nothing_behind(
    tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [option.replace("WEIGHTS", str(tmp_path)) for option in options]
    assert main(["demo", "-o", str(tmp_path / "out"), *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith("geomtx: error: ")
    assert message in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_small")
def test_a_failure_at_the_end_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "truth.png")

    monkeypatch.setattr("geomtx.report.draw_comparison", fail)
    out = tmp_path / "out"
    out.mkdir()
    (out / "truth.png").write_text("mine")
    weights = save_random_weights(tmp_path)
    for more in ([], ["--overwrite"]):
        assert main(["demo", "-o", str(out), "--views", "2", "--weights", str(weights), *more]) == 2
        assert names(out) == {"truth.png"}
        assert (out / "truth.png").read_text() == "mine"
    refused, failed = capsys.readouterr().err.splitlines()
    assert "must not hold files of others under the names of results, got truth.png" in refused
    assert "No space left on device" in failed


def test_rooms_are_those_that_nano_is_trained_on_but_none_that_it_saw() -> None:
    config_file = pytest.importorskip("geomtx.training.config_file", reason="needs the extra train")
    data = config_file.load_config("nano").data
    assert (
        RoomStyle(**{key: tuple(v) if isinstance(v, list) else v for key, v in data.style.items()}) == RoomStyle.nano()
    )
    height, width = data.image_hw
    assert demo._PHOTO_HW[0] / height == demo._PHOTO_HW[1] / width == 5
    assert max(data.views) == 8, "as many as the demo has by default"
    assert not is_held_out(training_seed(0, 0, 23))


def test_the_truth_scores_as_the_truth(tmp_path: Path) -> None:
    """Photos, the model's pixels, and the measures: a model that answers with the truth has no errors."""
    photographed = render_scenes([4], 3, (126, 168), num_tracks=8)
    save_photos(photographed.images[0], tmp_path)
    small = normalize_scene(truth_in_views(photographed, geomtx.load_views(tmp_path, size=56)))[0]
    model = KnownScene(small)
    model.config.image_size = 56
    scene, truth = demo._reconstruct(model, photographed, tmp_path)
    errors = demo_errors.compare_with_guess(scene, truth, [render_scenes([n], 3, (42, 56)) for n in range(2)])
    perfect = errors.model
    assert perfect["auc_30"] == perfect["depth_delta"] == 1
    assert perfect["rotation_deg"] < 0.1
    assert perfect["translation_deg"] < 0.1
    assert max(perfect[name] for name in ("depth_abs_rel", "unprojected_overall", "head_overall")) < 1e-3
    assert errors.guess["auc_30"] < 0.9
    assert errors.guess["depth_abs_rel"] > 0.02


def test_errors_that_are_not_numbers() -> None:
    nothing = {measure.name: math.nan for measure in demo_errors._MEASURES}
    some = {**nothing, "auc_30": 0.25, "depth_abs_rel": 0.5}
    assert demo_errors.describe_errors(demo_errors.Errors(some, nothing)) == [
        "poses AUC@30 25.0 %", "depth AbsRel 50.0 %",
    ]  # fmt: skip
    table = demo_errors.format_errors(demo_errors.Errors(some, nothing), "a name that is far too long")
    assert "a name that…" in table
    assert {len(line[:37].rstrip()) > 0 for line in table.splitlines()[1:]} == {True}


def test_failed_cameras_have_no_angle(tmp_path: Path) -> None:
    truth = normalize_scene(render_scenes([1], 2, (28, 42)))[0]
    assert truth.cameras is not None
    cameras = geomtx.Cameras(torch.full_like(truth.cameras.cam_from_world, torch.nan), truth.cameras.intrinsics)
    found = demo_errors._measure(Predictions(cameras=cameras), truth)
    nothing = {measure.name: math.nan for measure in demo_errors._MEASURES}
    errors = demo_errors.Errors(found, nothing)
    rows = {line[:37].strip(): line[37:].split() for line in demo_errors.format_errors(errors, "m").splitlines()[1:]}
    assert rows["rotation error, median of pairs"][:2] == ["failed", "-"]
    assert rows["translation direction error, median"][:2] == ["failed", "-"]
    assert rows["pose AUC@30"][0] == "0.0"
    demo_errors.write_errors(tmp_path / "errors.json", errors, scene=0, weights="m")
    written = json.loads((tmp_path / "errors.json").read_text())["model"]
    assert (written["rotation_deg"], written["translation_deg"], written["auc_30"]) == (None, None, 0)


def test_failed_predictions_are_no_small_errors() -> None:
    truth = normalize_scene(render_scenes([1], 2, (28, 42)))[0]
    assert truth.depth is not None
    depth = DenseMap(torch.full_like(truth.depth, torch.nan), torch.ones_like(truth.depth))
    found = demo_errors._measure(Predictions(depth=depth), truth)
    assert math.isnan(found["depth_abs_rel"])
    assert not found["depth_delta"] > 0
