from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import geomtx
from geomtx.scene import PixelFilter, observe_points
from geomtx.scene.filters import still_pixels, valid_pixels
from geomtx.scene.surfaces import find_surfaces


@pytest.fixture
def moving(scene: geomtx.Scene) -> geomtx.Scene:
    masks = torch.zeros_like(scene.masks)
    masks[1, 20:50, 30:70] = True
    return dataclasses.replace(scene, moving=masks)


def test_clouds_are_of_what_stands_still(scene: geomtx.Scene, moving: geomtx.Scene):
    wanted = valid_pixels(scene) & ~moving.moving
    assert torch.equal(valid_pixels(moving), wanted)
    assert len(moving.points(0).xyz) == int(wanted.sum()) < len(scene.points(0).xyz)
    assert torch.equal(valid_pixels(moving, PixelFilter(moving=True)), valid_pixels(scene))
    assert torch.equal(still_pixels(scene), scene.masks)
    everywhere = dataclasses.replace(scene, moving=torch.ones_like(scene.masks))
    with pytest.raises(ValueError, match=r"^no points: what moves leaves no pixel$"):
        everywhere.points()


def test_no_view_observes_a_point_where_something_moves(moving: geomtx.Scene):
    surfaces = find_surfaces(moving)
    assert torch.equal(torch.from_numpy(surfaces.inverse_depth).isnan() & moving.masks, moving.moving)
    points = observe_points(moving, max_points=None)
    x, y = points.coords_px[points.view == 1].round().long().T  # the model saw the photos as they are
    assert not moving.moving[1, y.clamp(0, 83), x.clamp(0, 111)].any()


def test_masks_are_kept_in_files(moving: geomtx.Scene, scene: geomtx.Scene, tmp_path: Path):
    moving.save(tmp_path, report=False)
    again = geomtx.Scene.load(tmp_path)
    assert torch.equal(again.moving, moving.moving)
    count = len(moving.points(20).xyz)
    assert f"element vertex {count}\n".encode() in (tmp_path / "points.ply").read_bytes()
    assert geomtx.Scene.load(scene.save(tmp_path / "still", formats=(), report=False)[0]).moving is None
    moving.rescale(2.0).save(tmp_path, report=False)
    assert torch.equal(geomtx.Scene.load(tmp_path).moving, moving.moving)
