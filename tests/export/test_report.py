from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import geomtx
from geomtx.export import draw_report
from geomtx.export.canvas import WARNING, count, format_value, round_length
from geomtx.export.colormap import color_table, colorize
from geomtx.export.plan import camera_centers, frustum_corners
from geomtx.geometry import project
from geomtx.types import Cameras, DenseMap, Predictions
from scene.known_scene import known_scene


def test_a_report_shows_photos_maps_and_panels(scene: geomtx.Scene) -> None:
    image = draw_report(scene, scene.points())
    assert image.width > 1000
    assert image.height > 800
    colors = np.unique(np.array(image).reshape(-1, 3), axis=0)
    assert len(colors) > 5000


def test_only_a_notice_is_shown_in_the_colour_of_warnings(scene: geomtx.Scene) -> None:
    for notice in ("", "careful"):
        pixels = np.array(draw_report(dataclasses.replace(scene, notice=notice)))
        assert ((pixels == WARNING).all(axis=-1).sum() > 10_000) == bool(notice)


@pytest.mark.parametrize(
    "kept", [(), ("cameras",), ("depth",), ("points",), ("cameras", "depth"), ("cameras", "points")]
)
def test_missing_heads(scene: geomtx.Scene, kept: tuple[str, ...]) -> None:
    predictions = Predictions(**{name: getattr(scene.predictions, name) for name in kept})
    partial = dataclasses.replace(scene, predictions=predictions)
    has_cloud = "points" in kept or kept == ("cameras", "depth")
    image = draw_report(partial, partial.points() if has_cloud else None)
    assert image.width >= 760


def test_many_views_are_represented_by_eight(tmp_path: Path) -> None:
    few, many = (draw_report(known_scene(tmp_path / str(n), n, heads=("camera", "depth"))) for n in (8, 11))
    assert few.size == many.size


def test_values_that_are_not_finite(scene: geomtx.Scene) -> None:
    assert scene.predictions.cameras is not None
    nothing = DenseMap(torch.full((4, 84, 112), torch.nan), torch.full((4, 84, 112), torch.nan))
    cameras = Cameras(scene.predictions.cameras.cam_from_world * torch.nan, scene.predictions.cameras.intrinsics)
    draw_report(dataclasses.replace(scene, predictions=Predictions(cameras=cameras, depth=nothing), query_points=None))


def test_frusta_project_to_the_image_corners(scene: geomtx.Scene) -> None:
    assert scene.cameras is not None
    poses, k = (part.double() for part in scene.cameras)
    corners = frustum_corners(poses.numpy(), k.numpy(), [(84, 112)] * 4, 0.3)
    pixels, depth = project(torch.from_numpy(corners), k, poses)
    torch.testing.assert_close(depth, torch.full_like(depth, 0.3))
    expected = torch.tensor([[-0.5, -0.5], [111.5, -0.5], [111.5, 83.5], [-0.5, 83.5]]).double()
    torch.testing.assert_close(pixels, expected.expand(4, -1, -1), atol=1e-4, rtol=0)
    centers = torch.from_numpy(camera_centers(poses.numpy()))
    at_camera = (poses[:, :, :3] @ centers[..., None])[..., 0] + poses[:, :, 3]
    torch.testing.assert_close(at_camera, torch.zeros_like(at_camera))


def test_colours() -> None:
    values = np.array([[0.0, 1.0, 2.0, 3.0, np.nan]])
    colors = colorize(values, (1.0, 2.0), "viridis")
    table = color_table("viridis")
    np.testing.assert_array_equal(colors[0, :4], table[[0, 0, 255, 255]])
    assert (colors[0, 4] == 236).all()
    assert table.astype(int).sum(axis=1)[0] < table.astype(int).sum(axis=1)[-1]


def test_numbers_on_pictures() -> None:
    assert [format_value(v) for v in (0, 2.0, 12.345, 123.4, 0.01234, 1e-5, 2e6, -3.0)] == [
        "0", "2.00", "12.3", "123", "0.0123", "1.00e-05", "2.00e+06", "-3.00",
    ]  # fmt: skip
    assert [round_length(v) for v in (1, 4.9, 0.7, 30, 0.05)] == [1, 2, 0.5, 20, 0.05]


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 points"), (1, "1 point"), (2, "2 points"), (12345, "12 345 points")]
)
def test_counts(number: int, text: str) -> None:
    assert count(number, "point") == text
