from __future__ import annotations

from pathlib import Path

import pytest

import geomtx
from geomtx.cli import main
from geomtx.data.synthetic.photos import save_photos
from geomtx.inference import GlobalApproximation
from geomtx.scene import WindowPlan
from scene.known_scene import render_room


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    save_photos(render_room(5, (90, 120)).images[0], folder / "photos")
    return folder / "photos"


def run(photos: Path, *options: str) -> int:
    out = str(photos.parent / "out")
    return main(
        ["reconstruct", str(photos), "-o", out, "--preset", "tiny", "--size", "28", "--device", "cpu", *options]
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), {}),
        (("--key-views", "2"), {"approximation": GlobalApproximation(2)}),
        (
            ("--key-views", "2", "--key-stride", "3", "--local-layers", "1"),
            {"approximation": GlobalApproximation(2, 3, 1)},
        ),
        (("--window", "4"), {"window": WindowPlan(4, 1)}),
        (("--window", "9"), {"window": WindowPlan(9, 2)}),
        (("--window", "3", "--overlap", "2", "--key-stride", "2"),
         {"window": WindowPlan(3, 2), "approximation": GlobalApproximation(None, 2)}),
    ],
)  # fmt: skip
def test_options_reach_reconstruct(
    photos: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], expected: dict
) -> None:
    calls = []

    def record(*args: object, **given: object) -> geomtx.Scene:
        calls.append(given)
        return reconstruct(*args, **given)

    reconstruct = geomtx.scene.reconstruct
    monkeypatch.setattr(geomtx.scene, "reconstruct", record)
    assert run(photos, *options) == 0
    (given,) = calls
    assert {name: given.get(name) for name in ("approximation", "window") if given.get(name) is not None} == expected
    scene = geomtx.Scene.load(photos.parent / "out")
    assert len(scene) == 5
    assert scene.predictions.depth is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--overlap", "2"), "--overlap must go with --window"),
        (("--window", "1"), "window size must be a whole number, at least 2, got 1"),
        (("--window", "3", "--overlap", "3"), "window overlap must be in 1 … 2, got 3"),
        (("--window", "3", "--query", "0,1,1"), "--query must not go with --window"),
        (("--window", "3", "--heads", "camera"), "heads must hold camera and depth, or points, to stitch windows"),
        (("--local-layers", "5"), "num_local_layers must be in 0 … 4, got 5"),
    ],
)
def test_what_does_not_go_together(
    photos: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    before = sorted(path.name for path in photos.parent.rglob("*"))
    assert run(photos, *options) == 2
    assert f"geomtx: error: {message}" in capsys.readouterr().err.splitlines()[-1]
    assert sorted(path.name for path in photos.parent.rglob("*")) == before


@pytest.mark.parametrize("option", ["--window", "--overlap", "--key-views", "--key-stride", "--local-layers"])
def test_numbers_are_whole_and_above_0(photos: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert run(photos, option, "0") == 2
    assert f"argument {option}: must be a whole number above 0, got '0'" in capsys.readouterr().err
