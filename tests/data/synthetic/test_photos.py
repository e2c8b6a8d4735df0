from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from geomtx.data.synthetic.photos import save_photos, truth_in_views
from geomtx.data.synthetic.render import render_scenes
from geomtx.geometry import project, unproject
from geomtx.types import Cameras, SceneBatch
from geomtx.views import Views, load_views

HW = (60, 90)


@pytest.fixture(scope="module")
def truth() -> SceneBatch:
    return render_scenes([5], 3, HW, num_tracks=8, dtype=torch.float64)


def load(truth: SceneBatch, folder: Path, **options: object) -> Views:
    save_photos(truth.images[0], folder)
    return load_views(folder, **options)  # type: ignore[arg-type]


def test_photos_keep_their_pixels(tmp_path: Path) -> None:
    images = torch.rand(11, 3, 5, 7) * 1.2 - 0.1
    paths = save_photos(images, tmp_path / "new" / "photos")
    assert [path.name for path in paths] == [f"view_{n}.png" for n in range(11)]
    assert len(load_views(tmp_path / "new" / "photos", size=14)) == 11
    for path, image in zip(paths, images, strict=True):
        pixels = torch.from_numpy(np.array(Image.open(path))).movedim(-1, 0)
        assert torch.equal(pixels, (image.clamp(0, 1) * 255).round().byte())


def test_views_as_large_as_the_photos_have_the_truth_itself(truth: SceneBatch, tmp_path: Path) -> None:
    views = load(truth, tmp_path, size=90, patch_size=30)
    told = truth_in_views(truth, views)
    for name in ("depth", "mask"):
        assert torch.equal(getattr(told, name), getattr(truth, name))
    assert told.cameras is not None
    assert truth.cameras is not None
    torch.testing.assert_close(told.cameras.intrinsics, truth.cameras.intrinsics)
    assert told.tracks is not None
    assert truth.tracks is not None
    assert torch.equal(told.tracks.visible, truth.tracks.visible)
    assert torch.equal(told.images[0], views.images)


@pytest.mark.parametrize("factor", [3, 5])
def test_smaller_images_by_an_odd_factor_are_exact(truth: SceneBatch, tmp_path: Path, factor: int) -> None:
    """Their pixels are rays of the photo, so that depth and cameras give points that the photo gives too."""
    views = load(truth, tmp_path, size=90 // factor, patch_size=2)
    told = truth_in_views(truth, views)
    assert told.cameras is not None
    assert told.depth is not None
    points = unproject(told.depth, told.cameras.intrinsics, told.cameras.cam_from_world)
    assert truth.points is not None
    start = factor // 2
    torch.testing.assert_close(points, truth.points[:, :, start::factor, start::factor])


@pytest.mark.parametrize("mode", ["fit", "crop", "pad", "square"])
def test_tracks_lie_on_what_they_follow(truth: SceneBatch, tmp_path: Path, mode: str) -> None:
    """In any view and mode, cameras project the point that a track starts on to where the track is."""
    views = load(truth, tmp_path, mode=mode, size=42)
    told = truth_in_views(truth, views)
    assert told.tracks is not None
    assert told.cameras is not None
    assert truth.tracks is not None
    assert truth.cameras is not None
    pose, k = truth.cameras
    depth = torch.rand(1, 3, 8, dtype=torch.float64) + 1
    xy1 = torch.cat([truth.tracks.coords_px, torch.ones_like(depth)[..., None]], dim=-1)
    in_camera = depth[..., None] * torch.einsum("bsij,bsnj->bsni", k.inverse(), xy1)
    world = torch.einsum("bsji,bsnj->bsni", pose[..., :3], in_camera - pose[:, :, None, :, 3])
    coords, _ = project(world, told.cameras.intrinsics, told.cameras.cam_from_world)
    torch.testing.assert_close(coords, told.tracks.coords_px)
    assert (told.tracks.visible <= truth.tracks.visible).all()


def test_what_the_model_does_not_see_is_not_known(truth: SceneBatch, tmp_path: Path) -> None:
    views = load(truth, tmp_path, mode="pad", size=42)
    mask = torch.ones(1, 3, *HW, dtype=torch.bool)
    mask[0, 1] = False
    told = truth_in_views(truth._replace(mask=mask), views)
    assert told.mask is not None
    assert not views.masks.all()
    assert torch.equal(told.mask[0, 0], views.masks[0])
    assert not told.mask[0, 1].any()


def test_what_is_not_known_stays_none(truth: SceneBatch, tmp_path: Path) -> None:
    views = load(truth, tmp_path, size=42)
    told = truth_in_views(SceneBatch(truth.images), views)
    assert told.cameras is told.depth is told.points is told.tracks is told.camera_mask is None
    known = torch.tensor([[True, False, True]])
    assert truth_in_views(truth._replace(camera_mask=known), views).camera_mask is not None


def test_a_track_that_was_cropped_away_is_not_visible(truth: SceneBatch, tmp_path: Path) -> None:
    tall = render_scenes([5], 2, (90, 42), num_tracks=64)
    views = load(tall, tmp_path, mode="crop", size=42)
    told = truth_in_views(tall, views)
    assert told.tracks is not None
    rows = told.tracks.coords_px[0, 0, :, 1]
    assert torch.equal(told.tracks.visible[0, 0], (rows >= -0.5) & (rows <= 41.5))
    assert 0 < told.tracks.visible[0, 0].sum() < 64


def test_other_photos_are_refused(truth: SceneBatch, tmp_path: Path) -> None:
    views = load(truth, tmp_path, size=42)
    two = SceneBatch(*(None if part is None else part for part in truth))._replace(images=truth.images[:, :2])
    with pytest.raises(ValueError, match=r"truth.images must have shape \(1, 3, 3, 60, 90\), got \(1, 2, 3, 60, 90\)"):
        truth_in_views(two, views)
    with pytest.raises(ValueError, match=r"images must have shape \(S, 3, H, W\), got \(3, 4, 5\)"):
        save_photos(torch.zeros(3, 4, 5), tmp_path)


def test_cameras_are_those_of_the_truth(truth: SceneBatch, tmp_path: Path) -> None:
    told = truth_in_views(truth, load(truth, tmp_path, size=42))
    assert isinstance(told.cameras, Cameras)
    assert truth.cameras is not None
    assert torch.equal(told.cameras.cam_from_world, truth.cameras.cam_from_world)
