"""`geomtx reconstruct` with what is known: cameras, distances, masks, and which pixels take part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import geomtx
from geomtx.cli import main
from geomtx.scene import PixelFilter


def run(photos: Path, *options: str, out: str = "out") -> int:
    argv = ["reconstruct", str(photos), "-o", str(photos.parent / out), "--weights", "nano", "--device", "cpu"]
    return main([*argv, *options])


def cameras_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "cameras.json").read_text())


@pytest.fixture
def known(photos: Path) -> Path:
    """The cameras that nano predicts, turned, moved, three times as large, and in metres."""
    assert run(photos, "--heads", "camera,depth", out="before") == 0
    content = cameras_of(photos.parent / "before")
    turn = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
    for view in content["views"]:
        pose = np.array(view["cam_from_world"])
        pose[:, :3] = pose[:, :3] @ turn
        pose[:, 3] = 3 * pose[:, 3] + pose[:, :3] @ [1, 2, 3]
        view["cam_from_world"] = pose.tolist()
        view["intrinsics"][0][0] *= 1.1
    content["units"] = "metres"
    path = photos.parent / "known.json"
    path.write_text(json.dumps(content))
    return path


def test_a_scene_comes_into_the_world_of_known_cameras(
    photos: Path, known: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(photos, "--cameras", str(known)) == 0
    assert "aligned: 3 of 3 cameras agree, to " in capsys.readouterr().out
    got, want = cameras_of(photos.parent / "out"), json.loads(known.read_text())
    assert got["units"] == "metres"
    assert got["conventions"]["world"] == "that of the known poses"
    for view, other in zip(got["views"], want["views"], strict=True):
        np.testing.assert_allclose(view["cam_from_world"], other["cam_from_world"], atol=2e-4)
        np.testing.assert_allclose(view["intrinsics"], other["intrinsics"], rtol=1e-4)
    scene, before = (geomtx.Scene.load(photos.parent / name) for name in ("out", "before"))
    torch.testing.assert_close(scene.predictions.depth.value, 3 * before.predictions.depth.value, rtol=1e-3, atol=1e-3)
    assert "3 of 3 cameras agree" in scene.provenance["alignment"]


def test_known_poses_are_put_in_place(photos: Path, known: Path) -> None:
    content = json.loads(known.read_text())
    content["views"][1]["cam_from_world"][0][3] += 0.01
    known.write_text(json.dumps(content))
    assert run(photos, "--cameras", str(known), "--cameras-fixed") == 0
    got = cameras_of(photos.parent / "out")["views"]
    for view, other in zip(got, content["views"], strict=True):
        np.testing.assert_allclose(view["cam_from_world"], np.float32(other["cam_from_world"]))
    assert "but for what was known of them" in (photos.parent / "out" / "report.html").read_text(encoding="utf-8")
    scene = geomtx.Scene.load(photos.parent / "out")
    assert scene.provenance["known_poses"] == scene.provenance["known_intrinsics"] == "of 3 of 3 photos"


def test_a_distance_gives_metres(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(photos, "--distance", "0,2,1.5", "--heads", "camera") == 0
    printed = capsys.readouterr().out
    assert "lengths in metres" in printed
    assert "aligned: distance: 1 of 1 values agree, to 0 % (median)" in printed
    scene = geomtx.Scene.load(photos.parent / "out")
    centers = geomtx.invert_rigid(scene.cameras.cam_from_world)[..., 3]
    assert (centers[0] - centers[2]).norm() == pytest.approx(1.5, rel=1e-4)


def test_masks_and_filters(photos: Path) -> None:
    (photos.parent / "masks").mkdir()
    mask = np.zeros((90, 120), np.uint8)
    mask[:, :60] = 255
    Image.fromarray(mask).save(photos.parent / "masks" / "view_0.png")
    options = ("--masks", str(photos.parent / "masks"), "--agreement", "0.5", "--no-sky", "--min-confidence", "1")
    assert run(photos, *options) == 0
    scene = geomtx.Scene.load(photos.parent / "out")
    width = scene.masks.shape[-1]
    assert not scene.masks[0, :, width // 2 + 1 :].any()
    assert scene.masks[0, :, : width // 2].any()


def test_the_reference_view(photos: Path) -> None:
    assert run(photos, "--reference", "middle", "--heads", "camera,depth") == 0
    scene = geomtx.Scene.load(photos.parent / "out")
    assert scene.provenance["reference"] == "view_1.png"
    torch.testing.assert_close(scene.cameras.cam_from_world[0], torch.eye(3, 4), atol=1e-4, rtol=0)
    assert scene.names == ("view_0.png", "view_1.png", "view_2.png")


FILE = '{"format": "geomtx.cameras", "version": 1, "views": [%s]}'
POSE = '{"name": "%s", "cam_from_world": [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0]]}'


@pytest.mark.parametrize(
    ("options", "content", "message"),
    [
        (("--cameras", "FILE"), FILE % (POSE % "x.png"), "known cameras must have the name of a photo, got 'x.png'"),
        (("--cameras", "FILE"), FILE % (POSE % "view_0.png"), "must have poses of at least 2 of the photos"),
        (("--cameras", "FILE"), FILE % ", ".join(POSE % f"view_{n}.png" for n in (0, 1)), "not all be in one place"),
        (("--cameras", "FILE"), FILE % ", ".join([POSE % "view_0.png"] * 2), "names, got 'view_0.png' twice"),
        (("--cameras", "FILE"), (FILE % (POSE % "view_0.png")).replace("[[1,", "[[2,"), "with rotations R, got"),
        (("--cameras", "FILE"), "{", "known.json' must be JSON, got: "),
        (("--cameras", "nowhere.json"), "", "--cameras must be a file or a folder with a model"),
        (("--cameras-fixed",), "", "--cameras-fixed must go with --cameras FILE"),
        (("--cameras", "FILE", "--heads", "depth"), "", "heads must hold camera for --cameras, got depth"),
        (("--distance", "0,3,1"), "", "--distance must be between photos from 0 to 2, got 3"),
        (("--distance", "0,1,-1"), "", "distance must be finite and positive, got -1.0"),
        (("--distance", "0,1"), "", "must be A,B,LENGTH, two photos and a number, got '0,1'"),
        (("--masks", "nowhere"), "", "masks must be in an existing folder, got 'nowhere'"),
        (("--agreement", "2"), "", "agreement must be in 0 … 1, got 2.0"),
        (("--agreement", "0.5", "--heads", "points"), "", "heads must hold camera and depth for --agreement"),
        (("--reference", "middle", "--window", "2"), "", "--reference must not go with --window"),
        (("--min-confidence", "nan"), "", "--min-confidence must be finite, got nan"),
        (("--merge-within", "-1"), "", "argument --merge-within: must be a number above 0, got '-1'"),
        (("--formats", "splat", "--image-factors", "99"), "", "image_factors must be at most the sides of the"),
        (("--min-confidence", "1e9"), "", "no points: the smallest confidence, 1e+09, of at most"),
    ],
)  # fmt: skip
def test_what_can_not_be_used_is_one_line(
    photos: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], content: str, message: str
) -> None:
    path = photos.parent / "known.json"
    path.write_text(content)
    assert run(photos, *(str(path) if option == "FILE" else option for option in options)) == 2
    _, err = capsys.readouterr()
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (photos.parent / "out").exists()


def test_masks_of_other_photos(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos.parent / "masks").mkdir()
    Image.new("L", (120, 90), 255).save(photos.parent / "masks" / "other.png")
    assert run(photos, "--masks", str(photos.parent / "masks")) == 2
    assert "must have the names of the photos, got 'other.png' for 'view_0.png'" in capsys.readouterr().err


def test_other_filters_of_a_scene_that_is_there(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(photos, "--heads", "camera,depth") == 0
    scene = geomtx.Scene.load(photos.parent / "out")
    value = float(scene.predictions.depth.confidence.median())
    argv = ["convert", str(photos.parent / "out"), "-o", str(photos.parent / "other"), "--formats", "ply"]
    assert main([*argv, "--percentile", "0", "--min-confidence", str(value)]) == 0
    header = (photos.parent / "other" / "points.ply").read_bytes().split(b"end_header")[0].decode()
    wanted = scene.points(0, which=PixelFilter(min_confidence=value))
    assert f"element vertex {len(wanted.xyz)}\n" in header
    for options, which in (((), PixelFilter()), (("--keep-edges",), PixelFilter(edges=False))):
        assert main([*argv, "--percentile", "0", *options]) == 0
        header = (photos.parent / "other" / "points.ply").read_bytes().split(b"end_header")[0].decode()
        assert f"element vertex {len(scene.points(0, which=which).xyz)}\n" in header
    assert len(scene.points(0).xyz) < len(scene.points(0, which=PixelFilter(edges=False)).xyz)
    assert main([*argv, "--agreement", "-1"]) == 2
    assert "agreement must be in 0 … 1, got -1.0" in capsys.readouterr().err
