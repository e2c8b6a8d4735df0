import pytest
import torch

from geomtx import VideoTracker, VideoTrackerConfig
from geomtx.scene.pairs import track_flow
from geomtx.types import Tracks

FRAMES, HW = 6, (36, 50)
PAIRS = torch.tensor([(0, 3), (3, 0), (2, 5), (0, 1)])
SPEED = torch.tensor([1.5, -0.75])  # pixels a frame, of everything


class Sliding(VideoTracker):
    """A tracker of a picture that slides: its tracks are the true ones, its feature maps those of a network."""

    def track(self, features, query_points, **options):
        self.clips = [*getattr(self, "clips", ()), features.shape[1]]
        frames = torch.arange(features.shape[1])[None, :, None]
        scale = torch.tensor([48 / HW[1], 36 / HW[0]])  # from the video to what the tracker sees
        steps = (frames - query_points[:, None, :, 0])[..., None]
        coords = query_points[:, None, :, 1:] + steps * SPEED * scale
        visibility = (coords[..., 0] < 40).float()
        found = super().track(features, query_points, **options)
        return found._replace(tracks=Tracks(coords, visibility, torch.ones_like(visibility)))


@pytest.fixture(scope="module")
def config():
    return VideoTrackerConfig.tiny(features="images")  # of stride 4


def test_flow_is_that_of_the_tracks_between_points_too(config):
    tracker = Sliding(config).eval()
    flow = track_flow(tracker, torch.rand(FRAMES, 3, *HW), PAIRS, spacing=7)
    assert flow.shape == (4, 2, *HW)
    for (first, second), each in zip(PAIRS.tolist(), flow, strict=True):
        known = each.isfinite().all(0)
        assert known[:, :25].all()
        assert not known[:, -2:].any()
        wanted = ((second - first) * SPEED)[:, None].expand(2, int(known.sum()))
        torch.testing.assert_close(each[:, known], wanted, rtol=1e-4, atol=1e-4)
    assert sorted(tracker.clips) == [4, 4, 4]  # only the frames that the pairs of one frame reach


def test_a_network_runs(config):
    flow = track_flow(VideoTracker(config).eval(), torch.rand(FRAMES, 3, *HW), PAIRS, spacing=16)
    assert flow.shape == (4, 2, *HW)
    assert not flow.requires_grad


def test_what_cannot_be_tracked_is_refused(config):
    tracker = VideoTracker(config).eval()
    with pytest.raises(ValueError, match=r"^video must have at least \d+ pixels a side, got \(4, 4\)$"):
        track_flow(tracker, torch.rand(FRAMES, 3, 5, 5), PAIRS)
    with pytest.raises(ValueError, match=r"^spacing must be a whole number, at least 1, got 0$"):
        track_flow(tracker, torch.rand(FRAMES, 3, *HW), PAIRS, spacing=0)
