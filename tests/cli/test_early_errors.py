"""Mistakes that are found before torch is imported, and what the errors suggest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import geomtx
from geomtx.cli import main
from geomtx.cli.weights import check_image_side, embedded_weights
from geomtx.models.published import EMBEDDED

MISTAKES = {
    "reconstruct gone --weights nano": "source must be an existing folder or image, got 'gone'",
    "reconstruct empty --weights nano": "folder 'empty' must hold images (.jpg, .png, …), got none",
    "reconstruct photos": "no weights: pass --weights with a hub id",
    "reconstruct photos --weights nanno": "which comes with geomtx), got 'nanno'; did you mean 'nano'?",
    "reconstruct photos --weights gone.pt": "got 'gone.pt'; there is no such file",
    "reconstruct photos --weights nano --size 63": "size must be a multiple of 8, the patch of nano, got 63; try 64",
    "reconstruct photos --weights nano --percentile 120": "percentile must be in 0 … 100, got 120.0",
    "reconstruct photos --weights nano --percentile nan": "percentile must be in 0 … 100, got nan",
    "reconstruct photos --weights nano --device gpu": "PyTorch has no such device; did you mean 'cuda'?",
    "reconstruct photos --weights nano --device cuda:one": "after the colon stands a number",
    "reconstruct photos --weights nano --window 1": "window size must be a whole number, at least 2, got 1",
    "reconstruct photos --weights nano --window 3 --overlap 3": "window overlap must be in 1 … 2, got 3",
    "reconstruct photos --weights nano --window 3 --heads camera": "heads must hold camera and depth, or points",
    "reconstruct photos --weights nano --heads camera,dept": "got 'dept'; did you mean 'depth'?",
    "reconstruct photos --weights nano --mode ft": "lower_bound_crop); did you mean 'fit'?",
    "reconstruct photos --weights nano --sise 64": "unrecognized arguments: --sise 64; did you mean '--size'?",
    "reconstruct photos --preset nano": "must be a model with random weights, got 'nano'; use --weights nano",
    "demo --views 99": "--views must be in 2 … 24, got 99",
    "demo --weights nan0": "got 'nan0'; did you mean 'nano'?",
    "demo --device gpu": "did you mean 'cuda'?",
    "info gone.safetensors": "got 'gone.safetensors'; there is no such file",
    "train nanoo": "config must be a YAML file or one of dust3r_nano, finetune, nano,",
    "recontruct photos": "did you mean 'reconstruct'?",
}


@pytest.fixture
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "photos" / "a.png")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_folder")
def test_mistakes_are_found_before_torch_is_imported(tmp_path: Path) -> None:
    code = (
        f"import sys\nfrom geomtx.cli import main\nprint([main(each.split()) for each in {list(MISTAKES)!r}], "
        "sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(geomtx.__file__).parents[1])}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, env=environment
    )
    assert run.stdout == f"{[2] * len(MISTAKES)} []\n"
    lines = run.stderr.splitlines()
    assert len(lines) == len(MISTAKES)
    for line, (arguments, message) in zip(lines, MISTAKES.items(), strict=True):
        assert line.startswith("geomtx: error: "), arguments
        assert message in line, arguments
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.png", "empty", "photos"]


@pytest.mark.usefixtures("_folder")
def test_weights_without_their_owner_are_named_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reconstruct", "photos", "--weights", "DA3-SMALL"]) == 2
    assert capsys.readouterr().err.endswith("got 'DA3-SMALL'; did you mean 'depth-anything/DA3-SMALL'?\n")


def test_embedded_weights_are_those_of_the_models() -> None:
    assert tuple(embedded_weights()) == EMBEDDED


def test_the_patch_of_a_folder_of_weights_is_known(tmp_path: Path) -> None:
    check_image_side(63, str(tmp_path))
    check_image_side(None, "nano")
    (tmp_path / "config.json").write_text('{"patch_size": 6}')
    check_image_side(60, str(tmp_path))
    with pytest.raises(ValueError, match=r"size must be a multiple of 6, the patch of .*, got 61; try 60"):
        check_image_side(61, str(tmp_path))
    (tmp_path / "config.json").write_text("not JSON")
    check_image_side(61, str(tmp_path))


@pytest.mark.usefixtures("_folder")
def test_results_go_to_a_folder_named_after_the_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--preset", "tiny", "--size", "28", "--heads", "camera"]
    assert main(["reconstruct", "photos", *options]) == 0
    assert main(["reconstruct", "photos/a.png", *options]) == 0
    assert main(["reconstruct", "photos/a.png", "photos/a.png", *options]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "photos", "photos-geomtx", "a-geomtx"}
    assert len(geomtx.Scene.load(tmp_path / "photos-geomtx")) == 2
    monkeypatch.chdir("photos")
    assert main(["reconstruct", ".", *options]) == 0
    assert [path.name for path in Path.cwd().iterdir()] == ["a.png"], "nothing is written among the photos"
    assert len(geomtx.Scene.load(tmp_path / "photos-geomtx")) == 1


@pytest.mark.usefixtures("_folder")
def test_results_of_other_photos_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--preset", "tiny", "--size", "28", "--heads", "camera"]
    for name in ("a", "b"):
        shutil.copytree("photos", f"{name}/images")
    (tmp_path / "c-geomtx").mkdir()
    (tmp_path / "c-geomtx" / "notes.txt").write_text("mine")
    shutil.copytree("photos", "c")
    for source in ("a/images", "b/images", "a/images", "b/images", "c"):
        assert main(["reconstruct", source, *options]) == 0
    folders = {path.name for path in tmp_path.glob("*-geomtx*")}
    assert folders == {"images-geomtx", "images-geomtx-2", "c-geomtx", "c-geomtx-2"}
    assert [path.name for path in (tmp_path / "c-geomtx").iterdir()] == ["notes.txt"]
    assert (
        "geomtx: 'images-geomtx' holds something else, the results go to 'images-geomtx-2'" in capsys.readouterr().err
    )
    assert main(["reconstruct", "c", *options, "--overwrite"]) == 0
    assert (tmp_path / "c-geomtx" / "scene.safetensors").is_file()
