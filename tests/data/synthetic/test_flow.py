import pytest
import torch

from geomtx.data import MotionStyle, VideoStyle, render_videos
from geomtx.data.synthetic.flow import trace_flow
from geomtx.geometry import project

FRAMES, HW = 5, (24, 32)
PAIRS = [(0, 4), (3, 1), (2, 2)]


def seed():
    return int(torch.randint(2**31, ()))


def pixels():
    y, x = torch.meshgrid(torch.arange(HW[0]), torch.arange(HW[1]), indexing="ij")
    return torch.stack([x, y], dim=-1).double()


def test_flow_of_what_stands_still_is_that_of_the_cameras():
    number = seed()
    video = render_videos([number], FRAMES, HW, dtype=torch.float64)
    found = trace_flow(number, FRAMES, HW, PAIRS, dtype=torch.float64)
    for index, (one, two) in enumerate(PAIRS):
        coords, _ = project(
            video.points[0, one].flatten(0, 1), video.cameras.intrinsics[0, two], video.cameras.cam_from_world[0, two]
        )
        wanted = (coords.unflatten(0, HW) - pixels()).movedim(-1, 0)
        still = ~found.moving[one]
        torch.testing.assert_close(found.flow[index][:, still], wanted[:, still], rtol=1e-6, atol=1e-6)
    assert found.flow[2].abs().max() < 1e-6
    assert found.visible[2].all()


def test_flow_is_that_of_tracks():
    number = seed()
    style = VideoStyle(motion=MotionStyle(moving=1.0))
    tracks = render_videos([number], FRAMES, HW, num_tracks=400, style=style, dtype=torch.float64).tracks
    coords, seen = tracks.coords_px[0], tracks.visible[0]
    pairs = [(0, 2), (4, 1)]
    found = trace_flow(number, FRAMES, HW, pairs, style=style, dtype=torch.float64)
    for index, (one, two) in enumerate(pairs):
        near = (coords[one] - coords[one].round()).abs().amax(-1) < 0.1
        ours = near & seen[one]
        x, y = coords[one, ours].round().long().T
        difference = found.flow[index, :, y, x] - (coords[two] - coords[one])[ours].T
        assert difference.norm(dim=0).median() < 0.1
        assert (found.visible[index, y, x] == seen[two, ours]).double().mean() > 0.8


def test_nothing_moves_where_nothing_should():
    found = trace_flow(seed(), FRAMES, HW, PAIRS, style=VideoStyle(motion=MotionStyle(moving=0.0)))
    assert not found.moving.any()
    assert found.flow.shape == (3, 2, *HW)


def test_pairs_of_other_frames_are_refused():
    with pytest.raises(ValueError, match=r"^frame of a pair must be in 0 … 4, got 5$"):
        trace_flow(1, FRAMES, HW, [(0, 5)])
