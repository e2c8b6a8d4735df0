from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import geomtx
from geometry.random_cameras import random_intrinsics, random_rigid
from geomtx.geometry import to_nerfstudio
from geomtx.scene import read_cameras
from geomtx.scene.files import write_cameras


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def view(name: str = "a.jpg", **changes: Any) -> dict[str, Any]:
    pose = random_rigid(1)[0].tolist()
    return {"name": name, "cam_from_world": pose, "intrinsics": random_intrinsics(1)[0].tolist(), **changes}


def cameras(*views: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"format": "geomtx.cameras", "version": 1, "views": list(views), **changes}


def test_what_a_scene_writes_is_read_again(scene: geomtx.Scene, tmp_path: Path) -> None:
    scene = dataclasses.replace(scene.rescale(2, units="metres"), notice="careful")
    write_cameras(tmp_path / "cameras.json", scene)
    known = read_cameras(tmp_path / "cameras.json")
    assert (known.names, known.units) == (scene.names, "metres")
    assert known.image_hw == tuple(transform.original_hw for transform in scene.transforms)
    for got, want in zip((known.cam_from_world, known.intrinsics), scene.cameras, strict=True):
        assert torch.equal(got.float(), want)
    assert read_cameras(tmp_path / "cameras.json").names == geomtx.scene.read_cameras(tmp_path / "cameras.json").names


def test_parts_that_are_not_known_are_nan(tmp_path: Path) -> None:
    path = write(
        tmp_path / "cameras.json",
        cameras(view("a.jpg", intrinsics=None), view("b.jpg", cam_from_world=None, width=6, height=4)),
    )
    known = read_cameras(path)
    assert known.cam_from_world is not None
    assert known.intrinsics is not None
    assert known.cam_from_world.isfinite().flatten(1).all(1).tolist() == [True, False]
    assert known.intrinsics.isfinite().flatten(1).all(1).tolist() == [False, True]
    assert (known.image_hw, known.units) == ((None, (4, 6)), "up to scale")
    only = write(tmp_path / "poses.json", cameras({"name": "a.jpg", "cam_from_world": view()["cam_from_world"]}))
    assert read_cameras(only).intrinsics is None


@pytest.mark.parametrize("applied", [True, False])
def test_transforms_of_nerfstudio(tmp_path: Path, applied: bool) -> None:
    torch.manual_seed(0)
    poses = random_rigid(2)
    frames = [
        {"file_path": f"images/{name}", "transform_matrix": to_nerfstudio(pose).tolist()}
        for name, pose in zip("ab", poses, strict=True)
    ]
    frames[1] |= {"fl_x": 70.0, "fl_y": 71.0, "cx": 30.0}
    content = {"fl_x": 50.0, "cx": 32.5, "cy": 24.5, "w": 64, "h": 48, "frames": frames}
    turn = [[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0]]
    known = read_cameras(
        write(tmp_path / "transforms.json", content | ({"applied_transform": turn} if applied else {}))
    )
    assert known.names == ("images/a", "images/b")
    assert known.image_hw == ((48, 64), (48, 64))
    first = torch.tensor([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]])
    assert torch.equal(
        known.intrinsics.float(), torch.stack([first, torch.tensor([[70.0, 0, 29.5], [0, 71, 24], [0, 0, 1]])])
    )
    want = (
        poses if applied else poses @ torch.tensor([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]).double()
    )
    torch.testing.assert_close(known.cam_from_world, want)


def test_a_model_of_colmap(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Text files, of which COLMAP's documentation says what they hold."""
    folder = tmp_path / "sparse" / "0"
    folder.mkdir(parents=True)
    (folder / "cameras.txt").write_text("1 PINHOLE 64 48 50 51 32 24\n2 SIMPLE_RADIAL 48 64 40 24 32 0.1\n")
    (folder / "images.txt").write_text("1 0 0 0 1 1 2 3 2 b.jpg\n\n2 1 0 0 0 4 5 6 1 sub/a b.jpg\n\n")
    (folder / "points3D.txt").write_text("")
    known = read_cameras(tmp_path)
    by_name = dict(zip(known.names, known.cam_from_world, strict=True))
    half_turn = torch.diag(torch.tensor([-1.0, -1, 1])).double()  # about z
    torch.testing.assert_close(by_name["b.jpg"], torch.cat([half_turn, torch.tensor([[1.0], [2], [3]])], dim=1))
    lens = dict(zip(known.names, known.intrinsics, strict=True))["b.jpg"]
    assert "are distorted, which is ignored" in caplog.text
    assert lens.tolist() == [[40, 0, 23.5], [0, 40, 31.5], [0, 0, 1]]


BAD = torch.eye(3, 4).tolist()
BAD[0][0] = -1.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no", "cameras '.*x.json' must be JSON, got: "),
        ({"format": "other"}, "must be of format geomtx.cameras 1 or of nerfstudio, got format 'other', version None"),
        (cameras(version=2), "got format 'geomtx.cameras', version 2"),
        (cameras(), "must hold at least one camera, got none"),
        (cameras({"cam_from_world": BAD}), "cameras of '.*x.json' must be whole, got a damaged entry: KeyError"),
        ([1], "must be a JSON object, got a list"),
        (cameras(view(cam_from_world=BAD)), r"poses of .* must be \[R \| t\] with rotations R, .*-1 .* 'a.jpg'"),
        (cameras(view(cam_from_world=[[1, 2]])), r"cam_from_world of 'a.jpg' must have shape \(3, 4\), got \(1, 2\)"),
        (cameras(view(intrinsics="wide")), "intrinsics of 'a.jpg' must be a matrix of numbers, got 'wide'"),
        (cameras(view(intrinsics=BAD)), r"intrinsics of 'a.jpg' must have shape \(3, 3\), got \(3, 4\)"),
        (cameras(view(intrinsics=[[-1, 0, 0], [0, 1, 0], [0, 0, 1]])), "'a.jpg' in '.*' must have positive focal leng"),
        (cameras({"name": "a.jpg"}), "must have cam_from_world or intrinsics, got neither"),
    ],
)  # fmt: skip
def test_what_is_no_file_of_cameras(tmp_path: Path, content: Any, message: str) -> None:
    path = write(tmp_path / "x.json", content)
    with pytest.raises(ValueError, match=message) as caught:
        read_cameras(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="cameras must be a file or a folder with a model"):
        read_cameras(tmp_path / "nothing.json")
    with pytest.raises(ValueError, match="must hold a COLMAP model"):
        read_cameras(tmp_path)
