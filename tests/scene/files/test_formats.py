"""Formats of a scene: which files they own, and that all or none are written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import geomtx
from geomtx.cli import main
from geomtx.cli.options import formats as format_options
from geomtx.files import is_own
from geomtx.scene import ExportOptions
from geomtx.scene.files.colmap_model import read_colmap_model
from geomtx.scene.files.photos import Photo, copy_names, write_copies
from geomtx.scene.files.save import FORMATS
from geomtx.types import Predictions
from scene.exact_scenes import exact_scene, true_scene

FEW = ExportOptions(max_points=200)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def save(scene: geomtx.Scene, folder: Path, *formats: str, **options: Any) -> tuple[Path, ...]:
    return scene.save(folder, formats=formats, report=False, export=FEW, **options)


@pytest.fixture
def exact(tmp_path: Path) -> geomtx.Scene:
    return exact_scene(tmp_path / "photos").scene


def test_all_formats_twice(exact: geomtx.Scene, tmp_path: Path) -> None:
    paths = save(exact, tmp_path / "one", *FORMATS)
    save(exact, tmp_path / "two", *reversed(FORMATS))
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert [path.name for path in paths] == [
        "scene.safetensors", "cameras.json", "points.ply", "scene.glb", "colmap", "colmap-text", "nerfstudio", "splat",
    ]  # fmt: skip
    assert all(is_own(tmp_path / "one" / name) for name in digests(tmp_path / "one"))
    save(exact, tmp_path / "two", *FORMATS)  # replaces its own
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_formats_of_another_scene_go(exact: geomtx.Scene, tmp_path: Path) -> None:
    save(exact, tmp_path, *FORMATS)
    (tmp_path / "splat" / "mine.txt").write_text("mine")
    save(exact.rescale(2), tmp_path, "colmap")
    found = [name for name in digests(tmp_path) if not name.startswith("photos/")]
    assert found == [
        "cameras.json",
        *(f"colmap/{each}" for each in ("geomtx.json", *(f"sparse/0/{name}.bin" for name in (
            "cameras", "frames", "images", "points3D", "rigs")))),
        "scene.safetensors", "splat/mine.txt",
    ]  # fmt: skip
    assert not (tmp_path / "nerfstudio").exists()


def test_files_of_others_stay(exact: geomtx.Scene, tmp_path: Path) -> None:
    (tmp_path / "out" / "colmap" / "sparse" / "0").mkdir(parents=True)
    (tmp_path / "out" / "colmap" / "sparse" / "0" / "images.bin").write_bytes(b"of COLMAP itself")
    before = digests(tmp_path / "out")
    with pytest.raises(FileExistsError, match=r"must not hold files of others .* got colmap/sparse/0/images\.bin;"):
        save(exact, tmp_path / "out", "colmap")
    assert digests(tmp_path / "out") == before
    save(exact, tmp_path / "out", "colmap", overwrite=True)
    path = tmp_path / "out" / "colmap" / "sparse" / "0" / "points3D.bin"
    path.write_bytes(path.read_bytes() + b"changed")
    with pytest.raises(FileExistsError, match=r"got colmap/sparse/0/points3D\.bin;"):
        save(exact, tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "splat").write_text("a file")
    with pytest.raises(NotADirectoryError, match=r"must have room for 'splat/.*', but 'splat' is a file"):
        save(exact, tmp_path / "out", "splat")


def test_photos_that_would_be_written_over(exact: geomtx.Scene, tmp_path: Path) -> None:
    save(exact, tmp_path / "out", "splat")
    copies = geomtx.load_views(tmp_path / "out" / "splat" / "images", size=70)
    moved = geomtx.Scene.load(tmp_path / "out")
    again = geomtx.Scene(
        names=copies.names, transforms=copies.transforms, images=moved.images, masks=moved.masks,
        predictions=moved.predictions, paths=copies.paths,
    )  # fmt: skip
    before = digests(tmp_path / "out")
    with pytest.raises(FileExistsError, match="must not hold an input under the name of a result"):
        save(again, tmp_path / "out", "splat")
    assert digests(tmp_path / "out") == before


def test_saved_converted_and_loaded_it_is_the_same_scene(
    exact: geomtx.Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(exact, tmp_path / "one", *FORMATS)
    save(exact, tmp_path / "two")
    assert main(["convert", str(tmp_path / "two"), "--formats", ",".join(FORMATS), "--sparse-points", "200"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(
        f"wrote {tmp_path / 'two'}: points.ply, scene.glb, colmap, colmap-text, nerfstudio, splat\n200 points with "
    )
    assert f"gsplat: python examples/simple_trainer.py default --data_dir {tmp_path / 'two' / 'splat'}" in out
    assert f"3D Gaussian Splatting: python train.py -s {tmp_path / 'two' / 'splat'}" in out
    assert f"nerfstudio: ns-train splatfacto --data {tmp_path / 'two' / 'nerfstudio'}" in out
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    loaded = geomtx.Scene.load(tmp_path / "two")
    assert (loaded.names, loaded.transforms, loaded.paths) == (exact.names, exact.transforms, exact.paths)
    assert loaded.predictions.depth is not None
    assert exact.predictions.depth is not None
    assert torch.equal(loaded.predictions.depth.value, exact.predictions.depth.value)


def test_photos_are_found_from_the_folder(
    exact: geomtx.Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(exact, tmp_path / "out")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("out", "photos"):
        (tmp_path / name).rename(moved / name)
    argv = ["convert", str(moved / "out" / "scene.safetensors"), "--formats", "splat", "--sparse-points", "100"]
    assert main(argv) == 0
    (moved / "photos").rename(tmp_path / "renamed")
    assert main([*argv, "-o", str(tmp_path / "other")]) == 2
    assert "photos must be found to be copied, got none where they were for 4 of 4" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    assert main([*argv, "-o", str(tmp_path / "other"), "--photos", str(tmp_path / "renamed")]) == 0
    images = [name for name in digests(tmp_path / "other") if name.startswith("splat/images")]
    assert images == [f"splat/images/photo_{index}.jpg" for index in range(4)]


def test_formats_are_known(exact: geomtx.Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tuple(FORMATS) == format_options.FORMATS
    with pytest.raises(ValueError, match=r"format must be one of 'ply', .* got 'colmp'; did you mean 'colmap'"):
        save(exact, tmp_path / "out", "colmp")
    with pytest.raises(ValueError, match="formats must be a sequence of names, got 'colmap'"):
        exact.save(tmp_path / "out", formats="colmap")
    assert main(["convert", str(tmp_path), "--formats", "colmp"]) == 2
    assert "argument --formats: must be of ply, glb, " in capsys.readouterr().err
    assert main(["convert", str(tmp_path), "--formats", "splat", "--image-factors", "1"]) == 2
    assert "argument --image-factors: must be whole numbers from 2, separated by commas, got '1'" in (
        capsys.readouterr().err
    )
    assert main(["convert", str(tmp_path / "nothing"), "--formats", "ply"]) == 2
    assert "a scene must be a folder with scene.safetensors or such a file" in capsys.readouterr().err
    for options, message in (
        ({"max_points": 0}, "max_points must be a whole number, at least 1, got 0"),
        ({"colmap_files": 4}, "colmap_files must be one of 3, 5, got 4"),
        ({"image_factors": (1,)}, "image_factors must be a whole number, at least 2, got 1"),
        ({"tolerance": -1.0}, "tolerance must be positive, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            ExportOptions(**options)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "ply"])
def test_a_scene_that_lacks_what_a_format_needs(exact: geomtx.Scene, tmp_path: Path, name: str) -> None:
    bare = dataclasses.replace(exact, predictions=Predictions())
    with pytest.raises(ValueError, match=r"scene must have (cameras|points)"):
        save(bare, tmp_path / "out", name)
    assert not (tmp_path / "out").exists()


def test_the_warning_names_what_is_left_out(
    exact: geomtx.Scene, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    empty = dataclasses.replace(exact, masks=torch.zeros_like(exact.masks))
    for formats in ((), ("ply",)):
        save(empty, tmp_path / "out", *formats)
    reason = "no points: masks and padding leave no pixel"
    assert caplog.messages == [f"left out the cloud, {reason}", f"left out points.ply, {reason}"]


def test_nothing_is_converted_to_no_points(
    exact: geomtx.Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(dataclasses.replace(exact, masks=torch.zeros_like(exact.masks)), tmp_path / "out", "ply")
    assert not (tmp_path / "out" / "points.ply").exists()
    for name in ("ply", "colmap"):
        assert main(["convert", str(tmp_path / "out"), "--formats", name]) == 2
        assert "geomtx: error: no points: masks and padding leave no pixel" in capsys.readouterr().err


def test_a_listing_names_nothing_outside_its_folder(exact: geomtx.Scene, tmp_path: Path) -> None:
    save(exact, tmp_path / "out", "colmap")
    (tmp_path / "victim.txt").write_text("mine")
    path = tmp_path / "out" / "colmap" / "geomtx.json"
    content = json.loads(path.read_text())
    content["files"]["../../victim.txt"] = hashlib.sha256(b"mine").hexdigest()
    path.write_text(json.dumps(content))
    save(exact, tmp_path / "out")
    assert (tmp_path / "victim.txt").read_text() == "mine"
    assert not (tmp_path / "out" / "colmap").exists()


@pytest.mark.usefixtures("small_pictures")
def test_reconstruct_writes_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = exact_scene(tmp_path / "photos").photos
    argv = ["reconstruct", str(photos), "-o", str(tmp_path / "out"), "--preset", "tiny", "--size", "56"]
    argv += ["--merge-within", "0.5", "--sparse-points", "300"]
    assert main([*argv, "--formats", "splat,colmap-text", "--image-factors", "2", "--colmap-files", "3"]) == 0
    out = capsys.readouterr().out
    assert "cameras.json, report.html, report.png, splat, colmap-text\n" in out
    assert "300 points with " in out
    assert "mean track length" in out
    found = digests(tmp_path / "out")
    assert "points.ply" not in found
    assert {f"splat/images_2/photo_{index}.jpg" for index in range(4)} <= found.keys()
    text = sorted(name for name in found if name.startswith("colmap-text/sparse"))
    assert text == [f"colmap-text/sparse/0/{name}.txt" for name in ("cameras", "images", "points3D")]
    shutil.rmtree(tmp_path / "out")
    photos.joinpath("photo_0.jpg").rename(photos / "photo 0.jpg")
    assert main([*argv, "--formats", "colmap-text"]) == 2
    assert "names of photos must have no spaces in text files of COLMAP, got 'photo 0.jpg'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    photos.joinpath("photo 0.jpg").rename(photos / "photo_0.jpg")
    Image.new("RGB", (50, 40)).save(photos / "photo_1.jpg")
    assert main([*argv, "--formats", "colmap", "--shared-camera"]) == 2
    assert "photos must have one size to share a camera, got 50x40 and 90x60" in capsys.readouterr().err


def test_bytes_of_names_that_are_not_text(tmp_path: Path) -> None:
    photos = exact_scene(tmp_path / "photos").photos
    name = os.fsdecode(b"caf\xe9.jpg")
    try:
        (photos / "photo_1.jpg").rename(photos / name)
    except OSError:
        pytest.skip("file names are text here")
    scene = true_scene(geomtx.load_views(photos, size=70))
    save(scene, tmp_path / "out", "ply")
    assert main(["convert", str(tmp_path / "out"), "--formats", "colmap,splat", "--sparse-points", "200"]) == 0
    model = read_colmap_model(tmp_path / "out" / "colmap" / "sparse" / "0")
    assert name in [image.name for image in model.images]
    copies = sorted(path.name for path in (tmp_path / "out" / "splat" / "images").iterdir())
    assert copies[0] == r"caf\xe9.jpg"


def test_heic_photos_are_copied_as_jpeg(tmp_path: Path):
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    pixels = np.stack([np.broadcast_to(ramp, (48, 64)), np.broadcast_to(ramp[:48, None], (48, 64))] * 2, -1)[..., :3]
    heif.from_pillow(Image.fromarray(np.ascontiguousarray(pixels))).save(tmp_path / "IMG_1.HEIC", quality=95)
    (name,) = copy_names(["IMG_1.HEIC"])
    assert name == "IMG_1.jpg"
    write_copies(tmp_path, [Photo(name, tmp_path / "IMG_1.HEIC", (48, 64))], (2,))
    copy = Image.open(tmp_path / "images" / name)
    assert copy.format == "JPEG"
    assert np.abs(np.asarray(copy).astype(int) - pixels).mean() < 3
    assert Image.open(tmp_path / "images_2" / name).size == (32, 24)
