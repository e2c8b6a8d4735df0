from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.layouts import OPTIONS, open_co3d, open_virtual_kitti
from data.plane_scenes import (
    PLANE_Z,
    save_png16,
    write_annotations,
    write_co3d,
    write_unified,
    write_virtual_kitti,
)
from geometry.random_cameras import random_rigid
from geomtx.data import (
    CO3D_SEEN,
    Co3dDataset,
    FrameChoice,
    SampleOptions,
    SceneError,
    SceneRequest,
    UnifiedDataset,
    VirtualKittiDataset,
    convert_pytorch3d,
    rank_by_pose,
)
from geomtx.geometry import transform_points

# Unified


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("image_names.json", None, r"'.*image_names.json' must be an existing file, got none"),
        ("image_names.json", "{", r"'.*image_names.json' must be JSON, got another file: .*"),
        ("image_names.json", '{"a": 1}', r"'.*image_names.json' must be a list of names, got other JSON"),
        ("image_names.json", "[1]", r"'.*image_names.json' must be a list of names, got other JSON"),
        (
            "image_names.json",
            '["x.png", "000.png", "y.png"]',
            r"pictures of 'room' must exist, got none for 2, the first 'x.png'",
        ),
        (
            "image_names.json",
            '["000.png"]',
            r"cameras of 'room' must be one a picture, 1, got \(4, 3, 4\) and \(4, 3, 3\)",
        ),
        ("intrinsics.npy", None, r"'.*intrinsics.npy' must be an existing file, got none"),
        ("cam_from_worlds.npy", "junk", r"'.*cam_from_worlds.npy' must be a whole .npy file, got a damaged one: .*"),
        ("ranking.npy", np.array([[0.5]]), r"ranking of 'room' must have frame numbers, a row a picture, got \(1, 1\)"),
        ("ranking.npy", np.full((4, 2), 4), r"ranking of 'room' must have frame numbers, .*, got \(4, 2\)"),
        ("cam_from_worlds.npy", np.array(["a"]), r"'.*npy' must hold one array of numbers, got another file"),
    ],
)
def test_folders_that_are_incomplete(name: str, content: object, message: str, tmp_path: Path) -> None:
    path = write_unified(tmp_path, "room") / name
    if content is None:
        path.unlink()
    elif isinstance(content, str):
        path.write_text(content)
    else:
        np.save(path, content)
    with pytest.raises(SceneError, match=rf"^{message}$"):
        UnifiedDataset(tmp_path)


def test_an_empty_root(tmp_path: Path) -> None:
    for layout in (UnifiedDataset, VirtualKittiDataset):
        with pytest.raises(
            ValueError, match=r"^root must hold sequences that can be used, got none in '.*', which is no folder$"
        ):
            layout(tmp_path / "none")


def test_masks_select_depth(tmp_path: Path) -> None:
    folder = write_unified(tmp_path, "room")
    (folder / "masks").mkdir()
    for view in range(4):
        pixels = np.full((48, 60), 255, np.uint8)
        pixels[:, 30:] = 128
        Image.fromarray(pixels).save(folder / "masks" / f"{view:03d}.png")
    scene = UnifiedDataset(tmp_path, options=OPTIONS)[(0, 2, 0.75)]
    assert scene.mask[..., :25].float().mean() > 0.9
    assert not scene.mask[..., 30:].any()
    assert not scene.depth[..., 30:].any()


def test_scenes_without_depth(tmp_path: Path) -> None:
    folder = write_unified(tmp_path, "room")
    for path in (folder / "depths").iterdir():
        path.unlink()
    (folder / "depths").rmdir()
    scene = UnifiedDataset(tmp_path, options=SampleOptions(size=56, num_tracks=5))[(0, 3, 1.0)]
    assert scene.cameras.cam_from_world.shape == (1, 3, 3, 4)
    assert all(part is None for part in scene[2:])


def test_a_ranking_says_what_is_near(tmp_path: Path) -> None:
    folder = write_unified(tmp_path, "room", num_views=6)
    poses = np.load(folder / "cam_from_worlds.npy")
    np.save(folder / "ranking.npy", rank_by_pose(poses))
    options = SampleOptions(size=56, choice=FrameChoice(num_nearest=2))
    dataset = UnifiedDataset(tmp_path, options=options)
    steps = set()
    for seed in range(12):
        scene = dataset[SceneRequest(0, 3, 1.0, seed)]
        steps |= {round(t / 0.05) for t in scene.cameras.cam_from_world[0, :, 0, 3].tolist()}
    assert steps <= {-1, 0, 1}
    assert len(steps) > 1


# Co3Dv2


def test_co3d_masks_and_outliers(tmp_path: Path) -> None:
    dataset = open_co3d(tmp_path)
    assert [record.name for record in dataset.records] == ["apple/one"]
    frame = dataset.read_frame(dataset.records[0], 0)
    assert not frame.depth[:, :10].any(), "masked"
    assert frame.depth[0, 20] == 0, "not finite"
    assert (frame.depth > 0).sum() > 0.9 * 48 * 50


def test_co3d_leaves_out_the_farthest(tmp_path: Path) -> None:
    dataset = open_co3d(tmp_path)
    depth = np.random.default_rng(0).permutation(np.arange(1, 48 * 60 + 1)).reshape(48, 60).astype(np.float16)
    path = tmp_path / "apple/one/depths/frame000000.jpg.geometric.png"
    save_png16(path, depth.view(np.uint16))
    kept = dataset.read_frame(dataset.records[0], 0).depth
    assert kept.max() == pytest.approx(np.percentile(depth[:, 10:].astype(float), 98), abs=2)


def test_co3d_categories() -> None:
    assert len(set(CO3D_SEEN)) == len(CO3D_SEEN) == 41
    assert list(CO3D_SEEN) == sorted(CO3D_SEEN)


def test_co3d_splits(tmp_path: Path) -> None:
    write_co3d(tmp_path, "apple")
    with pytest.raises(ValueError, match=r"^root must hold sequences"):
        Co3dDataset(tmp_path, tmp_path, categories=("apple",))  # training needs 24 frames
    (tmp_path / "apple_train.jgz").rename(tmp_path / "apple_test.jgz")
    assert len(Co3dDataset(tmp_path, tmp_path, split="test", categories=("apple",))) == 1
    with pytest.raises(SceneError, match=r"^annotations '.*apple_train.jgz' must be an existing file, got none$"):
        Co3dDataset(tmp_path, tmp_path, categories=("apple",))


@pytest.mark.usefixtures("unchecked")
def test_co3d_annotations_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "apple_train.jgz"

    def load() -> None:
        Co3dDataset(tmp_path, tmp_path, categories=("apple",), min_frames=1)

    path.write_text("no gzip")
    with pytest.raises(SceneError, match=r"^annotations '.*' must be gzipped JSON, got another file: "):
        load()
    write_annotations(path, [1])
    with pytest.raises(SceneError, match=r"^annotations '.*' must map sequences to frames, got list$"):
        load()
    for frames in ([{"filepath": "a.jpg"}], [1], 3, [{"filepath": "a", "extri": [[1]], "intri": [[1]]}]):
        write_annotations(path, {"one": frames})
        with pytest.raises(SceneError, match=r"^sequence 'apple/one' must have filepath, extri and intri a frame, got"):
            load()
    with pytest.raises(ValueError, match=r"^split must be one of 'train', 'test', got 'val'$"):
        Co3dDataset(tmp_path, tmp_path, split="val")


def test_conversion_from_pytorch3d() -> None:
    """x_p3d = x R + T with x left and y up is the same point as diag(-1, -1, 1) x_opencv."""
    poses = random_rigid(5)
    points = torch.randn(5, 7, 3, dtype=torch.float64)
    flip = torch.tensor([-1.0, -1, 1], dtype=torch.float64)
    rotation, translation = poses[..., :3].transpose(-1, -2).clone(), poses[..., 3].clone()
    expected = (points @ rotation + translation[:, None]) * flip
    torch.testing.assert_close(transform_points(convert_pytorch3d(rotation, translation), points), expected)


# Virtual KITTI 2


def test_virtual_kitti_reads_both_cameras_and_the_far_is_unknown(tmp_path: Path) -> None:
    dataset = open_virtual_kitti(tmp_path)
    assert [record.name for record in dataset.records] == [
        f"Scene01/fog/frames/rgb/Camera_{camera}" for camera in (0, 1)
    ]
    poses = [record.cam_from_world for record in dataset.records]
    np.testing.assert_allclose((poses[1] - poses[0])[:, 0, 3], -0.5)
    frame = dataset.read_frame(dataset.records[0], 0)
    assert frame.depth[30, 30] == 0
    assert (frame.depth == 0).sum() == 1
    np.testing.assert_allclose(frame.depth[frame.depth > 0], PLANE_Z, atol=0.005)


def test_virtual_kitti_chooses_views_near_each_other(tmp_path: Path) -> None:
    """Within 8 frames for each of two views, unless the options say otherwise."""
    write_virtual_kitti(tmp_path, num_views=40)

    def farthest(dataset: SceneDataset) -> int:
        offsets = []
        for seed in range(30):
            scene = dataset[SceneRequest(0, 2, 1.0, seed)]
            offsets.append(abs(round(scene.cameras.cam_from_world[0, 1, 0, 3].item() / 0.05)))
        return max(offsets)

    assert 8 < farthest(VirtualKittiDataset(tmp_path, options=OPTIONS)) <= 16
    anywhere = dataclasses.replace(OPTIONS, choice=FrameChoice())
    assert farthest(VirtualKittiDataset(tmp_path, options=anywhere)) > 16


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("extrinsic.txt", None, r"cameras '.*extrinsic.txt' must be an existing file, got none"),
        ("intrinsic.txt", None, r"cameras '.*intrinsic.txt' must be an existing file, got none"),
        ("extrinsic.txt", "0 0 1 0 0", r"cameras '.*' must have 18 numbers a line, got other in line 2"),
        ("intrinsic.txt", "0 0 a b c d", r"cameras '.*' must have 6 numbers a line, got other in line 2"),
        (
            "intrinsic.txt",
            "0 nan 1 1 1 1",
            r"cameras '.*intrinsic.txt' must have whole numbers of frame and camera, got '0 nan 1 1 1 1' in line 2",
        ),
        (
            "intrinsic.txt",
            "inf 0 1 1 1 1",
            r"cameras '.*' must have whole numbers of frame and camera, got 'inf 0 1 1 1 1' in line 2",
        ),
        (
            "intrinsic.txt",
            "0 inf 1 1 1 1",
            r"cameras '.*' must have whole numbers of frame and camera, got '0 inf 1 1 1 1' in line 2",
        ),
        (
            "intrinsic.txt",
            "0.5 0 1 1 1 1",
            r"cameras '.*' must have whole numbers of frame and camera, got '0.5 0 .* in line 2",
        ),
        ("intrinsic.txt", b"\xff\xfe", r"cameras '.*intrinsic.txt' must be text, got bytes that are none in line 2"),
        ("intrinsic.txt", "9 0 1 1 1 1", r"cameras of '.*Camera_0' must have a row for every picture, .* for frame 0"),
    ],
)
def test_virtual_kitti_tables(
    name: str, edit: str | bytes | None, message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_virtual_kitti(tmp_path) / name
    if edit is None:
        path.unlink()
    else:
        lines = path.read_bytes().splitlines()
        lines[1] = edit if isinstance(edit, bytes) else edit.encode()
        path.write_bytes(b"\n".join(lines))
    with pytest.raises(SceneError, match=rf"^{message}$"):
        VirtualKittiDataset(tmp_path, min_frames=2)
    shutil.copytree(tmp_path / "Scene01", tmp_path / "Scene02")
    write_virtual_kitti(tmp_path)
    whole = VirtualKittiDataset(tmp_path, min_frames=2, on_error="skip")
    assert all(record.name.startswith("Scene01/") for record in whole.records[:2])
    assert f"and {4 - len(whole.records)} broken ones" in caplog.text


def test_virtual_kitti_pictures_of_another_name(tmp_path: Path) -> None:
    folder = write_virtual_kitti(tmp_path) / "frames" / "rgb" / "Camera_1"
    (folder / "rgb_x.jpg").touch()
    with pytest.raises(SceneError, match=r"^pictures of '.*Camera_1' must be named rgb_NUMBER.jpg, got 'rgb_x.jpg'$"):
        VirtualKittiDataset(tmp_path, min_frames=2)
    assert len(VirtualKittiDataset(tmp_path, min_frames=2, on_error="skip")) == 1


@pytest.mark.usefixtures("unchecked")
def test_options_of_another_type(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^min_frames must be a whole number, got 'x'$"):
        UnifiedDataset(tmp_path, min_frames="x")
    for categories in ("apple", 3):
        with pytest.raises(ValueError, match=rf"^categories must be a list of names, got {categories!r}$"):
            Co3dDataset(tmp_path, tmp_path, categories=categories)
