from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import geomtx
from geomtx.report.layout import view_color
from geomtx.report.tracks import draw_track_frames, draw_track_sheet
from geomtx.types import Predictions, Tracks

GREY = 128


@pytest.fixture
def scene() -> geomtx.Scene:
    """Four grey frames of 240 x 160 pixels; a point that moves to the right, one that is hidden, one that leaves."""
    views = geomtx.Views.from_images(torch.full((4, 3, 160, 240), GREY / 255), patch_size=16)
    x = torch.tensor([[50.0, 60, 150], [80, 60, 200], [110, 60, 230], [140, 60, 300]])
    y = torch.tensor([40.0, 80, 120]).expand(4, 3)
    visibility = torch.tensor([[1.0, 0, 1]] * 4)
    return geomtx.Scene(
        names=views.names,
        transforms=views.transforms,
        images=(views.images * 255).round().to(torch.uint8),
        masks=views.masks,
        predictions=Predictions(tracks=Tracks(torch.stack([x, y], -1), visibility, visibility)),
        query_points=torch.tensor([[0.0, 50, 40], [1, 60, 80], [0, 150, 120]]),
        times=(0.0, 0.1, 0.2, 0.3),
    )


def color_of(track: int) -> np.ndarray:
    return np.array([round(255 * part) for part in view_color(track, 3)])


def is_grey(pixel: np.ndarray) -> bool:
    return bool(np.abs(pixel.astype(int) - GREY).max() <= 2)


def test_points_are_discs_where_they_are_seen_and_rings_where_they_are_hidden(scene: geomtx.Scene):
    frames = [np.asarray(frame) for frame in draw_track_frames(scene, tail=2)]
    assert [frame.shape for frame in frames] == [(320, 480, 3)] * 4, "small frames are enlarged"
    last = frames[3]
    assert np.abs(last[81, 281] - color_of(0)).max() <= 3, "the pixel 140, 40 of the frame, twice as large"
    still = np.asarray(list(draw_track_frames(scene, tail=0))[3])
    assert is_grey(still[161, 121]), "a ring is empty"
    assert min(np.abs(pixel - color_of(1)).max() for pixel in still[161, 121:132].astype(int)) <= 20
    assert np.abs(still[220:262, 400:].astype(int) - GREY).max() <= 2, "a point that has left is not drawn"


def test_the_tail_shows_where_a_point_was_a_while_ago(scene: geomtx.Scene):
    last = np.asarray(list(draw_track_frames(scene, tail=2))[3])
    assert not is_grey(last[81, 191])  # between frames 1 and 2
    assert is_grey(last[81, 131])  # between frames 0 and 1
    older, newer = (np.abs(last[81, x].astype(int) - GREY).max() for x in (191, 251))
    assert older < newer


def test_frames_have_one_size_with_even_sides(scene: geomtx.Scene):
    odd = dataclasses.replace(
        scene,
        transforms=tuple(
            geomtx.views.ViewTransform((77, 2001 - 100 * view), (160, 240), (0.1, 0.1)) for view in range(4)
        ),
    )
    sizes = {frame.size for frame in draw_track_frames(odd, tail=1)}
    assert len(sizes) == 1
    ((width, height),) = sizes
    assert width == 1280
    assert height % 2 == 0


def test_a_sheet_has_all_photos_and_squares_at_the_queries(scene: geomtx.Scene):
    sheet = draw_track_sheet(scene)
    pixels = np.asarray(sheet)
    grey = (np.abs(pixels.astype(int) - GREY).max(-1) <= 2).sum()
    assert 0.8 < grey / (4 * 420 * 280) <= 1
    places = np.argwhere(np.abs(pixels.astype(int) - color_of(0)).max(-1) <= 6)
    assert len(places) > 100
    many = dataclasses.replace(
        scene,
        names=tuple(map(str, range(40))),
        transforms=scene.transforms * 10,
        images=scene.images.repeat(10, 1, 1, 1),
        masks=scene.masks.repeat(10, 1, 1),
        predictions=scene.predictions._replace(
            tracks=Tracks(*(part.repeat(10, *[1] * (part.ndim - 1)) for part in scene.predictions.tracks or ()))
        ),
        times=(),
    )
    assert max(draw_track_sheet(many).size) < 2500


def test_no_tracks_no_picture(scene: geomtx.Scene):
    without = dataclasses.replace(scene, predictions=Predictions())
    with pytest.raises(ValueError, match="scene must have tracks"):
        draw_track_sheet(without)
