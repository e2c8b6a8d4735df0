from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

import geomtx
from geometry.random_cameras import random_rigid
from geomtx.geometry import compose_rigid, invert_rigid
from geomtx.scene.align import align_scene
from geomtx.types import Predictions


def moved(scene: geomtx.Scene, world_from_new: Tensor, factor: float) -> geomtx.Scene:
    """The same scene told in another frame and unit."""
    cameras, _, depth, points, tracks, *_ = scene.rescale(factor, units="feet").predictions
    assert cameras is not None
    assert points is not None
    scaled = torch.cat([world_from_new[:, :3], factor * world_from_new[:, 3:]], dim=-1).float()
    inverse = invert_rigid(scaled)
    told = Predictions(
        cameras=cameras._replace(cam_from_world=compose_rigid(cameras.cam_from_world, scaled)),
        depth=depth,
        points=points._replace(value=points.value @ inverse[:, :3].mT + inverse[:, 3]),
        tracks=tracks,
    )
    return dataclasses.replace(scene, predictions=told, units="feet")


def strip(scene: geomtx.Scene, *kept: str) -> geomtx.Scene:
    return dataclasses.replace(
        scene, predictions=Predictions(**{name: getattr(scene.predictions, name) for name in kept})
    )


@pytest.mark.parametrize("kept", [("cameras", "depth", "points"), ("cameras",), ("points",), ("cameras", "depth")])
def test_a_scene_comes_back_from_any_frame(scene: geomtx.Scene, kept: tuple[str, ...]) -> None:
    other = strip(moved(scene, random_rigid(1)[0], 3.7), *kept)
    aligned = align_scene(other, scene)
    assert aligned.units == scene.units
    for name in kept:
        for got, want in zip(getattr(aligned.predictions, name), getattr(scene.predictions, name), strict=True):
            torch.testing.assert_close(got, want, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("centers", ["one view", "one place", "two views", "on a line"])
def test_cameras_alone_say_how_a_scene_is_turned(
    scene: geomtx.Scene, centers: str, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The rotations say it where the centres do not."""
    num_views = {"one view": 1, "two views": 2}.get(centers, 4)
    torch.manual_seed(seed)
    along = torch.zeros(4) if centers == "one place" else torch.arange(4.0)
    poses = random_rigid(4).float()
    world_from_cam = torch.cat([poses[:, :, :3], (torch.tensor([1.0, 2.0, 3.0]) * (1 + along[:, None]))[..., None]], -1)
    cameras = scene.predictions.cameras._replace(cam_from_world=invert_rigid(world_from_cam))
    target = dataclasses.replace(scene, predictions=scene.predictions._replace(cameras=cameras))
    target = _first_views(strip(target, "cameras", "points"), num_views)
    other = strip(moved(target, random_rigid(1)[0], 2.5), "cameras")
    aligned = align_scene(other, strip(target, "cameras"))
    torch.testing.assert_close(
        aligned.predictions.cameras.cam_from_world, target.predictions.cameras.cam_from_world, atol=1e-4, rtol=1e-4
    )
    assert ("give no scale" in caplog.text) is (centers in ("one view", "one place"))


def _first_views(scene: geomtx.Scene, count: int) -> geomtx.Scene:
    return dataclasses.replace(
        scene, names=scene.names[:count], transforms=scene.transforms[:count], images=scene.images[:count],
        masks=scene.masks[:count], predictions=scene.predictions.map(lambda each: each[:count]), paths=(),
    )  # fmt: skip


def test_it_does_not_change_what_pixels_show(scene: geomtx.Scene) -> None:
    """However bad the fit: depth and cameras move together with the point map."""
    torch.manual_seed(0)
    noise = torch.rand_like(scene.predictions.depth.value) + 0.5
    bad = scene.predictions._replace(depth=scene.predictions.depth._replace(value=3 * noise))
    bad_scene = dataclasses.replace(scene, predictions=bad)
    bad_scene = dataclasses.replace(bad_scene, predictions=bad._replace(points=bad_scene.point_map()))
    aligned = align_scene(bad_scene, scene)
    torch.testing.assert_close(aligned.point_map().value, aligned.predictions.points.value, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(aligned.point_map().value, bad_scene.point_map().value, atol=1e-2)


def test_pixels_that_are_masked_or_not_finite_count_for_nothing(scene: geomtx.Scene) -> None:
    other = strip(moved(scene, random_rigid(1)[0], 0.3), "points")
    other.predictions.points.value[0, :5] = torch.nan
    other.predictions.points.value[1, :5] = 1e6
    masks = other.masks.clone()
    masks[1, :5] = False
    aligned = align_scene(dataclasses.replace(other, masks=masks), scene)
    want = scene.predictions.points.value
    torch.testing.assert_close(aligned.predictions.points.value[2:], want[2:], atol=2e-4, rtol=2e-4)


def test_what_has_no_frame_in_common_is_refused(scene: geomtx.Scene) -> None:
    with pytest.raises(ValueError, match=r"scene must have points or cameras, as the target has, .* got neither"):
        align_scene(strip(scene, "tracks"), scene)
    smaller = dataclasses.replace(scene, masks=scene.masks[:, :70], images=scene.images[:, :, :70])
    with pytest.raises(ValueError, match=r"scene.masks must have shape \(4, 84, 112\), got \(4, 70, 112\)"):
        align_scene(smaller, scene)
