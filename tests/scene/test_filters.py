from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import geomtx
from geomtx.scene import observe_points
from geomtx.scene.filters import PixelFilter, agreeing_pixels, filter_pixels, most_shared_view, sky_pixels, valid_pixels
from geomtx.types import DenseMap, Predictions


def with_depth(scene: geomtx.Scene, value: torch.Tensor, confidence: torch.Tensor | None = None) -> geomtx.Scene:
    confidence = scene.predictions.depth.confidence if confidence is None else confidence
    return dataclasses.replace(scene, predictions=scene.predictions._replace(depth=DenseMap(value, confidence)))


def test_clouds_have_no_points_between_two_surfaces(scene: geomtx.Scene, tmp_path: Path) -> None:
    depth = scene.predictions.depth.value.clone()
    depth[1, :, 50] = torch.maximum(depth[1, :, 49], depth[1, :, 53]) + 1
    depth[1, :, 51:53] = torch.tensor([2.0, 3.0]) + depth[1, :, 50:51]
    depth[1, :, 53:] += 12
    flying = with_depth(scene, depth)
    cloud, everything = flying.points(0), flying.points(0, which=PixelFilter(edges=False))
    assert len(everything.xyz) == depth.numel()
    assert 84 * 2 <= len(everything.xyz) - len(cloud.xyz) <= 84 * 4
    assert (everything.view[: len(cloud.xyz)] == cloud.view).float().mean() > 0.9
    assert not valid_pixels(flying)[1, 20:60, 51:53].any()
    assert valid_pixels(flying)[[0, 2, 3]].all()
    flying.save(tmp_path, percentile=0, report=False, which=PixelFilter(edges=False))
    assert f"element vertex {len(everything.xyz)}\n".encode() in (tmp_path / "points.ply").read_bytes()
    merged, of_all = (
        observe_points(flying, percentile=0, max_points=None, which=each) for each in (None, PixelFilter(edges=False))
    )
    assert len(merged.view) < len(of_all.view)
    narrowed = filter_pixels(flying)
    assert torch.equal(narrowed.masks, valid_pixels(flying))
    assert torch.equal(narrowed.points(0).xyz, cloud.xyz)


def test_confidence_by_value(scene: geomtx.Scene) -> None:
    confidence = scene.predictions.depth.confidence
    value = float(confidence.quantile(0.5))
    cloud = scene.points(0, which=PixelFilter(min_confidence=value))
    assert len(cloud.xyz) == (confidence >= value).sum()
    assert len(scene.points(50, which=PixelFilter(min_confidence=value)).xyz) < len(cloud.xyz)
    with pytest.raises(ValueError, match=r"no points: the smallest confidence, 99, of at most .*, leaves no pixel"):
        scene.points(0, which=PixelFilter(min_confidence=99))


def test_points_stay_only_where_the_views_that_should_see_them_agree(scene: geomtx.Scene) -> None:
    """On true depth nearly all do; a patch that floats in front of a wall is looked through by the other views."""
    agreeing = agreeing_pixels(scene, scene.masks, 0.5)
    assert agreeing.float().mean() > 0.98
    depth = scene.predictions.depth.value.clone()
    depth[0, 30:50, 40:60] *= 0.6
    floating = with_depth(scene, depth)
    valid = valid_pixels(floating, PixelFilter(edges=False, agreement=0.5))
    patch = torch.zeros_like(valid)
    patch[0, 32:48, 42:58] = True
    assert valid[patch].float().mean() < 0.1
    assert valid[1:].float().mean() > 0.98
    # What no other view should see stays: there is nobody to ask.
    alone = dataclasses.replace(
        scene, names=scene.names[:1], transforms=scene.transforms[:1], images=scene.images[:1], masks=scene.masks[:1],
        predictions=scene.predictions.map(lambda each: each[:1]), paths=(), query_points=None,
    )  # fmt: skip
    assert agreeing_pixels(alone, alone.masks, 1.0).all()
    with pytest.raises(ValueError, match="agreement must be in 0 … 1, got 3"):
        scene.points(which=PixelFilter(agreement=3))
    points_only = dataclasses.replace(scene, predictions=Predictions(points=scene.predictions.points))
    with pytest.raises(ValueError, match="scene must have depth and cameras to compare views"):
        points_only.points(which=PixelFilter(agreement=0.5))
    assert len(points_only.points(0).xyz) == scene.masks.sum()


def test_the_view_that_shares_most(scene: geomtx.Scene) -> None:
    """A view that looks elsewhere, or of which most is masked, shares least; copies of one view share most."""
    cameras = scene.predictions.cameras
    poses = cameras.cam_from_world.clone()
    poses[0, :, 3] += 100
    away = dataclasses.replace(
        scene, predictions=scene.predictions._replace(cameras=cameras._replace(cam_from_world=poses))
    )
    assert most_shared_view(away) != 0
    chosen = torch.tensor([3, 1, 1, 0])
    pair = Predictions(cameras=cameras, depth=scene.predictions.depth)
    copies = dataclasses.replace(scene, predictions=pair.map(lambda each: each[chosen]))
    assert most_shared_view(copies) in (1, 2)


def outdoors(scene: geomtx.Scene) -> geomtx.Scene:
    """A blue sky in the upper third of view 0, far and unsure; a white, near wall in view 1; a blue car in view 2."""
    images = torch.randint(0, 120, scene.images.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[0, :, :30] = torch.tensor([120, 170, 235], dtype=torch.uint8)[:, None, None]
    images[1, :, :30] = 240
    images[2, :, 40:60, 40:60] = torch.tensor([120, 170, 235], dtype=torch.uint8)[:, None, None]
    depth, confidence = (
        torch.full_like(scene.predictions.depth.value, 2),
        torch.full_like(scene.images[:, 0].float(), 9),
    )
    depth[0, :30], confidence[0, :30] = 50, 1.5
    depth[1, :30] = 1
    return with_depth(dataclasses.replace(scene, images=images), depth, confidence)


def test_sky_is_smooth_bright_far_unsure_and_joined_to_the_upper_border(scene: geomtx.Scene) -> None:
    outside = outdoors(scene)
    sky = sky_pixels(outside)
    assert sky[0, :29].all()
    assert not sky[0, 31:].any()
    assert not sky[1:].any()
    assert not valid_pixels(outside, PixelFilter(sky=False))[0, :29].any()
    assert valid_pixels(outside, PixelFilter(edges=False)).all()
    padded = dataclasses.replace(outside, masks=outside.masks.clone())
    padded.masks[0, :10] = False
    assert sky_pixels(padded)[0, 10:29].all()
    assert not sky_pixels(padded)[0, :10].any()
    with pytest.raises(ValueError, match="scene must have depth to find sky"):
        sky_pixels(dataclasses.replace(scene, predictions=Predictions(cameras=scene.predictions.cameras)))


def test_sky_is_found_around_corners(scene: geomtx.Scene) -> None:
    outside = outdoors(scene)
    outside.images[0, :, 10:20, 20:90] = 10  # a roof below which there is sky too
    sky = sky_pixels(outside)
    assert sky[0, 22:28, 30:80].all()
    assert not sky[0, 11:19, 21:89].any()
