"""Videos in place of photos."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from geomtx import Scene
from geomtx.cli import main
from geomtx.scene import read_cameras
from geomtx.views.video import write_video
from views.video_files import write_clip

pytest.importorskip("av", reason="PyAV is not installed")

TINY = ["--preset", "tiny", "--size", "56"]


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A video of three seconds with 31 frames, in the current folder."""
    monkeypatch.chdir(tmp_path)
    x, y = np.meshgrid(np.arange(120), np.arange(90))
    pictures = [np.stack([(x + 4 * n) % 256, (2 * y + n) % 256, (x + y) % 256], -1).astype(np.uint8) for n in range(31)]
    return write_clip(tmp_path / "clip.mp4", pictures)


def error_of(capsys: pytest.CaptureFixture[str], arguments: str) -> str:
    assert main(arguments.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("geomtx: error: ")
    return line


def test_a_video_is_reconstructed_and_its_frames_stay_beside_the_scene(clip: Path, tmp_path: Path):
    assert main(["reconstruct", "clip.mp4", *TINY, "--max-views", "3", "--formats", "ply,splat"]) == 0
    output = tmp_path / "clip-geomtx"
    names = [f"clip_{index:06}.jpg" for index in (0, 15, 30)]
    assert sorted(path.name for path in (output / "frames").iterdir()) == [*names, "geomtx.json"]
    assert sorted(path.name for path in (output / "splat" / "images").iterdir()) == names
    content = json.loads((output / "cameras.json").read_text())
    assert [view["time"] for view in content["views"]] == [0, 1.5, 3]
    assert content["conventions"]["time"] == "seconds from the first frame of the video"
    assert read_cameras(output / "cameras.json").times == (0, 1.5, 3)
    scene = Scene.load(output)
    assert (scene.names, scene.times) == (tuple(names), (0, 1.5, 3))
    assert scene.paths == tuple(output / "frames" / name for name in names)
    assert scene.provenance["photos"] == "clip.mp4"
    assert scene.provenance["frames"] == "3 of 31"

    # The folder is enough, wherever it is.
    clip.unlink()
    moved = Path(shutil.move(output, tmp_path / "moved"))
    assert main(["convert", str(moved), "--formats", "nerfstudio"]) == 0
    assert sorted(path.name for path in (moved / "nerfstudio" / "images").iterdir()) == names


def test_the_same_video_again_replaces_its_frames(clip: Path, tmp_path: Path):
    camera = [*TINY, "--heads", "camera", "-o", "out"]
    assert main(["reconstruct", "clip.mp4", "--fps", "1", *camera]) == 0
    first = (tmp_path / "out" / "scene.safetensors").read_bytes()
    assert main(["reconstruct", "clip.mp4", "--max-views", "2", *camera]) == 0
    assert len(list((tmp_path / "out" / "frames").iterdir())) == 3
    assert main(["reconstruct", "clip.mp4", "--fps", "1", *camera]) == 0
    assert (tmp_path / "out" / "scene.safetensors").read_bytes() == first
    # Frames are photos with times, also for a scene beside them.
    assert main(["reconstruct", "out/frames", *camera]) == 0
    assert Scene.load("out").times == (0, 1, 2, 3)
    assert len(list((tmp_path / "out" / "frames").iterdir())) == 5


def test_frames_of_others_are_not_replaced(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "out" / "frames").mkdir(parents=True)
    (tmp_path / "out" / "frames" / "clip_000000.jpg").write_bytes(b"mine")
    command = f"reconstruct clip.mp4 -o out --max-views 2 {' '.join(TINY)}"
    assert "frames/clip_000000.jpg; choose another folder" in error_of(capsys, command)
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["clip_000000.jpg"]
    assert main([*command.split(), "--heads", "camera", "--overwrite"]) == 0


@pytest.mark.usefixtures("clip")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("clip.mp4 --fps 0", "argument --fps: must be a number above 0, got '0'"),
        ("clip.mp4 --fps nan", "argument --fps: must be a number above 0, got 'nan'"),
        ("clip.mp4 --max-views 0", "argument --max-views: must be a whole number above 0, got '0'"),
        ("clip.mp4 --fps 1 --max-views 2", "argument --max-views: not allowed with argument --fps"),
        ("a.png --skip-blurred", "--skip-blurred must be for a video, got photos"),
        ("a.png --fps 2", "--fps must be for a video, got photos"),
        ("a.png clip.mp4", "source must be one video alone, or photos, got 'clip.mp4' among 2 files"),
        ("text.mp4", "video 'text.mp4' must be a whole video that FFmpeg can decode, got: Invalid data found"),
        ("gone.mp4", "video 'gone.mp4' must be an existing file, got none"),
    ],
)
def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, message: str):
    (tmp_path / "text.mp4").write_text("some text")
    write_video(tmp_path / "a.mp4", [np.zeros((48, 64, 3), np.uint8)], fps=1)
    before = sorted(tmp_path.iterdir())
    assert message in error_of(capsys, f"reconstruct {arguments} --preset tiny")
    assert sorted(tmp_path.iterdir()) == before
