import numpy as np
import pytest
import torch

from geomtx.export.canvas import view_color
from geomtx.export.track_sheet import draw_track_sheet


def draw(seen: bool, **options) -> np.ndarray:
    video = torch.zeros(3, 3, 20, 30)
    coords = torch.tensor([[[5.0, 5], [20, 10]], [[6, 5], [20, 10]], [[7, 5], [20, 10]]])
    visible = torch.full((3, 2), seen)
    return np.asarray(draw_track_sheet(video, {"ours": (coords, visible)}, **{"scale": 4, **options}))


def test_a_frame_beside_the_other_and_discs_where_points_are_seen():
    sheet = draw(True)
    assert sheet.shape == (20 * 4 + 26, 3 * 124 + 4, 3)
    left, top = 4 + 2 * 124, 22
    center = sheet[top + int(5.5 * 4), left + int(7.5 * 4)]
    assert tuple(center) == view_color(0, 2)
    assert tuple(sheet[top + int(10.5 * 4), left + int(20.5 * 4)]) == view_color(1, 2)


def test_rings_where_points_are_hidden_and_a_trail_behind():
    left, top = 4 + 2 * 124, 22
    y = top + int(10.5 * 4)
    hidden = draw(False, trail=0)
    assert not hidden[y, left + int(20.5 * 4)].any()
    assert tuple(hidden[y, left + int(20.5 * 4) + 3]) == view_color(1, 2)
    assert tuple(draw(False, trail=2)[top + 22, left + int(6.0 * 4)]) == view_color(0, 2)
    assert not draw(False, trail=0)[top + 22, left + int(6.0 * 4)].any()


def test_chosen_frames_and_tracks_that_are_nowhere():
    assert draw(True, frames=[1]).shape[1] == 128
    video = torch.rand(2, 3, 20, 30)
    nowhere = torch.full((2, 1, 2), torch.nan)
    draw_track_sheet(video, {"a": (nowhere, torch.ones(2, 1, dtype=torch.bool))})


@pytest.mark.usefixtures("unchecked")
def test_errors():
    video = torch.zeros(3, 3, 20, 30)
    with pytest.raises(ValueError, match=r"^rows must have tracks, got none$"):
        draw_track_sheet(video, {})
    with pytest.raises(ValueError, match=r"^ours must have shape \(3, N, 2\), got \(2, 4, 2\)$"):
        draw_track_sheet(video, {"ours": (torch.zeros(2, 4, 2), torch.ones(2, 4, dtype=torch.bool))})
    with pytest.raises(ValueError, match=r"^ours must be bool, got torch.float32$"):
        draw_track_sheet(video, {"ours": (torch.zeros(3, 4, 2), torch.ones(3, 4))})
