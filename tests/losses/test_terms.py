import pytest
import torch
from torch import Tensor

import geomtx
from geomtx import Cameras, DenseMap, MultitaskLoss, Predictions, SceneBatch, TrackLabels
from geomtx.losses import ConsistencyTerm
from geomtx.losses.terms import HeadTerm, Term


def consistent_scene() -> tuple[Predictions, SceneBatch]:
    """A wall of smooth colours seen by cameras that move sideways, predicted without error."""
    b, s, h, w = 2, 3, 40, 48
    cameras = torch.eye(3, 4, dtype=torch.float64).repeat(b, s, 1, 1)
    cameras[..., 0, 3] = -0.1 * torch.arange(s)
    intrinsics = torch.tensor([[50.0, 0, 24], [0, 50, 20], [0, 0, 1]], dtype=torch.float64).expand(b, s, 3, 3)
    depth = torch.full((b, s, h, w), 2.0, dtype=torch.float64)
    points = geomtx.unproject(depth, intrinsics, cameras)
    images = torch.stack([torch.sin(3 * points[..., 0] + k) * torch.cos(4 * points[..., 1]) for k in range(3)], dim=2)
    queries = torch.rand(b, 60, 2).double() * torch.tensor([30.0, 35]) + torch.tensor([12.0, 2])
    shift = torch.tensor([2.5, 0.0]) * torch.arange(s)[:, None, None]
    seen = torch.ones(b, s, 60, dtype=torch.bool)
    tracks = TrackLabels(queries[:, None] - shift, seen, seen[:, 0])
    batch = SceneBatch(images / 2 + 0.5, Cameras(cameras, intrinsics), depth=depth, points=points, tracks=tracks)
    ones = torch.ones_like(depth)
    leaf = Cameras(cameras.clone().requires_grad_(), intrinsics.clone().requires_grad_())
    predictions = Predictions(cameras=leaf, depth=DenseMap(depth.clone().requires_grad_(), ones))
    return predictions, batch


CROSS_VIEW = {"loss_photometric", "loss_depth_consistency", "loss_epipolar", "loss_track_points"}
ALONE = {"camera": None, "depth": None, "points": None, "tracks": None}


def test_views_that_agree_have_no_loss():
    predictions, batch = consistent_scene()
    report = MultitaskLoss(**ALONE, consistency=ConsistencyTerm())(predictions, batch)
    assert report.terms.keys() == CROSS_VIEW
    assert all(value < 1e-3 for value in report.terms.values())
    assert report.terms["loss_depth_consistency"] < 1e-9
    assert report.terms["loss_epipolar"] < 1e-9
    assert report.terms["loss_track_points"] < 1e-9


def disagreement(**options) -> tuple[dict[str, Tensor], Tensor, Predictions]:
    predictions, batch = consistent_scene()
    with torch.no_grad():
        predictions.cameras.cam_from_world[:, 1, :, 3] += torch.tensor([0.03, 0.05, 0.0])
        predictions.depth.value[:, 2] *= 1.1
    report = MultitaskLoss(**ALONE, consistency=ConsistencyTerm(**options))(predictions, batch)
    return report.terms, report.total, predictions


def test_views_that_disagree_have_all_of_them():
    terms, total, predictions = disagreement(weight=2.0)
    assert all(value > 1e-3 for value in terms.values())
    weights = {"photometric": 0.1, "depth_consistency": 0.1, "epipolar": 0.01, "track_points": 5.0}
    torch.testing.assert_close(total, 2 * sum(weight * terms[f"loss_{name}"] for name, weight in weights.items()))
    total.backward()
    assert (predictions.depth.value.grad != 0).any()
    assert (predictions.cameras.cam_from_world.grad != 0).any()
    assert (predictions.cameras.intrinsics.grad != 0).any()


@pytest.mark.parametrize("part", ["photometric", "epipolar", "depth", "track_points"])
def test_a_weight_of_zero_leaves_a_part_out(part):
    terms, _, _ = disagreement(**{part: 0.0})
    assert terms.keys() == CROSS_VIEW - {f"loss_{part}", f"loss_{part}_consistency"}


def test_whose_cameras():
    _, total, predictions = disagreement(geometry="gt")
    total.backward()
    assert predictions.cameras.cam_from_world.grad is None
    assert (predictions.depth.value.grad != 0).any()
    terms, total, predictions = disagreement(geometry="mixed")
    assert terms.keys() == CROSS_VIEW
    total.backward()
    assert (predictions.cameras.cam_from_world.grad != 0).any()
    assert predictions.cameras.intrinsics.grad is None


def test_cross_view_parts_without_what_they_need():
    predictions, batch = consistent_scene()
    term = ConsistencyTerm()
    assert term(predictions._replace(cameras=None, depth=None), batch) is None
    assert term(predictions, batch._replace(tracks=None)).parts.keys() == {"loss_photometric", "loss_depth_consistency"}
    assert term(predictions._replace(depth=None), batch).parts.keys() == {"loss_epipolar"}
    assert term(predictions, batch._replace(cameras=None)).parts.keys() == CROSS_VIEW
    mixed = ConsistencyTerm(geometry="mixed")
    assert mixed(predictions, batch._replace(cameras=None, tracks=None)) is None
    assert ConsistencyTerm(geometry="gt")(predictions._replace(cameras=None), batch).parts.keys() == CROSS_VIEW - {
        "loss_epipolar"
    }
    points = predictions._replace(cameras=None, depth=None, points=DenseMap(batch.points + 1, predictions.depth[1]))
    assert term(points, batch).parts.keys() == {"loss_track_points"}


def test_a_single_view_agrees_with_itself():
    predictions, batch = consistent_scene()
    one = Predictions(
        cameras=Cameras(*(x[:, :1] for x in predictions.cameras)),
        depth=DenseMap(*(x[:, :1] for x in predictions.depth)),
    )
    batch = SceneBatch(batch.images[:, :1])
    report = MultitaskLoss(**ALONE, consistency=ConsistencyTerm())(one, batch)
    assert report.total == 0
    report.total.backward()
    assert (predictions.depth.value.grad == 0).all()


def test_off_unless_asked_for():
    assert all(
        "consistency" not in preset().tasks for preset in (MultitaskLoss, MultitaskLoss.paper, MultitaskLoss.released)
    )


@pytest.mark.usefixtures("unchecked")
def test_bad_geometry():
    with pytest.raises(ValueError, match=r"^geometry must be one of 'pred', 'mixed', 'gt', got 'true'$"):
        ConsistencyTerm(geometry="true")


BATCH = SceneBatch(torch.zeros(1, 1, 3, 4, 4))


def test_it_reads_its_own_head():
    term = HeadTerm("a", lambda prediction, batch: prediction.mean() + batch.images.shape[1], 0.5)
    assert isinstance(term, Term)
    found = term(Predictions(extra={"a": torch.full((2,), 3.0), "b": torch.ones(2)}), BATCH)
    assert found.total == 4
    assert found.parts == {"loss_a": found.total}
    assert term(Predictions(extra={"b": torch.ones(2)}), BATCH) is None
    assert term(Predictions(), BATCH) is None


def test_labels_that_are_not_there():
    assert HeadTerm("a", lambda *_: None)(Predictions(extra={"a": 1}), BATCH) is None


def test_a_loss_is_a_scalar_and_a_weight_not_negative():
    with pytest.raises(ValueError, match=r"^loss of 'a' must be a scalar, got shape \(2,\)$"):
        HeadTerm("a", lambda prediction, _: prediction)(Predictions(extra={"a": torch.ones(2)}), BATCH)
    with pytest.raises(ValueError, match=r"^weight must be at least 0, got -1$"):
        HeadTerm("a", lambda *_: None, weight=-1)
