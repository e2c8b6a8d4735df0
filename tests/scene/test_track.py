"""Points through views, with a head of a VGGT and with a VideoTracker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import geomtx
from geomtx.models.video_tracker.run import check_video, video_features
from geomtx.scene import track

QUERIES = [(0, 50.0, 30.0), (3, 10.0, 40.0), (4, 90.5, 20.25)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five frames of 112 x 56 pixels."""
    folder: Path = tmp_path_factory.mktemp("frames")
    pictures = np.random.default_rng(0).integers(0, 256, (5, 56, 112, 3)).astype(np.uint8)
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def views(folder: Path) -> geomtx.Views:
    """The frames at half their size."""
    return geomtx.load_views(folder, size=56)


def tracker(**changes: object) -> geomtx.VideoTracker:
    torch.manual_seed(0)
    return geomtx.VideoTracker(geomtx.VideoTrackerConfig.tiny(**changes)).eval()


@pytest.mark.parametrize("features", ["vggt", "images"])
def test_a_video_tracker_gives_its_tracks_in_original_pixels(folder: Path, features: str):
    model = tracker(features=features)
    views = replace(geomtx.load_views(folder, size=56, model=model), times=(0.0, 0.1, 0.2, 0.4, 0.5))
    assert views.patch_size == model.config.patch_size
    scene = track(model, views, QUERIES, support_grid=2)
    queries = torch.tensor(QUERIES)
    queries[:, 1:] = (queries[:, 1:] + 0.5) / 2 - 0.5
    with torch.inference_mode():
        wanted = model(views.images, queries, support_grid=2).tracks
    assert scene.tracks is not None
    torch.testing.assert_close(scene.tracks.coords_px, (wanted.coords_px[0] + 0.5) * 2 - 0.5, atol=1e-2, rtol=0)
    torch.testing.assert_close(scene.tracks.visibility, wanted.visibility[0], atol=1e-4, rtol=0)
    assert (scene.names, scene.times, scene.paths) == (views.names, views.times, views.paths)
    assert scene.cameras is scene.depth is None
    for number, (view, *place) in enumerate(QUERIES):
        assert scene.tracks.coords_px[view, number].tolist() == pytest.approx(place, abs=1e-4)


@pytest.mark.parametrize("encoder_frames", [0, 3])
def test_features_of_some_frames_at_a_time_are_those_of_all(
    views: geomtx.Views, encoder_frames: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("geomtx.models.video_tracker.run._FRAMES", 2)
    model = tracker(encoder_frames=encoder_frames).double()
    video = views.images[None].double()
    with torch.inference_mode():
        torch.testing.assert_close(video_features(model, video), model.features(video))


def test_a_vggt_tracks_as_it_reconstructs(views: geomtx.Views):
    torch.manual_seed(0)
    model = geomtx.VGGT(geomtx.VGGTConfig.tiny()).eval()
    tracks = track(model, views, QUERIES).tracks
    wanted = geomtx.reconstruct(model, views, query_points=QUERIES, heads=("tracks",)).tracks
    assert tracks is not None
    assert wanted is not None
    assert torch.equal(tracks.coords_px, wanted.coords_px)


def test_what_can_not_be_tracked(views: geomtx.Views, monkeypatch: pytest.MonkeyPatch):
    model = tracker()
    with pytest.raises(ValueError, match="video must have at least 2 frames to track in, got 1"):
        track(model, views[:1], QUERIES[:1])
    with pytest.raises(ValueError, match=r"query 0 \(0, 112, 3\) must lie inside 0.png, 112 x 56 pixels, got x 112"):
        track(model, views, [(0, 112.0, 3.0)])
    with pytest.raises(ValueError, match=r"video must have at least 8 pixels a side, got \(4, 56\)"):
        check_video(model, (4, 56), 5, torch.device("cpu"))
    with pytest.raises(TypeError, match="track takes no option 'memory' for a VideoTracker"):
        track(model, views, QUERIES, memory="low")
    monkeypatch.setattr("geomtx.models.video_tracker.run.free_bytes", lambda _: 100_000)
    with pytest.raises(ValueError, match=r"for memory, got 5 frames of 56x28 pixels: .* take fewer frames"):
        track(model, views, QUERIES)
