from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from geomtx.files import LISTING
from geomtx.views import PhotoError, Views, extract_frames, load_views
from geomtx.views.frames import FrameChoice, plan_frames
from views.video_files import numbered_pictures, read_number, write_clip

pytest.importorskip("av", reason="PyAV is not installed")

Clip = Callable[..., Path]


@pytest.fixture
def clip(tmp_path: Path) -> Clip:
    """`clip(count)` writes a video of numbered pictures, ten a second, or at other times."""
    return lambda count, **how: write_clip(tmp_path / "clip.mp4", numbered_pictures(count), **how)


def chosen(path: Path, **choice: object) -> list[int]:
    return list(plan_frames(path, FrameChoice(**choice)).indices)  # type: ignore[arg-type]


def textured_pictures(shifts: Sequence[float], size: tuple[int, int] = (160, 120)) -> list[NDArray[np.uint8]]:
    """Pictures of one texture, moved to the left by shares of the width."""
    width, height = size
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 4, width // 2)).astype(np.uint8)
    texture = np.asarray(Image.fromarray(coarse).resize((2 * width, height), Image.Resampling.BICUBIC))
    starts = [round(share * width) for share in shifts]
    return [texture[:, start : start + width, None].repeat(3, 2) for start in starts]


# By time


def test_a_rate_takes_the_frames_nearest_to_its_times(clip: Clip):
    path = clip(31)  # 3 seconds
    assert chosen(path, fps=1) == [0, 10, 20, 30]
    assert chosen(path, fps=4) == [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27, 30]
    assert chosen(path, fps=10) == chosen(path, fps=1e6) == list(range(31))
    assert chosen(path, fps=0.01) == [0]


def test_a_number_of_views_is_spread_evenly_over_the_time(clip: Clip):
    path = clip(31)
    assert chosen(path, max_views=4) == [0, 10, 20, 30]
    assert chosen(path, max_views=100) == list(range(31))
    assert chosen(path, max_views=1) == [0]


def test_by_default_there_are_two_a_second_but_eight_at_least_and_32_at_most(clip: Clip):
    assert len(chosen(clip(5))) == 5
    assert len(chosen(clip(31))) == 8
    assert chosen(clip(31, times=[0.5 * n for n in range(31)])) == list(range(31))
    assert len(chosen(clip(80, times=[0.5 * n for n in range(80)]))) == 32


def test_a_rate_that_varies_does_not_matter(clip: Clip):
    times = [*(n / 20 for n in range(20)), 1.0, 2.1, 3.0]
    assert chosen(clip(23, times=times), fps=1) == [0, 20, 21, 22]
    assert chosen(clip(23, times=times), max_views=4) == [0, 20, 21, 22]


# Blurred frames and near-duplicates


def test_blurred_frames_are_replaced_by_their_nearest_sharp_neighbours_or_left_out(tmp_path: Path):
    pictures = textured_pictures(np.linspace(0, 0.9, 31))
    for index in (10, 11, *range(15, 26)):
        pictures[index] = np.asarray(Image.fromarray(pictures[index]).filter(ImageFilter.GaussianBlur(2)))
    path = write_clip(tmp_path / "clip.mp4", pictures)
    assert chosen(path, fps=1) == [0, 10, 20, 30]
    assert chosen(path, fps=1, skip_blurred=True) == [0, 9, 30]  # 14, the nearest to 20, is farther than half a second
    assert chosen(path, fps=0.5, skip_blurred=True) == [0, 14]


def test_nothing_is_blurred_where_all_frames_are_alike(clip: Clip):
    assert chosen(clip(12), fps=10, skip_blurred=True) == list(range(12))


def test_near_duplicates_are_left_out(tmp_path: Path):
    rng = np.random.default_rng(0)
    shifts = [0, 0, 0, 0.05, 0.05, 0.1, 0.1015, 0.5]
    pictures = [
        np.clip(picture + rng.normal(0, 3, picture.shape), 0, 255).astype(np.uint8)
        for picture in textured_pictures(shifts)
    ]
    path = write_clip(tmp_path / "clip.mp4", pictures)
    views = load_views(path, size=56, fps=10, skip_duplicates=True)
    assert [round(10 * time) for time in views.times] == [0, 3, 5, 7]
    assert len(load_views(path, size=56, fps=10)) == 8


# Views


def test_views_of_a_video_have_names_times_and_the_pixels_of_the_frames(clip: Clip):
    views = load_views(clip(31, turn="90° clockwise"), size=28, max_views=4)
    assert views.names == ("clip_000000.jpg", "clip_000010.jpg", "clip_000020.jpg", "clip_000030.jpg")
    assert views.times == pytest.approx((0, 1, 2, 3))
    assert {transform.original_hw for transform in views.transforms} == {(64, 48)}
    assert views.paths == (None,) * 4
    assert views[1:3].times == pytest.approx((1, 2))
    assert views.with_masks([views.masks.new_ones(64, 48)] * 4).times == views.times


def test_frames_as_files_give_the_same_views_with_their_times(clip: Clip, tmp_path: Path):
    path = clip(31)
    files = extract_frames(path, tmp_path / "frames", max_views=4)
    assert [file.name for file in files] == [f"clip_{index:06}.jpg" for index in (0, 10, 20, 30)]
    assert [read_number(Image.open(file)) for file in files] == [0, 10, 20, 30]
    views, direct = load_views(tmp_path / "frames", size=28), load_views(path, size=28, max_views=4)
    assert (views.names, views.times) == (direct.names, direct.times)
    assert (views.images - direct.images).abs().mean() < 0.01
    assert load_views(files[1:3], size=28).times == pytest.approx((1, 2))


def test_frames_of_an_earlier_call_are_removed_and_others_files_stay(clip: Clip, tmp_path: Path):
    path, folder = clip(31), tmp_path / "frames"
    extract_frames(path, folder, max_views=4)
    (folder / "notes.txt").write_text("mine")
    first = (folder / "clip_000000.jpg").read_bytes()
    extract_frames(path, folder, max_views=2)
    assert sorted(file.name for file in folder.iterdir()) == [
        "clip_000000.jpg", "clip_000030.jpg", "geomtx.json", "notes.txt",
    ]  # fmt: skip
    assert (folder / "clip_000000.jpg").read_bytes() == first, "the same bytes every time"
    (folder / "clip_000030.jpg").write_bytes(b"another's")
    with pytest.raises(FileExistsError, match=r"clip_000030\.jpg; choose another folder"):
        extract_frames(path, folder, max_views=4)
    extract_frames(path, folder, max_views=4, overwrite=True)
    assert len(list(folder.iterdir())) == 6
    assert json.loads((folder / LISTING).read_text())["video"] == "clip.mp4"


def test_photos_have_no_times(tmp_path: Path):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    assert load_views(tmp_path, size=28).times == ()
    (tmp_path / LISTING).write_text('{"format": "geomtx.frames", "times": {"b.png": 1}}')
    assert load_views(tmp_path, size=28).times == ()


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"fps": 0}, "fps must be positive, got 0"),
        ({"fps": float("inf")}, "fps must be finite, got inf"),
        ({"max_views": 0}, "max_views must be a whole number, at least 1, got 0"),
        ({"fps": 1, "max_views": 2}, "fps and max_views must not be given together, got 1 and 2"),
    ],
)
def test_choices_out_of_range(clip: Clip, choice: dict, message: str):
    with pytest.raises(ValueError, match=message):
        load_views(clip(3), **choice)


def test_options_of_videos_are_for_a_video_alone(clip: Clip, tmp_path: Path):
    path = clip(3)
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="max_views must be for a video, got photos"):
        load_views(tmp_path / "a.png", max_views=3)
    with pytest.raises(PhotoError, match=r"must be one video alone, or photos, got '.*clip.mp4' among 2 files"):
        load_views([tmp_path / "a.png", path])
    with pytest.raises(TypeError, match="load_views takes no option 'max_view'; did you mean 'max_views'"):
        load_views(path, max_view=3)
    (tmp_path / "a.png").unlink()
    with pytest.raises(PhotoError, match=r"must hold images .* got none; name the video '.*clip.mp4' itself to use it"):
        load_views(tmp_path)


def test_times_are_one_a_view():
    views = Views.from_images(np.zeros((2, 28, 28, 3), np.uint8))
    with pytest.raises(ValueError, match=r"times must have one entry per view \(2\), or none, got 1"):
        Views(views.images, views.transforms, views.masks, views.names, views.paths, times=(0.0,))


def test_without_pyav_the_extra_is_named(clip: Clip):
    code = (
        f"import sys; sys.modules['av'] = None\nfrom geomtx.views.frames import *\nplan_frames({str(clip(3))!r}, "
        "FrameChoice())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert run.stderr.splitlines()[-1] == (
        'ImportError: videos need PyAV, which is not installed: pip install "geomtx[video]"'
    )
