import math

import pytest
import torch
from torch import Tensor

from geomtx.metrics import scale_to_raster, select_queries, track_scores
from geomtx.metrics.tracking import THRESHOLDS_PX


def vector() -> tuple[Tensor, ...]:
    """Test vector T9: two tracks at the origin in four frames, queried in frames 0 and 1."""
    true = torch.zeros(4, 2, 2)
    visible = torch.tensor([[True, False], [True, True], [True, True], [False, True]])
    predicted = torch.zeros(4, 2, 2)
    predicted[1, 0, 0], predicted[2, 0, 0], predicted[2, 1, 1], predicted[3, 1, 0] = 0.5, 3, 6, 20
    seen = torch.ones(4, 2, dtype=torch.bool)
    seen[3, 1] = False
    return predicted, seen, true, visible, torch.tensor([0, 1])


def random_tracks(*shape: int) -> tuple[Tensor, ...]:
    true = torch.rand(*shape, 2) * 255
    predicted = true + torch.randn(*shape, 2) * 6
    frames = torch.randint(0, shape[-2], (*shape[:-2], shape[-1]))
    return predicted, torch.rand(shape) < 0.7, true, torch.rand(shape) < 0.7, frames


def by_loops(predicted, seen, true, visible, frames, mode) -> tuple[float, list[float], list[float]]:
    """One video, cell by cell."""
    right = cells = in_view = alarms = 0
    close, hits = [0] * 5, [0] * 5
    for frame in range(len(true)):
        for track, query in enumerate(frames.tolist()):
            if frame == query or (mode == "first" and frame < query):
                continue
            cells += 1
            right += bool(seen[frame, track] == visible[frame, track])
            in_view += int(visible[frame, track])
            alarms += int(seen[frame, track])
            distance = math.dist(predicted[frame, track].tolist(), true[frame, track].tolist())
            for k, limit in enumerate(THRESHOLDS_PX):
                within = bool(visible[frame, track]) and distance < limit
                close[k] += within
                hits[k] += within and bool(seen[frame, track])
    jaccard = [h / (in_view + alarms - h) for h in hits]
    return right / cells, [c / in_view for c in close], jaccard


@pytest.mark.parametrize(
    ("mode", "accuracy", "average_jaccard"), [("first", 0.6, 0.36380952), ("strided", 0.5, 0.30714286)]
)
def test_scores_of_the_protocol(mode, accuracy, average_jaccard):
    scores = track_scores(*vector(), mode=mode)
    assert scores.occlusion_accuracy.item() == pytest.approx(accuracy)
    assert scores.delta.tolist() == [0.25, 0.25, 0.5, 0.75, 0.75]
    assert scores.average_delta == 0.5
    assert scores.average_jaccard.item() == pytest.approx(average_jaccard)
    if mode == "first":
        assert scores.jaccard.tolist() == pytest.approx([1 / 7, 1 / 7, 1 / 3, 0.6, 0.6])


@pytest.mark.parametrize("mode", ["first", "strided"])
def test_every_video_by_loops(mode):
    tracks = random_tracks(3, 6, 9)
    scores = track_scores(*tracks, mode=mode)
    for video in range(3):
        accuracy, delta, jaccard = by_loops(*(x[video] for x in tracks), mode)
        assert scores.occlusion_accuracy[video].item() == pytest.approx(accuracy)
        assert scores.delta[video].tolist() == pytest.approx(delta)
        assert scores.jaccard[video].tolist() == pytest.approx(jaccard)
    torch.testing.assert_close(scores.average_jaccard, scores.jaccard.mean(-1))
    torch.testing.assert_close(scores.average_delta, scores.delta.mean(-1))


def test_the_truth_scores_one():
    _, _, true, visible, frames = random_tracks(2, 6, 9)
    scores = track_scores(true, visible, true, visible, frames, mode="strided")
    for score in scores:
        assert (score == 1).all()


def test_a_distance_equal_to_the_threshold_is_outside():
    predicted = torch.tensor([[[0.0, 0]], [[4.0, 0]]])
    seen = torch.ones(2, 1, dtype=torch.bool)
    scores = track_scores(predicted, seen, torch.zeros(2, 1, 2), seen, torch.zeros(1).long())
    assert scores.delta.tolist() == [0, 0, 0, 1, 1]


def test_empty_slots_and_hidden_positions_count_for_nothing():
    predicted, seen, true, visible, frames = random_tracks(2, 5, 8)
    valid = torch.rand(2, 8) < 0.6
    valid[:, 0] = True
    scores = track_scores(predicted, seen, true, visible, frames, mode="strided", valid=valid)
    for video in range(2):
        kept = [x[video][:, valid[video]] for x in (predicted, seen, true, visible)]
        alone = track_scores(*kept, frames[video, valid[video]], mode="strided")
        torch.testing.assert_close(scores.jaccard[video], alone.jaccard)
        torch.testing.assert_close(scores.occlusion_accuracy[video], alone.occlusion_accuracy)
    true[~visible] = math.nan
    predicted[~valid[:, None].expand(2, 5, 8)] = math.nan
    again = track_scores(predicted, seen, true, visible, frames, mode="strided", valid=valid)
    torch.testing.assert_close(again, scores)


def test_positions_that_are_not_finite_are_misses():
    predicted, seen, true, visible, frames = vector()
    far = track_scores(predicted + 1000, seen, true, visible, frames)
    broken = track_scores(predicted * math.nan, seen, true, visible, frames)
    torch.testing.assert_close(broken, far)
    assert far.average_jaccard == 0


def test_nothing_to_score_is_nan():
    predicted, seen, true, visible, frames = vector()
    nothing = track_scores(predicted, seen, true, visible, frames, valid=torch.zeros(2, dtype=torch.bool))
    for score in nothing:
        assert score.isnan().all()
    hidden = track_scores(predicted, seen, true, torch.zeros_like(visible), frames)
    assert hidden.average_delta.isnan()
    assert hidden.average_jaccard == 0, "all that is seen is a false alarm"


def test_corners_stay_corners():
    corners = torch.tensor([[0.0, 0], [83, 55], [41.5, 27.5]])
    assert scale_to_raster(corners, (56, 84)).tolist() == [[0, 0], [255, 255], [127.5, 127.5]]


def test_queries():
    visible = torch.zeros(11, 3, dtype=torch.bool)
    visible[3:9, 0] = True
    visible[[0, 5, 10], 2] = True
    tracks, frames = select_queries(visible)
    assert (tracks.tolist(), frames.tolist()) == ([0, 2], [3, 0])
    tracks, frames = select_queries(visible, mode="strided")
    assert sorted(zip(tracks.tolist(), frames.tolist(), strict=True)) == [(0, 5), (2, 0), (2, 5), (2, 10)]
    assert select_queries(visible, mode="strided", stride=4)[1].tolist() == [0, 4, 8]


@pytest.mark.usefixtures("unchecked")
def test_what_is_refused():
    predicted, seen, true, visible, frames = vector()
    with pytest.raises(ValueError, match=r"^predicted_px must have shape \(\.\.\., S, N, 2\), got \(2, 2\)$"):
        track_scores(predicted[0], seen, true, visible, frames)
    with pytest.raises(ValueError, match=r"^true_visible must have shape \(4, 2\), got \(3, 2\)$"):
        track_scores(predicted, seen, true, visible[:3], frames)
    with pytest.raises(ValueError, match=r"^predicted_visible must be bool, got torch.float32$"):
        track_scores(predicted, seen.float(), true, visible, frames)
    with pytest.raises(ValueError, match=r"^query_frames must have shape \(2\), got \(1,\)$"):
        track_scores(predicted, seen, true, visible, frames[:1])
    with pytest.raises(ValueError, match=r"^valid must have shape \(2\), got \(4, 2\)$"):
        track_scores(predicted, seen, true, visible, frames, valid=visible)
    with pytest.raises(ValueError, match=r"^mode must be one of 'first', 'strided', got 'last'$"):
        track_scores(predicted, seen, true, visible, frames, mode="last")
    with pytest.raises(ValueError, match=r"^image_hw must be at least \(2, 2\), got \(1, 5\)$"):
        scale_to_raster(predicted, (1, 5))
    with pytest.raises(ValueError, match=r"^visible must have shape \(S, N\), got \(4,\)$"):
        select_queries(visible[:, 0])
    with pytest.raises(ValueError, match=r"^stride must be positive, got 0$"):
        select_queries(visible, mode="strided", stride=0)
