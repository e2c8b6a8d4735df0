"""Folders for trainers of splats, as their readers see them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import geomtx
from geomtx.cli import main
from geomtx.scene import ExportOptions
from scene.exact_scenes import KINDS, exact_scene, true_scene
from scene.files.trainer_readers import TrainingScene, read_3dgs, read_gsplat, read_nerfstudio


def save(scene: geomtx.Scene, folder: Path, *formats: str, **options: Any) -> Path:
    scene.save(folder, formats=formats, percentile=0, report=False, export=ExportOptions(**options))
    return folder


def check(found: TrainingScene, scene: geomtx.Scene, photos: Path, *, scale: float = 1) -> None:
    """The cameras are those of the scene, pictures the upright photos, and points lie on the surfaces."""
    assert scene.cameras is not None
    assert len(found.views) == len(scene)
    for view, pose, k, transform in zip(found.views, *scene.cameras, scene.transforms, strict=True):
        np.testing.assert_allclose(view.cam_from_world, pose, atol=1e-6)
        expected = k.double().numpy().copy()
        expected[:2, 2] += 0.5
        np.testing.assert_allclose(view.k, np.diag([scale, scale, 1]) @ expected, rtol=0.01 if scale != 1 else 1e-6)
        height, width = transform.original_hw
        assert view.picture.shape == (round(height * scale), round(width * scale), 3)
        if scale == 1:
            with Image.open(photos / f"{Path(view.name).stem}.jpg") as file:
                stored = np.asarray(file)
            upright = {1: stored, 3: stored[::-1, ::-1], 6: np.rot90(stored, -1), 8: np.rot90(stored)}
            gap = view.picture.astype(int) - upright[transform.exif_orientation]
            assert np.abs(gap).mean() < (0.5 if transform.exif_orientation == 1 else 6)  # written again as JPEG
    local = found.points @ scene.cameras.cam_from_world[0, :, :3].double().numpy().T
    world = torch.from_numpy(local)
    assert world.isfinite().all()
    residual = [np.abs(found.points @ n - d) for *n, d in ((0.0, 0, 1, 4), (0, 1, 0, 1.2), (1, 0, 0.3, 2.5))]
    assert np.median(np.min(residual, axis=0)) < 1e-4
    assert found.colors.max() <= 255


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "large"])
def test_readers_accept_the_folders(tmp_path: Path, kind: str) -> None:
    scene, photos = exact_scene(tmp_path / "photos", kind)
    out = save(scene, tmp_path / "out", "splat", "nerfstudio", image_factors=(2, 3), max_points=400)
    check(read_gsplat(out / "splat", 1), scene, photos)
    check(read_nerfstudio(out / "nerfstudio"), scene, photos)
    trained = read_3dgs(out / "splat")
    assert len(trained.points) == 400
    assert [view.picture.shape for view in trained.views] == [(*t.original_hw, 3) for t in scene.transforms]
    if kind != "mixed":  # where intrinsics are scaled by one factor for all
        check(read_gsplat(out / "splat", 2), scene, photos, scale=0.5)
        check(read_gsplat(out / "splat", 3), scene, photos, scale=1 / 3)


def test_upright_photos_are_copied_byte_by_byte(tmp_path: Path) -> None:
    scene, photos = exact_scene(tmp_path / "photos", "rotated")
    out = save(scene, tmp_path / "out", "splat", max_points=400)
    same = [(photos / name).read_bytes() == (out / "splat" / "images" / name).read_bytes() for name in scene.names]
    assert same == [False, False, False, True]
    assert all(not Image.open(out / "splat" / "images" / name).getexif() for name in scene.names[:3])


def test_normals_are_those_of_the_planes(tmp_path: Path) -> None:
    scene = exact_scene(tmp_path / "photos").scene
    out = save(scene, tmp_path / "out", "splat", max_points=400)
    head, body = (out / "splat" / "sparse" / "0" / "points3D.ply").read_bytes().split(b"end_header\n", 1)
    assert b"comment geomtx point cloud" in head
    values = np.frombuffer(body, np.dtype([("xyz", "<f4", 3), ("normal", "<f4", 3), ("rgb", "u1", 3)]))
    planes = [(np.array(n) / np.linalg.norm(n), d / np.linalg.norm(n)) for *n, d in ((0, 0, 1, 4), (0, 1, 0, 1.2))]
    for normal, distance in planes:
        on_plane = np.abs(values["xyz"] @ normal - distance) < 1e-4
        assert on_plane.any()
        assert np.median(np.abs(values["normal"][on_plane] + normal).max(axis=1)) < 0.01  # towards the cameras


def test_principal_points_beside_the_centre(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scene, photos = exact_scene(tmp_path / "photos")
    assert scene.predictions.cameras is not None
    intrinsics = scene.predictions.cameras.intrinsics.clone()
    intrinsics[1, 0, 2] += 5  # pixels of the model's images
    cameras = scene.predictions.cameras._replace(intrinsics=intrinsics)
    views = geomtx.load_views(photos, size=70)
    moved = dataclasses.replace(true_scene(views), predictions=scene.predictions._replace(cameras=cameras))
    out = save(moved, tmp_path / "out", "splat", max_points=400)
    (message,) = caplog.messages
    assert re.match(
        r"the principal point is more than a pixel beside the centre of 2 of 4 photos: 3D Gaussian Splatting, which "
        r"ignores it, will be off by up to 6\.\d pixels \('photo_1\.jpg'\)",
        message,
    )
    assert read_3dgs(out / "splat").views[1].picture.shape == (60, 90, 3)

    cropped = save(moved, tmp_path / "cropped", "splat", "colmap", max_points=400, crop=True)
    assert len(caplog.messages) == 1
    gsplat, trained = read_gsplat(cropped / "splat", 1), read_3dgs(cropped / "splat")
    assert gsplat.views[1].picture.shape == (60, 77, 3)
    assert (gsplat.views[1].k[0, 2], gsplat.views[0].k[0, 2]) == pytest.approx((38.6, 45.0), abs=0.2)
    whole = np.asarray(Image.open(photos / "photo_1.jpg"))[:, 90 - 77 :]
    assert np.abs(trained.views[1].picture.astype(int) - whole).mean() < 6
    for exact, taken in zip(gsplat.views, trained.views, strict=True):
        assert np.abs(exact.k - taken.k)[:2, 2].max() <= 0.75  # half a pixel, of the crop


def test_photos_of_other_kinds(tmp_path: Path) -> None:
    """Grey, 16-bit, lossless formats that trainers don't read, and views of no photo."""
    photos = tmp_path / "photos"
    photos.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8)
    Image.fromarray(noise).save(photos / "a.bmp")
    Image.fromarray(noise[..., 0]).save(photos / "b.png")
    Image.fromarray(noise.astype(np.uint16)[..., 0] * 257).save(photos / "c.png")
    Image.fromarray(noise).save(photos / "d.webp", lossless=True)
    scene = true_scene(geomtx.load_views(photos, size=70))
    found = read_gsplat(save(scene, tmp_path / "out", "splat", max_points=400) / "splat", 1)
    assert [view.name for view in found.views] == ["a.png", "b.png", "c.png", "d.jpg"]
    assert np.array_equal(found.views[0].picture, noise)
    assert np.array_equal(found.views[1].picture, noise[..., :1].repeat(3, axis=2))
    plain = true_scene(geomtx.Views.from_images(torch.rand(3, 3, 56, 70)))
    found = read_gsplat(save(plain, tmp_path / "plain", "splat", max_points=400) / "splat", 1)
    assert np.array_equal(found.views[2].picture, plain.images[2].movedim(0, -1).numpy())


def test_photos_that_are_not_there_or_others(tmp_path: Path) -> None:
    scene, photos = exact_scene(tmp_path / "photos")
    (photos / "photo_2.jpg").rename(photos / "moved.jpg")
    message = r"photos must be found to be copied, got none where they were for 1 of 4, the first '.*photo_2\.jpg'"
    with pytest.raises(ValueError, match=message):
        save(scene, tmp_path / "out", "splat")
    with pytest.raises(ValueError, match=r"got none in '.*elsewhere' for 4 of 4, the first '.*photo_0\.jpg'"):
        save(scene, tmp_path / "out", "nerfstudio", photos=tmp_path / "elsewhere")
    Image.new("RGB", (30, 20)).save(photos / "photo_2.jpg")
    with pytest.raises(ValueError, match=r"'.*photo_2\.jpg' must have the 90x60 pixels that it had when .* got 30x20"):
        save(scene, tmp_path / "out", "splat")
    assert not (tmp_path / "out").exists()


def test_two_photos_of_one_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for folder in ("left", "right"):
        (tmp_path / folder).mkdir()
        paths.append(str(tmp_path / folder / "a.png"))
        Image.new("RGB", (60, 40), "red" if folder == "left" else "blue").save(paths[-1])
    argv = ["reconstruct", *paths, "-o", str(tmp_path / "out"), "--preset", "tiny", "--formats", "splat"]
    assert main(argv) == 2
    message = (
        "photos must have different names without their folders to be copied into one, got 'left/a.png' and 'right/a"
    )
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
