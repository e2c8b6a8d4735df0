import sys

import pytest
import torch

from baselines.lucas_kanade import track_lucas_kanade
from geomtx.data import render_videos
from geomtx.metrics import evaluate_tapvid, labels_to_tapvid

pytest.importorskip("cv2", reason="needs OpenCV, of the extra bench")

STEP = torch.tensor([1.7, -0.6])  # pixels a frame


def waves(height: int = 72, width: int = 96, num_frames: int = 6) -> torch.Tensor:
    """A texture that moves by STEP a frame, exactly: sines of shifted coordinates."""
    generator = torch.Generator().manual_seed(3)
    frequency = 0.15 + 0.5 * torch.rand(12, 2, generator=generator)
    frequency[::2, 0] *= -1
    phase = 6.3 * torch.rand(12, generator=generator)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    frames = []
    for index in range(num_frames):
        place = torch.stack([x, y], dim=-1) - index * STEP
        frames.append(0.5 + 0.04 * (place @ frequency.T + phase).sin().sum(-1))
    return torch.stack(frames)[:, None].repeat(1, 3, 1, 1).clamp(0, 1)


def test_a_moving_texture_is_followed_to_a_fraction_of_a_pixel_from_any_frame():
    frames = waves()
    queries = torch.tensor([[0, 40.3, 30.0], [0, 30.0, 44.7], [3, 48.2, 36.1], [5, 60.0, 30.5], [2, 50.0, 50.0]])
    coords, visible = track_lucas_kanade(frames, queries)
    steps = torch.arange(6)[:, None] - queries[:, 0]
    wanted = queries[:, 1:] + steps[..., None] * STEP
    assert visible.all()
    assert (coords - wanted).norm(dim=-1).max() < 0.1
    torch.testing.assert_close(coords[queries[:, 0].long(), torch.arange(5)], queries[:, 1:])


def test_each_point_is_followed_by_itself_and_the_same_way_every_time():
    frames = waves()
    queries = torch.tensor([[0, 40.3, 30.0], [3, 48.2, 36.1], [5, 60.0, 30.5]])
    coords, visible = track_lucas_kanade(frames, queries)
    again, _ = track_lucas_kanade(frames, queries)
    assert torch.equal(coords, again)
    for index in range(3):
        alone, seen = track_lucas_kanade(frames, queries[index : index + 1])
        assert torch.equal(alone[:, 0], coords[:, index])
        assert torch.equal(seen[:, 0], visible[:, index])


def test_what_leaves_the_frame_or_is_covered_is_lost():
    frames = waves(num_frames=8)
    frames[5:, :, 15:55, 25:65] = 0.3
    queries = torch.tensor([[0, 92.0, 40.0], [0, 36.0, 36.0], [0, 75.0, 62.0]])
    coords, visible = track_lucas_kanade(frames, queries, num_levels=1)  # so that it is local
    assert visible[0].all()
    assert not visible[4:, 0].any()  # 92 + 4 · 1.7 is beyond 95.5
    assert visible[:5, 1].all()
    assert not visible[5:, 1].any()
    assert visible[:, 2].all()
    assert coords.isfinite().all()
    stays = coords[6:, 1] - coords[5:7, 1]
    torch.testing.assert_close(stays, torch.zeros_like(stays))


def test_one_frame_and_no_queries():
    coords, visible = track_lucas_kanade(waves(num_frames=1), torch.tensor([[0, 5.0, 6.0]]))
    torch.testing.assert_close(coords, torch.tensor([[[5.0, 6.0]]]))
    assert visible.all()
    coords, visible = track_lucas_kanade(waves(num_frames=3), torch.zeros(0, 3))
    assert coords.shape == (3, 0, 2)
    assert visible.shape == (3, 0)


def test_it_is_better_than_standing_still_in_rendered_videos():
    videos = labels_to_tapvid(render_videos([1, 2, 3], 8, (96, 128), num_tracks=40))

    def stay(frames: torch.Tensor, queries: torch.Tensor):
        coords = queries[:, 1:].expand(len(frames), -1, -1)
        return coords, torch.ones_like(coords[..., 0], dtype=torch.bool)

    ours, theirs = (evaluate_tapvid(track, videos).mean for track in (track_lucas_kanade, stay))
    assert ours.average_delta > theirs.average_delta + 0.1
    assert ours.average_jaccard > theirs.average_jaccard + 0.1


def test_without_opencv_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r'^Lucas-Kanade tracking needs OpenCV: pip install "geomtx\[bench\]"$'):
        track_lucas_kanade(waves(num_frames=2), torch.zeros(1, 3))


def test_bad_arguments():
    frames, queries = waves(num_frames=2), torch.tensor([[0, 5.0, 6.0]])
    with pytest.raises(ValueError, match=r"^frames must have shape \(S, 3, H, W\), got \(3, 72, 96\)$"):
        track_lucas_kanade(frames[0], queries)
    with pytest.raises(ValueError, match=r"^frames must be floating point, got torch.uint8$"):
        track_lucas_kanade(frames.byte(), queries)
    with pytest.raises(ValueError, match=r"^queries must have shape \(Q, 3\), got \(1, 2\)$"):
        track_lucas_kanade(frames, queries[:, 1:])
    for row, message in (
        ([-1.0, 5.0, 6.0], r"lie in one of 2 frames of 96x72 pixels, got \[-1.0, "),
        ([2.0, 5.0, 6.0], r"lie in one of 2 frames of 96x72 pixels, got \[2.0, "),
        ([0.5, 5.0, 6.0], r"name frames by whole numbers, as \(frame, x, y\), got \[0.5, "),
        ([torch.nan, 5.0, 6.0], r"be finite, got \[nan, "),
        ([0, -1.0, 6.0], r"lie in one of 2 frames of 96x72 pixels, got \[0.0, -1.0, "),
        ([0, 96.0, 6.0], r"lie in one of 2 frames of 96x72 pixels, got \[0.0, 96.0, "),
        ([0, torch.nan, 6.0], r"be finite, got \[0.0, nan, "),
    ):
        with pytest.raises(ValueError, match="^queries must " + message):
            track_lucas_kanade(frames, torch.tensor([[0, 5.0, 6.0], row]))
    with pytest.raises(ValueError, match=r"^window must be a whole number, at least 3, got 2$"):
        track_lucas_kanade(frames, queries, window=2)
    with pytest.raises(ValueError, match=r"^num_levels must be a whole number, at least 0, got -1$"):
        track_lucas_kanade(frames, queries, num_levels=-1)
    with pytest.raises(ValueError, match=r"^max_error_px must be positive, got 0$"):
        track_lucas_kanade(frames, queries, max_error_px=0)
