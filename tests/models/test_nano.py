from pathlib import Path

import pytest
import torch

import geomtx
from geomtx.data import RoomStyle, held_out_seed, render_scenes
from geomtx.data.synthetic.render import HELD_OUT_SCENES
from geomtx.geometry import normalize_scene
from geomtx.metrics import evaluate_predictions, fit_constant_guess, summarize
from geomtx.models.published import find_weights
from geomtx.types import SceneBatch

IMAGE_HW = (48, 64)


def rooms(first: int, count: int, num_views: int = 3) -> SceneBatch:
    seeds = [held_out_seed(HELD_OUT_SCENES["tests"][first + index]) for index in range(count)]
    scenes = render_scenes(seeds, num_views, IMAGE_HW, num_tracks=16, style=RoomStyle.nano())
    return normalize_scene(scenes)[0]


@pytest.fixture(scope="module")
def nano() -> geomtx.VGGT:
    return geomtx.VGGT.from_pretrained("nano")


def test_embedded_weights_are_small_and_complete(nano: geomtx.VGGT) -> None:
    assert nano.config == geomtx.VGGTConfig.nano()
    assert nano.heads == ("camera", "depth", "points", "tracks")
    assert sum(parameter.numel() for parameter in nano.parameters()) <= 8e6
    assert sum(file.stat().st_size for file in Path(find_weights("nano")).iterdir()) <= 16 * 2**20
    assert not nano.training


def test_they_are_stored_in_half_precision_and_loaded_in_single(nano: geomtx.VGGT) -> None:
    assert {parameter.dtype for parameter in nano.parameters()} == {torch.float32}
    half = geomtx.VGGT.from_pretrained("nano", dtype=torch.float16)
    for ours, stored in zip(nano.parameters(), half.parameters(), strict=True):
        assert torch.equal(ours, stored.float())


def test_one_head_of_them() -> None:
    model = geomtx.VGGT.from_pretrained("nano", heads=("depth",))
    assert model.camera_head is None
    assert model.depth_head is not None


def test_their_configuration_is_known_without_loading_them() -> None:
    assert geomtx.VGGT.read_config("nano") == geomtx.VGGTConfig.nano()


def test_nano_beats_the_best_guess_on_rooms_that_it_never_saw(nano: geomtx.VGGT) -> None:
    scenes = rooms(0, 8)
    guess = fit_constant_guess([rooms(100, 12)])
    with torch.no_grad():
        ours = summarize([evaluate_predictions(nano(scenes.images, scenes.tracks.coords_px[:, 0]), scenes)])
    theirs = summarize([evaluate_predictions(guess.predict(scenes), scenes)])
    assert ours["failed"] == 0
    assert ours["auc_30"] > theirs["auc_30"] + 0.1
    assert ours["rta_15"] > theirs["rta_15"]
    assert ours["depth_delta"] > theirs["depth_delta"] + 0.05
    assert ours["depth_abs_rel"] < theirs["depth_abs_rel"]
    assert ours["unprojected_overall"] < theirs["unprojected_overall"]
    assert ours["track_delta"] > theirs["track_delta"] + 0.05
