from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geomtx.views import PhotoError
from geomtx.views.video import read_frames, read_thumbnails, read_timeline, write_video
from views.video_files import TURNS, numbered_pictures, read_number, write_clip

pytest.importorskip("av", reason="PyAV is not installed")


def read_all(path: Path) -> list[Image.Image]:
    timeline = read_timeline(path)
    return [picture for _, picture in read_frames(path, timeline, range(len(timeline.times)))]


# Reading


def test_frames_are_found_at_their_times_also_behind_later_key_frames(tmp_path: Path):
    times = np.cumsum([0, *[0.04] * 20, *[0.7] * 20])
    path = write_clip(tmp_path / "clip.mp4", numbered_pictures(41), times=times)
    timeline = read_timeline(path)
    np.testing.assert_allclose(timeline.times, times, atol=1e-3)
    assert len(timeline.seekable) == 5
    wanted = [0, 3, 19, 34, 35, 40]
    assert [(index, read_number(picture)) for index, picture in read_frames(path, timeline, wanted)] == [
        (index, index) for index in wanted
    ]


def test_times_begin_with_the_first_frame(tmp_path: Path):
    path = write_clip(tmp_path / "clip.mkv", numbered_pictures(5), start=5000)
    np.testing.assert_allclose(read_timeline(path).times, [0, 0.1, 0.2, 0.3, 0.4], atol=1e-6)


def test_frames_without_times_are_counted(tmp_path: Path):
    bare = write_clip(tmp_path / "clip.h264", numbered_pictures(12))  # a stream in no container
    timeline = read_timeline(bare)
    assert timeline.stamps is None
    assert len(timeline.times) == 12
    assert [read_number(picture) for _, picture in read_frames(bare, timeline, [2, 11])] == [2, 11]


@pytest.mark.parametrize("turn", TURNS)
def test_rotation_and_mirroring_are_applied(tmp_path: Path, turn: str):
    stored = numbered_pictures(1)[0]
    path = write_clip(tmp_path / "clip.mp4", [stored], turn=turn)
    wanted = TURNS[turn][1](stored).astype(int)
    (picture,) = read_all(path)
    assert picture.size == wanted.shape[1::-1]
    assert np.abs(np.asarray(picture) - wanted).mean() < 4


@pytest.mark.parametrize(("aspect", "size"), [(Fraction(4, 3), (85, 48)), (Fraction(1, 2), (64, 96))])
def test_pixels_become_square(tmp_path: Path, aspect: Fraction, size: tuple[int, int]):
    path = write_clip(tmp_path / "clip.mp4", numbered_pictures(3), aspect=aspect)
    assert [picture.size for picture in read_all(path)] == [size] * 3
    assert [read_number(picture) for picture in read_all(path)] == [0, 1, 2]


def test_what_is_no_video_is_one_line(tmp_path: Path):
    import av

    (tmp_path / "text.mp4").write_text("no video at all, but some text\n" * 50)
    (tmp_path / "empty.mp4").touch()
    whole = write_clip(tmp_path / "whole.mp4", numbered_pictures(3)).read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with av.open(str(tmp_path / "none.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(None))
    for name, message in {
        "text.mp4": "must be a whole video that FFmpeg can decode",
        "empty.mp4": "must be a whole video that FFmpeg can decode",
        "half.mp4": "must be a whole video that FFmpeg can decode",
        "sound.mp4": "must have pictures, got sound alone",
        "none.mkv": "must",
        "missing.mp4": "must be an existing file, got none",
    }.items():
        with pytest.raises(PhotoError, match=rf"^video '.*{name}' {message}") as caught:
            read_timeline(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_damage_costs_the_frames_that_are_damaged_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    import av

    path = write_clip(tmp_path / "clip.mp4", numbered_pictures(40))
    timeline = read_timeline(path)
    with av.open(str(path)) as container:
        places = {packet.pts: (packet.pos, packet.size) for packet in container.demux(video=0) if packet.size}
    content = bytearray(path.read_bytes())
    for stamp in timeline.stamps[20:30]:  # what begins with a key frame
        place, size = places[stamp]
        content[place : place + size] = b"\xff" * size
    path.write_bytes(bytes(content))
    assert [(index, read_number(picture)) for index, picture in read_frames(path, timeline, [5, 35])] == [
        (5, 5), (35, 35),
    ]  # fmt: skip
    assert caplog.messages == []
    assert [index for index, _ in read_frames(path, timeline, [5, 22, 24, 35])] == [5, 30, 35]
    assert "1 of 4 frames" in caplog.text
    numbers = [index for index, _ in read_thumbnails(path, timeline, side=32)]
    assert numbers == [*range(20), *range(30, 40)]
    place = places[timeline.stamps[0]][0]
    content[place : content.index(b"moov", place) - 4] = bytes(content.index(b"moov", place) - 4 - place)
    path.write_bytes(bytes(content))
    with pytest.raises(PhotoError, match="must be a whole video, got none of its frames decoded"):
        list(read_frames(path, timeline, [0, 10]))


# Writing


def test_a_written_video_has_its_pictures_and_rate(tmp_path: Path):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)
    pictures = [Image.fromarray(np.roll(coarse, n, 1).repeat(8, 0).repeat(8, 1)) for n in range(12)]
    path = tmp_path / "clip.mp4"
    write_video(path, iter(pictures), fps=12.5)
    np.testing.assert_allclose(read_timeline(path).times, np.arange(12) / 12.5, atol=1e-4)
    read = read_all(path)
    assert max(np.abs(np.asarray(a, float) - np.asarray(b)).mean() for a, b in zip(read, pictures, strict=True)) < 8
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # shown before all of it is there
    write_video(path, [np.asarray(picture) for picture in pictures], fps=12.5)
    assert path.read_bytes() == content


def test_colours_of_a_written_video_are_the_pictures(tmp_path: Path):
    for height in (64, 720):
        wanted = [(220, 30, 30), (30, 200, 40), (40, 40, 220), (200, 200, 60)]
        picture = np.array(wanted, np.uint8)[None, :, None].repeat(height, 0).repeat(16, 2).reshape(height, 64, 3)
        write_video(tmp_path / "clip.mp4", [picture], fps=10)
        (read,) = read_all(tmp_path / "clip.mp4")
        found = np.asarray(read)[height // 2, [8, 24, 40, 56]].astype(int)
        assert np.abs(found - wanted).max() <= 4


@pytest.mark.parametrize(
    ("pictures", "fps", "message"),
    [
        ([], 10, "pictures must hold at least one"),
        ([np.zeros((10, 11, 3), np.uint8)], 10, "pictures must have even sides for H.264, got 11x10"),
        ([np.zeros((10, 12, 3), np.uint8), np.zeros((12, 12, 3), np.uint8)], 10, "one size, got 12x10 and 12x12"),
        ([np.zeros((10, 12), np.uint8)], 10, r"pictures must be \(H, W, 3\) uint8"),
        ([np.zeros((10, 12, 3), np.uint8)], 0, "fps must be positive, got 0"),
    ],
)
def test_what_can_not_be_written(tmp_path: Path, pictures: list, fps: float, message: str):
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "clip.mp4", pictures, fps=fps)
