import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import geomtx
from geomtx.cli import main
from geomtx.files import is_own_picture
from geomtx.report.matches import draw_matches

RANDOM = {"depth": 2, "encoder_depth": 1, "image_size": 48}


@pytest.fixture
def weights(tmp_path: Path) -> str:
    torch.manual_seed(0)
    return str(geomtx.MASt3R(geomtx.MASt3RConfig.tiny(**RANDOM)).save_pretrained(tmp_path / "w", names="published"))


def test_a_picture_and_matches_in_pixels_of_the_photos(photos: Path, weights: str, tmp_path: Path, capsys):
    one, two, _ = sorted(photos.iterdir())
    Image.open(two).resize((60, 90)).save(two)
    command = ["match", str(one), str(two), "--weights", weights, "-o", str(tmp_path / "out" / "found.png")]
    assert main(command) == 0
    content = json.loads((tmp_path / "out" / "found.json").read_text())
    assert content["photos"] == [
        {"name": one.name, "height": 90, "width": 120},
        {"name": two.name, "height": 90, "width": 60},
    ]
    matches = np.array(content["matches"])
    assert matches.shape[1] == 5
    assert (matches[:, :4] > -0.5).all()
    assert (matches[:, :4] < np.array([120, 90, 60, 90]) - 0.5).all()
    assert matches[:, 2].max() > 40  # not in pixels of the model's image, which is 32 wide
    said = capsys.readouterr().out
    assert f"{len(matches)} matched pixel" in said
    assert is_own_picture(tmp_path / "out" / "found.png")
    assert main(command) == 0  # replaces its own
    assert main([*command, "--min-confidence", "1e9"]) == 2
    assert "photos must have pixels that match, got none above --min-confidence (lower it)" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "found.json").read_text()) == content


def test_lines_join_the_pixels(tmp_path: Path):
    photos = [Image.new("RGB", (40, 20)), Image.new("RGB", (20, 20))]
    one, two = np.array([[9.5, 4.5]]), np.array([[9.5, 14.5]])
    with_line, without = (
        np.asarray(draw_matches(photos, [(200, 400), (20, 20)], each)).astype(int)
        for each in ((10 * one, two), (one[:0], two[:0]))
    )
    changed = np.abs(with_line - without).sum(-1) > 30
    assert with_line.shape[0] > with_line.shape[1] / 4
    rows, columns = np.nonzero(changed)
    # The first photo is 1280 pixels wide in the picture, and 640 high; the second one begins 8 pixels to its right.
    assert abs(columns.min() - 1280 * (96 / 400)) < 8
    assert abs(columns.max() - (1288 + 320)) < 8
    assert abs(rows.min() - 640 * 45.5 / 200) < 8
    assert abs(rows.max() - 480) < 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "matches.jpg"], "--output must be a file that ends in .png, got 'matches.jpg'"),
        (["--min-confidence", "-1"], "--min-confidence must be finite and at least 0, got -1.0"),
        (["--weights", "nano"], "--weights must be of a model that sees pairs, MASt3R or DUSt3R, got a VGGT's"),
    ],
)
def test_bad_input_is_one_line(options, message, photos: Path, weights: str, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    one, two, _ = map(str, sorted(photos.iterdir()))
    assert main(["match", one, two, "--weights", weights, *options]) == 2
    assert f"geomtx: error: {message}" in capsys.readouterr().err
    assert main(["match", one, str(photos), "--weights", weights]) == 2
    assert f"photos must be two files, got the folder '{photos}'" in capsys.readouterr().err
    assert not list(tmp_path.glob("matches*"))
