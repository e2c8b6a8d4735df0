from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import geomtx
from geomtx.cli import main, reconstruct
from geomtx.cli.options import heads
from geomtx.inference import RunOptions
from geomtx.models.da3.config import DepthAnything3Head
from geomtx.models.omega.config import VGGTOmegaHead
from geomtx.models.pi3.config import Pi3Head
from geomtx.models.vggt.config import HEADS
from geomtx.scene import reconstruction
from geomtx.views import loading


def run(photos: Path | str, *options: str) -> int:
    return main(["reconstruct", str(photos), "-o", str(Path(photos).parent / "out"), *options])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.usefixtures("drawn_reports")
def test_photos_to_files(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(photos, "--preset", "tiny", "--size", "28", "--query", "1,60,45", "--max-points", "500") == 0
    out, err = capsys.readouterr()
    assert out.startswith(
        f"wrote {photos.parent / 'out'}: scene.safetensors, cameras.json, tracks.json, points.ply, rep"
    )
    assert "3 views, 500 points, lengths up to scale" in out
    *others, last = err.splitlines()
    assert last == "geomtx: warning: RANDOM WEIGHTS: nothing was learned, the geometry is meaningless"
    assert all("predicted focal lengths are more than 100 times" in line for line in others)  # random ones may be
    assert names(photos.parent) == ["out", "photos"]
    assert names(photos.parent / "out") == [
        "cameras.json", "points.ply", "report.html", "report.png", "scene.safetensors", "tracks.json",
    ]  # fmt: skip
    scene = geomtx.Scene.load(photos.parent / "out")
    assert "RANDOM WEIGHTS" in scene.notice
    assert scene.predictions.points is not None
    assert (json.loads((photos.parent / "out" / "cameras.json").read_text())["views"][0]["width"]) == 120


def test_weights_from_a_file_and_several_photos(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    geomtx.VGGT(geomtx.VGGTConfig.tiny()).save_pretrained(photos.parent / "weights")
    paths = [str(photos / f"view_{index}.png") for index in (2, 0)]
    argv = ["reconstruct", *paths, "-o", str(photos.parent / "out"), "--weights", str(photos.parent / "weights")]
    argv += ["--size", "28", "--heads", "camera,depth", "--maps", "network", "--device", "cpu", "--dtype", "bfloat16"]
    assert main([*argv, "--view-chunk", "1"]) == 0
    assert "RANDOM" not in capsys.readouterr().err
    scene = geomtx.Scene.load(photos.parent / "out")
    assert scene.names == ("view_2.png", "view_0.png")
    assert scene.predictions.points is scene.predictions.tracks is None
    assert scene.notice == ""


@pytest.mark.parametrize("memory", ["low", "500 MB"])
def test_little_memory_is_enough(photos: Path, memory: str) -> None:
    argv = ["reconstruct", str(photos), "-o", str(photos.parent / "out"), "--preset", "tiny", "--size", "28"]
    assert main([*argv, "--device", "cpu", "--memory", memory]) == 0
    assert geomtx.Scene.load(photos.parent / "out").predictions.points is not None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("low", "low"), ("8GiB", 8 * 2**30), ("8GB", 8 * 10**9), ("8 gb", 8 * 10**9), ("1.5MiB", 3 * 2**19),
        ("500MB", 500 * 10**6),
    ],
)  # fmt: skip
def test_sizes_of_memory(text: str, expected: str | int) -> None:
    assert reconstruct._parse_memory(text) == expected


@pytest.mark.parametrize(
    ("memory", "message"), [("some", "must be auto, low or a size"), ("1MiB", "memory must be at least 1.")]
)
def test_too_little_memory(photos: Path, capsys: pytest.CaptureFixture[str], memory: str, message: str) -> None:
    argv = ["reconstruct", str(photos), "-o", str(photos.parent / "out"), "--preset", "tiny", "--size", "28"]
    try:
        code = main([*argv, "--device", "cpu", "--memory", memory])
    except SystemExit as stop:
        code = stop.code
    assert code
    assert message in capsys.readouterr().err
    assert not (photos.parent / "out").exists()


def test_the_same_seed_gives_the_same_bytes(photos: Path) -> None:
    written = []
    for seed in ("1", "1", "2"):
        assert run(photos, "--preset", "tiny", "--size", "28", "--heads", "camera", "--random-seed", seed) == 0
        written.append((photos.parent / "out" / "scene.safetensors").read_bytes())
    assert written[0] == written[1] != written[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "no weights: pass --weights with a hub id such as facebook/VGGT-1B, a folder or a file"),
        (("--weights", "nowhere.safetensors"), "weights must be a file, a folder or a hub id"),
        (("--weights", "nobody/nothing"), "'nobody/nothing' is no local path, and the hub gave: "),
        (("--preset", "tiny", "--device", "cuda:77"), "--device must be a device of this machine, got 'cuda:77'"),
        (("--preset", "tiny", "--device", "meta"), "--device must be a device that computes"),
        (("--preset", "tiny", "--device", "toaster"), "--device must be a device of this machine, got 'toaster'"),
        (("--preset", "tiny", "--percentile", "101"), "percentile must be in 0 … 100, got 101.0"),
        (("--preset", "tiny", "--heads", "tracks"), "--heads tracks needs points to track"),
        (("--preset", "tiny", "--size", "100"), "size must be a multiple of 14, got 100"),
        (("--preset", "tiny", "--query", "3,1,1"), "query 0 (3, 1, 1) must name a view from 0 to 2"),
        (("--preset", "tiny", "--query", "-1,1,1"), "query 0 (-1, 1, 1) must name a view from 0 to 2, got view -1"),
        (("--preset", "tiny", "--query", "0,120,1"), "query 0 (0, 120, 1) must lie inside view_0.png, 120 x 90 pixels"),
    ],
)
def test_expected_errors(
    photos: Path, options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(photos, *options) == 2
    err = capsys.readouterr().err
    assert f"geomtx: error: {message}" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert names(photos.parent) == ["photos"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--query", "1,2"), r"argument --query: must be VIEW,X,Y, three numbers, got '1,2'"),
        (("--query", "a,b,c"), r"argument --query: must be VIEW,X,Y"),
        (("--query", "-1,a,1"), r"argument --query: must be VIEW,X,Y, three numbers, got '-1,a,1'"),
        (("-o", ""), r"argument -o/--output: must not be empty"),
        (("--weights", ""), r"argument --weights: must not be empty"),
        (("--max-points", "0"), "argument --max-points: must be a whole number above 0, got '0'"),
        (("--mode", "stretch"), "argument --mode: invalid choice"),
        (("--preset", "tiny", "--weights", "w"), "not allowed with argument"),
    ],
)
def test_wrong_options(
    photos: Path, options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    assert run(photos, *options) == 2
    err = capsys.readouterr().err
    assert re.match("geomtx: error: .*" + message, err)
    assert err.endswith(" (geomtx reconstruct --help shows the options)\n")
    assert err.count("\n") == 1


def test_wrong_photos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (200, 200)).save(tmp_path / "half.png")
    os.truncate(tmp_path / "half.png", 90)
    for name, message in (
        ("empty", "must hold images (.jpg, .png, …), got none"),
        ("missing", "source must be an existing folder or image"),
        ("text.png", "must be an image that Pillow can read"),
        ("half.png", "photo '.*half.png' must be"),
    ):
        assert run(tmp_path / name, "--preset", "tiny") == 2
        err = capsys.readouterr().err.splitlines()[-1]
        assert err.startswith("geomtx: error: ")
        assert message.split(".*")[-1] in err
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_found_before_the_work(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos.parent / "out").write_text("a file")
    assert run(photos, "--weights", "nobody/nothing") == 2
    assert "must be a folder, but" in capsys.readouterr().err
    assert (photos.parent / "out").read_text() == "a file"


def test_ctrl_c_leaves_nothing(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("geomtx.report.draw_report", interrupt)
    assert run(photos, "--preset", "tiny", "--size", "28") == 130
    assert "geomtx: stopped" in capsys.readouterr().err
    assert names(photos.parent) == ["photos"]


def test_photos_get_the_size_that_the_weights_are_made_for(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(geomtx.VGGTConfig.tiny(), patch_size=16, image_size=64)
    geomtx.VGGT(config).save_pretrained(photos.parent / "weights")
    reads = []
    read = loading.read_picture
    monkeypatch.setattr(loading, "read_picture", lambda path, **options: reads.append(path) or read(path, **options))
    assert run(photos / "view_0.png", "--weights", str(photos.parent / "weights"), "--heads", "camera") == 0
    assert geomtx.Scene.load(photos / "out").images.shape == (1, 3, 48, 64)
    assert len(reads) == 1
    for folder_or_photos in (photos / "view_0.png", [photos / "view_0.png"]):
        scene = geomtx.reconstruct(geomtx.VGGT(config), folder_or_photos, heads=("camera",))
        assert scene.images.shape == (1, 3, 48, 64)


def test_photos_are_missed_before_weights_are_looked_for(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(geomtx.VGGT, "read_config", lambda _: pytest.fail("weights were looked for"))
    assert run(photos / "gone.png", "--weights", "nobody/nothing") == 2
    assert "source must be an existing folder or image" in capsys.readouterr().err


def test_a_folder_in_the_way_of_a_file_is_found_before_the_work(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos.parent / "out" / "report.png").mkdir(parents=True)
    assert run(photos, "--weights", "nobody/nothing") == 2
    assert "'report.png' in it is a folder" in capsys.readouterr().err


@pytest.mark.usefixtures("drawn_reports")
def test_one_view_and_one_point(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(photos / "view_0.png", "--preset", "tiny", "--size", "28", "--max-points", "1") == 0
    assert "\n1 view, 1 point, lengths" in capsys.readouterr().out


def test_the_heads_are_those_of_all_families() -> None:
    of_all = {*HEADS, *get_args(DepthAnything3Head), *get_args(VGGTOmegaHead), *get_args(Pi3Head)}
    assert set(heads._KNOWN) == of_all - {"rays", "text"}  # a scene holds neither


@pytest.mark.usefixtures("drawn_reports")
def test_heads_of_other_families_are_taken_where_the_weights_have_them(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = geomtx.DepthAnything3Config.tiny(first_global=None, depth=2, taps=(0, 0, 1, 1), image_size=28)
    weights = str(photos.parent / "weights")
    model = geomtx.DepthAnything3(config).eval()
    decoder = geomtx.DPTDecoder(32, 16, channels=(16, 16, 32, 32), taps=model.encoder.taps * 2)
    model.add_head("normals", geomtx.DenseHead(decoder, 3))
    model.save_pretrained(weights)
    assert main(["info", weights]) == 0
    assert "depth, sky, normals" in capsys.readouterr().out
    options = ("--weights", weights, "--size", "28")
    for wanted, expected in {"depth,sky": None, "depth,normals": ["normals"]}.items():
        assert run(photos / "view_0.png", *options, "--heads", wanted, "--overwrite") == 0
        found = geomtx.Scene.load(photos / "out").predictions
        assert (found.sky is None) == ("sky" not in wanted)
        assert (None if found.extra is None else list(found.extra)) == expected
    monkeypatch.setattr("geomtx.models.registry.load_model", lambda *_, **__: pytest.fail("weights were loaded"))
    capsys.readouterr()
    for wrong, message in {
        ("--heads", "camera"): "head must be one of 'depth', 'sky', 'normals', got 'camera'",
        ("--refine", "--refine-from", "tracks"): "needs weights with the head tracks, got depth, sky",
        ("--heads", "normal"): "head must be one of 'depth', 'sky', 'normals', got 'normal'; did you mean 'normals'?",
        ("--refine",): "--heads must hold camera, and depth or points, for --refine, got depth, sky",
        ("--distance", "0,1,2"): "heads must hold camera for --distance, got depth, sky",
        ("--formats", "ply,colmap"): "heads must hold camera for --formats colmap, got depth, sky",
        ("--agreement", "0.5"): "heads must hold camera and depth for --agreement, got depth, sky",
        ("--query", "0,1,1"): "--query must be left out for a model without tracks, got one with depth, sky",
    }.items():
        assert run(photos / "view_0.png", *options, *wrong) == 2
        assert message in capsys.readouterr().err


def test_an_empty_name_of_photos_is_not_the_current_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reconstruct", "", "-o", "out", "--preset", "tiny"]) == 2
    assert capsys.readouterr().err.startswith("geomtx: error: argument PHOTOS: must not be empty")


def test_results_do_not_go_among_the_photos(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The report would be a photo the next time."""
    before = sorted(photos.iterdir())
    assert main(["reconstruct", str(photos), "-o", f"{photos}/../{photos.name}", "--preset", "tiny"]) == 2
    assert "error: --output must not be the folder of the photos" in capsys.readouterr().err
    assert sorted(photos.iterdir()) == before


def test_nano_says_that_photos_are_beyond_it(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(photos, "--weights", "nano", "--heads", "camera,depth") == 0
    assert "warning: nano has seen nothing but small rendered rooms" in capsys.readouterr().err
    scene = geomtx.Scene.load(photos.parent / "out")
    assert "rendered rooms" in scene.notice
    assert max(scene.images.shape[-2:]) == 64


def test_how_the_model_is_to_run(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, str]] = []

    def rounded(model: geomtx.VGGT, kind: str) -> geomtx.VGGT:
        asked.append((type(model), kind))
        return model

    def compiled(model: geomtx.VGGT, inputs: object, heads: object, options: RunOptions) -> geomtx.Predictions:
        if options.compile:
            asked.append((type(model), "compiled"))
        return run_views(model, inputs, heads, options._replace(compile=False))

    run_views = reconstruction.run_views
    monkeypatch.setattr("geomtx.inference.quantize.quantize_model", rounded)
    monkeypatch.setattr("geomtx.models.scene_model.quantize_model", rounded)
    monkeypatch.setattr(reconstruction, "run_views", compiled)
    assert run(photos, "--preset", "tiny", "--size", "28", "--heads", "camera") == 0
    assert asked == []
    options = ("--heads", "camera,depth", "--quantize", "int8", "--compile")
    assert run(photos, "--preset", "tiny", "--size", "28", *options) == 0
    assert run(photos, "--weights", "nano", *options) == 0
    assert asked == [(geomtx.VGGT, "int8"), (geomtx.VGGT, "compiled")] * 2


def test_quantised_weights_without_their_package(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("geomtx.inference.quantize.importlib.util.find_spec", lambda _: None)
    assert run(photos, "--preset", "tiny", "--size", "28", "--heads", "camera", "--quantize", "int8") == 2
    assert 'error: torchao is not installed; `pip install "geomtx[quant]"` brings it' in capsys.readouterr().err
    assert not (photos.parent / "out").exists()


# Whose files are in the output folder

TINY = ("--preset", "tiny", "--size", "28", "--heads", "camera")


@pytest.mark.parametrize(
    "name", ["report.html", "report.png", "tracks.json", "cameras.json", "points.ply", "scene.safetensors"]
)
def test_files_of_others_are_not_replaced(photos: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    mine = photos.parent / "out" / name
    mine.parent.mkdir()
    mine.write_text("mine")
    assert run(photos, *TINY) == 2
    assert f"must not hold files of others under the names of results, got {name};" in capsys.readouterr().err
    assert mine.read_text() == "mine"
    assert names(mine.parent) == [name]
    if name == "report.png":
        assert run(photos, *TINY, "--overwrite") == run(photos, *TINY) == 0
        assert names(mine.parent) == ["cameras.json", "report.html", "report.png", "scene.safetensors"]


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_a_photo_with_the_name_of_a_result_is_not_written_over(
    photos: Path, overwrite: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    mine = (photos / "view_1.png").rename(photos / "report.png")
    link = photos.parent / "elsewhere.png"
    link.symlink_to(mine)
    before = mine.read_bytes()
    for given in (mine, link, photos / ".." / "photos" / "report.png"):
        argv = ["reconstruct", str(photos / "view_0.png"), str(given), "-o", str(photos), *TINY, *overwrite]
        assert main(argv) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert f"'report.png' in it is '{given}'" in said
    assert mine.read_bytes() == before
    assert names(photos) == ["report.png", "view_0.png", "view_2.png"]


def test_weights_are_not_written_over(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = geomtx.VGGT(geomtx.VGGTConfig.tiny()).save_pretrained(photos.parent / "out")
    (weights / "model.safetensors").rename(weights / "scene.safetensors")
    for given in (weights, weights / "scene.safetensors"):
        assert run(photos, "--weights", str(given), "--overwrite") == 2
        assert "'scene.safetensors' in it is " in capsys.readouterr().err


def test_a_report_is_no_photo_of_the_next_run(
    photos: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["reconstruct", *map(str, sorted(photos.iterdir())), "-o", str(photos), *TINY]) == 0
    (photos / "report.png").rename(photos / "view_0a.png")  # whatever it is called
    capsys.readouterr()
    assert run(photos, *TINY) == 0
    assert geomtx.Scene.load(photos.parent / "out").names == ("view_0.png", "view_1.png", "view_2.png")
    assert f"left out '{photos / 'view_0a.png'}': written by geomtx, not a photo" in capsys.readouterr().err
    report = photos / "view_0a.png"
    assert geomtx.load_views(report, size=56).names == ("view_0a.png",), "named, it is one"


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux")
@pytest.mark.usefixtures("drawn_reports")
def test_names_that_are_not_utf_8_can_be_read_again(photos: Path) -> None:
    (photos / "view_0.png").rename(photos / os.fsdecode(b"caf\xe9.png"))
    (photos / "view_1.png").rename(photos / r"caf\xe9.png")
    assert run(photos, *TINY[:-2], "--query", "0,60,45", "--maps", "original") == 0
    out = photos.parent / "out"
    expected = {r"caf\xe9.png", r"caf\xe9_2.png", "view_2.png"}
    assert set(geomtx.Scene.load(out).names) == expected
    assert {name.split("/")[1] for name in load_file(out / "scene.safetensors") if "original/" in name} == expected
    for name in ("cameras.json", "tracks.json"):
        text = (out / name).read_text(encoding="utf-8")
        assert "\\ud" not in text
        content = json.loads(text)
        views = content["views"] if "views" in content else content["tracks"][0]["views"]
        assert {view["name"] for view in views} == expected


def test_the_home_folder_is_found(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, here = photos.parent, photos.parent / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(home))
    geomtx.VGGT(geomtx.VGGTConfig.tiny()).save_pretrained("~/weights")
    assert main(["reconstruct", "~/photos", "--output=~/out", "--weights=~/weights", *TINY[2:]]) == 0
    scene = geomtx.Scene.load("~/out")
    assert (home / "out" / "again" / "report.png") in scene.save("~/out/again")
    assert list(here.iterdir()) == []


# Predictions that are not finite


@pytest.mark.parametrize(
    ("heads", "dtype", "message"),
    [
        ("camera", "float32", "got NaN or infinity everywhere in camera; the weights may be damaged"),
        ("camera,depth,points", "bfloat16", "in camera, depth, points; torch.bfloat16 may be too coarse, try --dtype"),
        ("depth", "float32", "everywhere in depth;"),
    ],
)
def test_nothing_finite_is_an_error(
    photos: Path, heads: str, dtype: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = geomtx.VGGT(geomtx.VGGTConfig.tiny())
    with torch.no_grad():
        model.encoder.backbone.patch_embedding.project.weight.fill_(torch.nan)
    weights = str(model.save_pretrained(photos.parent / "weights"))
    assert run(photos, "--weights", weights, "--size", "28", "--heads", heads, "--dtype", dtype) == 2
    warning, error = capsys.readouterr().err.splitlines()
    assert "predictions are not finite in 3 of 3 views: view_0.png (camera" in warning or heads == "depth"
    assert error.startswith("geomtx: error: predictions must be finite, ")
    assert message in error
    assert names(photos.parent) == ["photos", "weights"]
