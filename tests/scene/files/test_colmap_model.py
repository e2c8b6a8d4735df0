"""Variants of COLMAP's models that others write; `data/datasets/test_colmap.py` has what can be wrong with them."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import roma
import torch

from data.colmap_files import Model, Picture, write_binary, write_text
from geomtx.scene.files.colmap_model import ColmapError, find_colmap_model, read_colmap_model

WRITERS = {".bin": write_binary, ".txt": write_text}
TURN = [0.5, 0.1, -0.3, 0.4]  # w x y z, of no unit length


def small_model() -> Model:
    pictures = [
        Picture("left eye.png", 1, [1.0, 0, 0, 0], [0.0, 0, 1], [(1.5, 2.5, 7), (3.0, 4.0, -1)]),
        Picture("right.png", 2, TURN, [1.0, 2, 3], []),  # whose second line is empty
    ]
    cameras = {1: ("PINHOLE", 8, 6, [5.0, 5, 4, 3]), 2: ("SIMPLE_PINHOLE", 8, 6, [5.0, 4, 3])}
    return Model(cameras, pictures, {7: [0.0, 1, 2]})


def write_rig(folder: Path, kind: str, *, known: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """One rig of the two cameras and an IMU, one frame; returns the rotation and translation of the second image."""
    in_rig, frame = [*TURN, 0.5, 0.0, -0.5], [0.9, 0.1, 0.2, -0.3, 3.0, 2.0, 1.0]
    if kind == ".bin":
        rigs = struct.pack("<QIIiI", 1, 5, 3, 0, 1) + struct.pack("<iIB", 0, 2, known)
        rigs += (struct.pack("<7d", *in_rig) if known else b"") + struct.pack("<iIB", 1, 1, 0)
        frames = struct.pack("<QII7dI", 1, 3, 5, *frame, 3)
        frames += struct.pack("<iIQ", 0, 1, 1) + struct.pack("<iIQ", 0, 2, 2) + struct.pack("<iIQ", 1, 1, 9)
        (folder / "rigs.bin").write_bytes(rigs)
        (folder / "frames.bin").write_bytes(frames)
    else:
        sensor = " ".join(map(str, [1, *in_rig])) if known else "0"
        (folder / "rigs.txt").write_text(f"# Rigs\n5 3 CAMERA 1 CAMERA 2 {sensor} IMU 1 0\n")
        pose = " ".join(map(str, frame))
        (folder / "frames.txt").write_text(f"# Frames\n3 5 {pose} 3 CAMERA 1 1 CAMERA 2 2 IMU 1 9\n")
    first, second = (rotation(values[:4]) for values in (frame, in_rig))
    return second @ first, second @ np.array(frame[4:]) + np.array(in_rig[4:])


def rotation(quat_wxyz: list[float]) -> np.ndarray:
    x, y, z, w = (torch.tensor(quat_wxyz, dtype=torch.float64) / np.linalg.norm(quat_wxyz)).roll(-1)
    return roma.unitquat_to_rotmat(torch.stack([x, y, z, w])).numpy()


def rotation_of(quat_xyzw: np.ndarray) -> np.ndarray:
    return rotation([quat_xyzw[3], *quat_xyzw[:3]])


@pytest.mark.parametrize("kind", WRITERS)
def test_the_pose_of_the_frame_and_of_the_rig_wins(tmp_path: Path, kind: str) -> None:
    WRITERS[kind](tmp_path, small_model())
    second = read_colmap_model(tmp_path).images[1]
    np.testing.assert_allclose(rotation_of(second.quat_xyzw), rotation(TURN), atol=1e-12)
    assert second.translation.tolist() == [1, 2, 3]
    turn, shift = write_rig(tmp_path, kind)
    first, second = read_colmap_model(tmp_path).images
    assert (first.name, first.translation.tolist()) == ("left eye.png", [3, 2, 1])
    np.testing.assert_allclose(rotation_of(second.quat_xyzw), turn, atol=1e-12)
    np.testing.assert_allclose(second.translation, shift, atol=1e-12)


@pytest.mark.parametrize("kind", WRITERS)
def test_what_a_rig_must_have(tmp_path: Path, kind: str) -> None:
    WRITERS[kind](tmp_path, small_model())
    write_rig(tmp_path, kind, known=False)
    with pytest.raises(ColmapError, match=r"pose of sensor 2 in rig 5 must be known, got none for image 2 in "):
        read_colmap_model(tmp_path)
    (tmp_path / f"frames{kind}").unlink()
    with pytest.raises(ColmapError, match=r"must hold both rigs and frames or neither, got rigs alone$"):
        read_colmap_model(tmp_path)


def test_binary_files_win_and_frames_of_the_other_kind_are_ignored(tmp_path: Path) -> None:
    write_text(tmp_path, small_model())
    write_rig(tmp_path, ".txt")
    moved = small_model().pictures[0]._replace(translation=[7.0, 8, 9])
    write_binary(tmp_path, small_model()._replace(pictures=[moved]))
    (only,) = read_colmap_model(tmp_path).images
    assert only.translation.tolist() == [7, 8, 9]
    (tmp_path / "images.bin").unlink()  # then there is no whole model of binary files
    assert len(read_colmap_model(tmp_path).images) == 2


def test_text_of_other_editors(tmp_path: Path) -> None:
    write_text(tmp_path, small_model())
    write_rig(tmp_path, ".txt")
    expected = read_colmap_model(tmp_path)
    for path in tmp_path.iterdir():
        text = path.read_text().replace("\n", "\r\n")
        path.write_bytes(b"\xef\xbb\xbf" + f" # a comment\r\n{text}\r\n".encode())
    found = read_colmap_model(tmp_path)
    assert [image.name for image in found.images] == ["left eye.png", "right.png"]
    for one, two in zip(found.images, expected.images, strict=True):
        assert np.array_equal(one.quat_xyzw, two.quat_xyzw)
        assert np.array_equal(one.keypoints_px, two.keypoints_px)
    assert found.images[0].keypoints_px.tolist() == [[1.5, 2.5]]
    assert found.images[1].keypoints_px.shape == (0, 2)


def test_where_the_model_is_found(tmp_path: Path) -> None:
    with pytest.raises(ColmapError, match=r"must hold a COLMAP model in sparse/0, sparse or itself, got no cameras"):
        find_colmap_model(tmp_path)
    for place in (".", "sparse", "sparse/0"):
        write_text(tmp_path / place, small_model())
        assert find_colmap_model(tmp_path) == tmp_path / place
    shutil.rmtree(tmp_path / "sparse" / "0")
    assert find_colmap_model(tmp_path) == tmp_path / "sparse"
