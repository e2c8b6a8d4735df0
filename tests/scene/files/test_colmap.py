"""Models of COLMAP that geomtx writes, as pycolmap reads them and byte by byte."""

from __future__ import annotations

import dataclasses
import filecmp
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import geomtx
from geomtx.geometry import quat_to_matrix
from geomtx.scene import ExportOptions
from geomtx.scene.files.colmap_model import read_colmap_model
from geomtx.types import DenseMap
from scene.exact_scenes import KINDS, exact_scene

FOLDERS = {"colmap": ".bin", "colmap-text": ".txt"}


@pytest.fixture(scope="module")
def pycolmap() -> ModuleType:
    return pytest.importorskip("pycolmap", reason="needs the extra colmap")


def save(scene: geomtx.Scene, folder: Path, formats: str, **options: Any) -> Path:
    """Save one format and nothing that takes time; returns the folder of the model."""
    scene.save(folder, formats=[formats], percentile=0, report=False, overwrite=True, export=ExportOptions(**options))
    return folder / formats / "sparse" / "0"


@pytest.mark.parametrize("num_files", [5, 3])
@pytest.mark.parametrize("formats", FOLDERS)
@pytest.mark.parametrize("kind", KINDS)
def test_points_reproject_to_their_observations(
    pycolmap: ModuleType, tmp_path: Path, kind: str, formats: str, num_files: int
) -> None:
    scene = exact_scene(tmp_path / "photos", kind).scene
    masks = torch.zeros_like(scene.masks)
    masks[:, 20:30] = scene.masks[:, 20:30]  # few enough points that all are kept, with those of one view
    scene = dataclasses.replace(scene, masks=masks)
    place = save(scene, tmp_path / "out", formats, colmap_files=num_files)
    assert len(list(place.iterdir())) == num_files
    model = pycolmap.Reconstruction(str(place))
    assert model.is_valid()
    assert {image.name for image in model.images.values()} == set(scene.names)
    sizes = {name: each.original_hw for name, each in zip(scene.names, scene.transforms, strict=True)}
    single, merged = [], []
    for image in model.images.values():
        camera = model.cameras[image.camera_id]
        assert (camera.height, camera.width) == sizes[image.name]
        assert camera.model.name == "PINHOLE"
        for keypoint in image.points2D:
            point = model.points3D[keypoint.point3D_id]
            miss = np.linalg.norm(image.project_point(point.xyz) - keypoint.xy)
            (single if point.track.length() == 1 else merged).append(miss)
    assert max(single) < 0.01
    assert np.median(merged) < 0.5
    assert len(merged) > len(single)
    errors = {number: point.error for number, point in model.points3D.items()}
    model.update_point_3d_errors()
    assert all(abs(point.error - errors[number]) < 1e-4 for number, point in model.points3D.items())


@pytest.mark.parametrize("formats", FOLDERS)
def test_tracks_and_key_points_mirror_each_other(pycolmap: ModuleType, tmp_path: Path, formats: str) -> None:
    scene = exact_scene(tmp_path / "photos").scene
    model = pycolmap.Reconstruction(str(save(scene, tmp_path / "out", formats, max_points=800)))
    tracks = {
        (element.image_id, element.point2D_idx, number)
        for number, point in model.points3D.items()
        for element in point.track.elements
    }
    keypoints = {
        (number, index, keypoint.point3D_id)
        for number, image in model.images.items()
        for index, keypoint in enumerate(image.points2D)
    }
    assert tracks == keypoints
    assert len(tracks) == sum(point.track.length() for point in model.points3D.values())
    for point in model.points3D.values():
        seen = [element.image_id for element in point.track.elements]
        assert len(seen) == len(set(seen)) > 0
        assert np.isfinite(point.xyz).all()
    assert len(model.points3D) == 800


@pytest.mark.parametrize("num_files", [5, 3])
def test_pycolmap_writes_the_same_bytes(pycolmap: ModuleType, tmp_path: Path, num_files: int) -> None:
    scene = exact_scene(tmp_path / "photos", "mixed").scene
    place = save(scene, tmp_path / "out", "colmap", colmap_files=num_files, max_points=500)
    (tmp_path / "again").mkdir()
    pycolmap.Reconstruction(str(place)).write(str(tmp_path / "again"))
    names = sorted(path.name for path in place.iterdir())
    assert filecmp.cmpfiles(place, tmp_path / "again", names, shallow=False) == (names, [], [])


def test_text_and_binary_are_one_model_and_ours_is_read_again(tmp_path: Path) -> None:
    scene = exact_scene(tmp_path / "photos", "rotated").scene
    models = [read_colmap_model(save(scene, tmp_path / name, name, max_points=300)) for name in FOLDERS]
    for one, two in zip(*(model.images for model in models), strict=True):
        assert (one.name, one.camera) == (two.name, two.camera)
        for field in ("quat_xyzw", "translation", "keypoints_px", "points"):
            assert np.array_equal(getattr(one, field), getattr(two, field)), field
    assert models[0].cameras == models[1].cameras
    assert np.array_equal(models[0].points, models[1].points)
    assert scene.cameras is not None
    for index, image in enumerate(models[0].images):
        expected = scene.cameras.cam_from_world[index].double()
        torch.testing.assert_close(
            quat_to_matrix(torch.from_numpy(image.quat_xyzw)), expected[:, :3], atol=1e-6, rtol=0
        )
        np.testing.assert_allclose(image.translation, expected[:, 3])


@pytest.mark.parametrize("formats", FOLDERS)
def test_one_camera_for_all(pycolmap: ModuleType, tmp_path: Path, formats: str) -> None:
    scene = exact_scene(tmp_path / "photos").scene
    model = pycolmap.Reconstruction(str(save(scene, tmp_path / "out", formats, shared_camera=True, max_points=300)))
    (camera,) = model.cameras.values()
    assert scene.cameras is not None
    k = scene.cameras.intrinsics.double().mean(0)
    expected = [k[0, 0], k[1, 1], k[0, 2] + 0.5, k[1, 2] + 0.5]
    np.testing.assert_allclose(camera.params, expected, rtol=1e-5)
    misses = [
        np.linalg.norm(image.project_point(model.points3D[keypoint.point3D_id].xyz) - keypoint.xy)
        for image in model.images.values()
        for keypoint in image.points2D
        if model.points3D[keypoint.point3D_id].track.length() == 1
    ]
    assert all(miss < 0.01 for miss in misses)


def test_a_view_of_few_points_is_left_out(
    pycolmap: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scene = exact_scene(tmp_path / "photos").scene
    masks = scene.masks.clone()
    masks[2] = False
    masks[2, 10, 10:19] = True  # nine pixels
    few = dataclasses.replace(scene, masks=masks)
    model = pycolmap.Reconstruction(str(save(few, tmp_path / "out", "colmap")))
    assert sorted(image.name for image in model.images.values()) == ["photo_0.jpg", "photo_1.jpg", "photo_3.jpg"]
    assert [len(image.points2D) >= 10 for image in model.images.values()] == [True] * 3
    assert caplog.messages == ["left out, as they see fewer than 10 points: photo_2.jpg"]
    assert len(geomtx.Scene.load(tmp_path / "out")) == 4
    few.save(tmp_path / "both", formats=["splat", "nerfstudio"], percentile=0, report=False)
    copies = [sorted(path.name[6] for path in (tmp_path / "both" / name / "images").iterdir()) for name in (
        "splat", "nerfstudio")]  # fmt: skip
    assert copies == [["0", "1", "3"], ["0", "1", "2", "3"]]
    masks[:] = False
    masks[:, 10, 10:19] = True
    with pytest.raises(ValueError, match="no view sees 10 points or more, so that there is no sparse model to write"):
        save(dataclasses.replace(scene, masks=masks), tmp_path / "none", "colmap")
    assert not (tmp_path / "none").exists()


def test_names_of_photos(pycolmap: ModuleType, tmp_path: Path) -> None:
    scene = dataclasses.replace(
        exact_scene(tmp_path / "photos").scene, names=("a b.jpg", "Straße/ü.jpg", "c.jpg", "d.jpg"), paths=()
    )
    model = pycolmap.Reconstruction(str(save(scene, tmp_path / "out", "colmap", max_points=200)))
    assert {image.name for image in model.images.values()} == set(scene.names)
    with pytest.raises(
        ValueError, match=r"names of photos must have no spaces in text files of COLMAP, got 'a b\.jpg'"
    ):
        save(scene, tmp_path / "text", "colmap-text")
    assert not (tmp_path / "text").exists()
    named = dataclasses.replace(scene, names=("a.jpg", "Straße/ü.jpg", "c.jpg", "d.jpg"))
    model = pycolmap.Reconstruction(str(save(named, tmp_path / "out", "colmap-text", max_points=200)))
    assert {image.name for image in model.images.values()} == set(named.names)


def test_what_a_camera_of_colmap_cannot_hold(tmp_path: Path) -> None:
    scene = exact_scene(tmp_path / "photos").scene
    assert scene.predictions.cameras is not None
    intrinsics = scene.predictions.cameras.intrinsics.clone()
    intrinsics[1, 0, 1] = 1.0
    cameras = scene.predictions.cameras._replace(intrinsics=intrinsics)
    skewed = dataclasses.replace(scene, predictions=scene.predictions._replace(cameras=cameras))
    with pytest.raises(ValueError, match=r"intrinsics must have no skew for COLMAP's cameras, got 0\.\d+ of the focal"):
        save(skewed, tmp_path / "out", "colmap")
    with pytest.raises(ValueError, match="photos must have one size to share a camera, got 64x60 and 90x60"):
        save(exact_scene(tmp_path / "more", "mixed").scene, tmp_path / "out", "colmap", shared_camera=True)


def test_noise_stays_in_the_residuals(tmp_path: Path) -> None:
    """The error of a merged point is that of its observations, which are measured, not projected."""
    scene = exact_scene(tmp_path / "photos").scene
    depth = scene.predictions.depth
    assert depth is not None
    generator = torch.Generator().manual_seed(0)
    noisy = depth.value * (1 + 0.003 * torch.randn(depth.value.shape, generator=generator))
    scene = dataclasses.replace(scene, predictions=scene.predictions._replace(depth=DenseMap(noisy, depth.confidence)))
    model = read_colmap_model(save(scene, tmp_path / "out", "colmap"))
    assert scene.cameras is not None
    misses = []
    for index, image in enumerate(model.images):
        pose, k = scene.cameras.cam_from_world[index].double(), scene.cameras.intrinsics[index].double()
        local = torch.from_numpy(model.points[image.points]) @ pose[:, :3].T + pose[:, 3]
        pixels = (local / local[:, 2:]) @ k.T
        misses.append((pixels[:, :2] + 0.5 - torch.from_numpy(image.keypoints_px)).norm(dim=-1))
    assert torch.cat(misses).quantile(0.9) > 0.01


def test_the_same_bytes_with_any_number_of_threads(tmp_path: Path) -> None:
    scene, before = exact_scene(tmp_path / "photos").scene, torch.get_num_threads()
    places = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        places += [save(scene, tmp_path / f"{name}_{threads}", name) for name in FOLDERS]
    torch.set_num_threads(before)
    for one, two in zip(places[:2], places[2:], strict=True):
        names = sorted(path.name for path in one.iterdir())
        assert filecmp.cmpfiles(one, two, names, shallow=False) == (names, [], [])
