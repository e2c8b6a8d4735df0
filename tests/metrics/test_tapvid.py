import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from geomtx.data import MotionStyle, VideoStyle, render_videos
from geomtx.metrics import TapVidVideo, evaluate_tapvid, labels_to_tapvid, load_tapvid, track_scores
from geomtx.types import SceneBatch, Tracks


def random_video(num_frames: int = 9, num_tracks: int = 6, name: str = "") -> TapVidVideo:
    frames = torch.randint(256, (num_frames, 20, 30, 3), dtype=torch.uint8)
    occluded = torch.rand(num_tracks, num_frames) < 0.3
    occluded[:, 4] = False
    return TapVidVideo(frames, torch.rand(num_tracks, num_frames, 2), occluded, name)


def cheat(video: TapVidVideo, image_hw: tuple[int, int] = (256, 256), shift: float = 0.0):
    """A tracker that knows the truth, and is `shift` pixels of the 256 raster beside it."""
    size = torch.tensor([image_hw[1] - 1, image_hw[0] - 1])

    def track(frames: torch.Tensor, queries: torch.Tensor):
        assert not torch.is_grad_enabled()
        assert frames.shape == (len(video.frames), 3, *image_hw)
        assert 0 <= frames.min() <= frames.max() <= 1
        truth = video.points.transpose(0, 1) * size
        start = truth[queries[:, 0].long()] - queries[:, None, 1:]
        which = start.norm(dim=-1).argmin(dim=1)
        assert start.norm(dim=-1).amin(1).max() < 1e-4  # each query lies on a track
        beside = torch.tensor([shift, 0.0]) * size / 255
        return truth[:, which] + beside, ~video.occluded.transpose(0, 1)[:, which]

    return track


@pytest.mark.parametrize("mode", ["first", "strided"])
@pytest.mark.parametrize("image_hw", [(256, 256), (40, 64)])
def test_the_truth_scores_all(mode: str, image_hw: tuple[int, int]):
    video = random_video()
    scores = evaluate_tapvid(cheat(video, image_hw), [video], mode=mode, image_hw=image_hw)
    for part in scores.mean:
        torch.testing.assert_close(part, torch.ones_like(part))


def test_errors_are_measured_on_the_raster_of_256():
    video = random_video()
    scores = evaluate_tapvid(cheat(video, (40, 64), shift=3.0), [video], image_hw=(40, 64)).mean
    torch.testing.assert_close(scores.delta, torch.tensor([0, 0, 1, 1, 1], dtype=torch.float64))
    torch.testing.assert_close(scores.occlusion_accuracy, torch.tensor(1.0, dtype=torch.float64))


def test_the_mean_is_over_videos_not_over_tracks():
    few, many = random_video(num_tracks=1, name="few"), random_video(num_tracks=20, name="many")

    def track(frames: torch.Tensor, queries: torch.Tensor):
        video = few if len(queries) == 1 else many
        return cheat(video, shift=0.0 if video is few else 100.0)(frames, queries)

    scores = evaluate_tapvid(track, [few, many])
    assert scores.names == ("few", "many")
    torch.testing.assert_close(scores.videos.average_delta, torch.tensor([1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(scores.mean.average_delta, torch.tensor(0.5, dtype=torch.float64))


def test_the_known_case_through_the_harness():
    """T9: two tracks, four frames, ground truth at the origin."""
    occluded = torch.tensor([[False, False, False, True], [True, False, False, False]])
    video = TapVidVideo(torch.zeros(4, 8, 8, 3, dtype=torch.uint8), torch.zeros(2, 4, 2), occluded)
    coords = torch.zeros(4, 2, 2)
    coords[1, 0, 0], coords[2, 0, 0], coords[2, 1, 1], coords[3, 1, 0] = 0.5, 3.0, 6.0, 20.0
    seen = torch.ones(4, 2, dtype=torch.bool)
    seen[3, 1] = False

    def track(frames: torch.Tensor, queries: torch.Tensor):
        torch.testing.assert_close(queries, torch.tensor([[0.0, 0, 0], [1, 0, 0]]))
        return coords, seen

    first = evaluate_tapvid(track, [video]).mean
    assert first.occlusion_accuracy.item() == pytest.approx(0.6)
    assert first.average_delta.item() == pytest.approx(0.5)
    assert first.average_jaccard.item() == pytest.approx(0.363810, abs=1e-6)
    # Every frame a query where it is visible, of which each is scored on all other frames.
    tracks, frames = (torch.tensor(v) for v in ([0, 0, 1, 0, 1, 1], [0, 1, 1, 2, 2, 3]))

    def track_all(frames_: torch.Tensor, queries: torch.Tensor):
        torch.testing.assert_close(queries[:, 0].long(), frames)
        return coords[:, tracks], seen[:, tracks]

    strided = evaluate_tapvid(track_all, [video], mode="strided", stride=1).mean
    wanted = track_scores(
        coords[:, tracks], seen[:, tracks], torch.zeros(4, 6, 2), ~occluded.T[:, tracks], frames, mode="strided"
    )
    torch.testing.assert_close(strided.jaccard, wanted.jaccard)


def test_a_video_without_a_visible_point_does_not_count():
    video = random_video()
    never = video._replace(occluded=torch.ones_like(video.occluded))
    scores = evaluate_tapvid(cheat(video), [never, video])
    assert scores.videos.occlusion_accuracy[0].isnan()
    torch.testing.assert_close(scores.mean.occlusion_accuracy, torch.tensor(1.0, dtype=torch.float64))


def test_rendered_videos():
    batch = render_videos([3, 4], 6, (20, 30), num_tracks=12, style=VideoStyle(motion=MotionStyle(moving=1.0)))
    tracks = batch.tracks._replace(valid=torch.arange(12).expand(2, 12) < 10)
    videos = labels_to_tapvid(batch._replace(tracks=tracks))
    assert len(videos) == 2
    for index, video in enumerate(videos):
        assert video.points.shape == (10, 6, 2)
        assert (video.frames.movedim(-1, 1) / 255 - batch.images[index]).abs().max() < 0.51 / 255
        size = torch.tensor([29.0, 19.0])
        torch.testing.assert_close(video.points.transpose(0, 1) * size, tracks.coords_px[index][:, :10])
        assert torch.equal(~video.occluded.T, tracks.visible[index][:, :10])
        scores = evaluate_tapvid(cheat(video), [video], mode="strided", stride=2).mean
        assert scores.average_jaccard == 1
    with pytest.raises(ValueError, match=r"^videos must have tracks, got none$"):
        labels_to_tapvid(SceneBatch(batch.images))


@pytest.mark.usefixtures("unchecked")
def test_bad_videos_and_trackers():
    video = random_video(name="bear")
    with pytest.raises(ValueError, match=r"^videos must hold at least one, got none$"):
        evaluate_tapvid(cheat(video), [])
    with pytest.raises(ValueError, match=r"^mode must be one of 'first', 'strided', got 'last'$"):
        evaluate_tapvid(cheat(video), [video], mode="last")
    with pytest.raises(ValueError, match=r"^frames of 'bear' must be uint8, got torch.float32$"):
        evaluate_tapvid(cheat(video), [video._replace(frames=video.frames.float())])
    with pytest.raises(ValueError, match=r"^points of 'bear' must have shape \(N, 9, 2\), got \(6, 8, 2\)$"):
        evaluate_tapvid(cheat(video), [video._replace(points=video.points[:, :8])])
    with pytest.raises(ValueError, match=r"^points of 'bear' must be finite where they are visible, got others$"):
        evaluate_tapvid(cheat(video), [video._replace(points=video.points / 0)])
    with pytest.raises(ValueError, match=r"^tracked coordinates must have shape \(9, 6, 2\), got \(2, 2, 2\)$"):
        evaluate_tapvid(lambda *_: (torch.zeros(2, 2, 2), torch.zeros(2, 2)), [video])
    with pytest.raises(ValueError, match=r"^track must return coordinates and visibility, two tensors, got Tracks$"):
        evaluate_tapvid(lambda *_: Tracks(*torch.zeros(3, 9, 6)), [video])
    with pytest.raises(ValueError, match=r"^tracked visibility must be bool, got torch.float32$"):
        evaluate_tapvid(lambda *_: (torch.zeros(9, 6, 2), torch.zeros(9, 6)), [video])


def as_item(video: TapVidVideo, *, jpeg: bool = False) -> dict:
    frames = video.frames.numpy()
    if jpeg:
        smooth = np.broadcast_to(np.arange(30, dtype=np.uint8)[:, None] * 8, frames.shape)
        files = []
        for frame in smooth:
            stream = io.BytesIO()
            Image.fromarray(frame).save(stream, "JPEG", quality=95)
            files.append(stream.getvalue())
        frames = files
    return {"video": frames, "points": video.points.numpy(), "occluded": video.occluded.numpy()}


@pytest.mark.parametrize("protocol", range(2, 6))
def test_published_layouts(tmp_path: Path, protocol: int):
    bear, boat = random_video(), random_video(5)
    davis, kinetics = tmp_path / "davis.pkl", tmp_path / "kinetics"
    davis.write_bytes(pickle.dumps({"bear": as_item(bear), "boat": as_item(boat)}, protocol))
    kinetics.mkdir()
    for index in range(2):
        items = [as_item(bear, jpeg=True), as_item(boat)]
        (kinetics / f"000{index}_of_0002.pkl").write_bytes(pickle.dumps(items, protocol))
    got = list(load_tapvid(davis))
    assert [video.name for video in got] == ["bear", "boat"]
    for video, wanted in zip(got, (bear, boat), strict=True):
        assert torch.equal(video.frames, wanted.frames)
        assert torch.equal(video.points, wanted.points)
        assert torch.equal(video.occluded, wanted.occluded)
    parts = list(load_tapvid(kinetics))
    assert [video.name for video in parts][1:3] == ["0000_of_0002/1", "0001_of_0002/0"]
    columns = parts[0].frames[0, 0, :, 0].int()
    assert (columns - 8 * torch.arange(30)).abs().max() <= 3
    assert torch.equal(parts[3].frames, boat.frames)
    scores = evaluate_tapvid(cheat(boat), [video for video in load_tapvid(davis) if video.name == "boat"])
    assert scores.mean.average_jaccard == 1


def test_points_of_float64_and_occlusion_in_bytes(tmp_path: Path):
    video = random_video()
    item = as_item(video)
    item |= {"points": item["points"].astype(np.float64), "occluded": item["occluded"].astype(np.uint8)}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([item]))
    got = next(load_tapvid(tmp_path / "a.pkl"))
    assert torch.equal(got.points, video.points)
    assert torch.equal(got.occluded, video.occluded)


def test_names_of_older_and_newer_numpy(tmp_path: Path):
    video = random_video()
    content = pickle.dumps([as_item(video)], 2)
    ours = b"numpy._core." if b"numpy._core." in content else b"numpy.core."
    for module in (b"numpy.core.", b"numpy._core."):
        (tmp_path / "a.pkl").write_bytes(content.replace(ours, module))
        got = next(load_tapvid(tmp_path / "a.pkl"))
        assert torch.equal(got.frames, video.frames)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("content", [Harmful(), {"bear": Harmful()}, [{"video": Harmful()}]])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_file_that_asks_for_more_than_arrays_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object, protocol: int
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(ValueError, match=r"must be a whole pickle of plain arrays, got another file: '.*mkdir' is ref"):
        list(load_tapvid("bad.pkl"))
    assert not (tmp_path / "harm").exists()


def test_no_name_of_the_interpreter_is_admitted(tmp_path: Path):
    for module, name in (("builtins", "eval"), ("numpy", "load"), ("_codecs", "decode"), ("numpy.core", "os")):
        text = f"c{module}\n{name}\n.".encode()
        (tmp_path / "a.pkl").write_bytes(text)
        with pytest.raises(ValueError, match=rf"'{module}\.{name}' is refused"):
            list(load_tapvid(tmp_path / "a.pkl"))
    (tmp_path / "a.pkl").write_bytes(b"c_codecs\nencode\n(Vab\nVrot13\ntR.")
    with pytest.raises(ValueError, match="bytes in rot13 are refused"):
        list(load_tapvid(tmp_path / "a.pkl"))


def test_broken_files(tmp_path: Path):
    whole = pickle.dumps({"bear": as_item(random_video())})
    path = tmp_path / "a.pkl"
    for length in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"^'.*a\.pkl' must be a whole pickle of plain arrays, got another file: "):
            list(load_tapvid(path))
    path.write_bytes(pickle.dumps(3))
    with pytest.raises(ValueError, match=r"^'.*a\.pkl' must hold a mapping or a list of videos, got int$"):
        list(load_tapvid(path))
    path.write_bytes(pickle.dumps([{"video": 3}]))
    with pytest.raises(ValueError, match=r"^'a/0' of '.*a\.pkl' must have video, points and occluded, got another en"):
        list(load_tapvid(path))
    item = as_item(random_video()) | {"video": [b"no picture"]}
    path.write_bytes(pickle.dumps([item]))
    with pytest.raises(ValueError, match=r"^'a/0' of '.*a\.pkl' must be a whole video, got a broken one: "):
        list(load_tapvid(path))
    path.write_bytes(pickle.dumps([item | {"video": np.zeros((3, 4, 4))}]))
    with pytest.raises(ValueError, match=r"video must be \(S, H, W, 3\) of uint8, got \(3, 4, 4\) of float64$"):
        list(load_tapvid(path))
    with pytest.raises(ValueError, match=r"^path must be a \.pkl file of TAP-Vid or a folder of them, got '"):
        load_tapvid(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"must be a \.pkl file of TAP-Vid or a folder of them"):
        load_tapvid(tmp_path / "empty")
