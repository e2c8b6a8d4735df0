import math

import pytest
import torch

from geomtx.data import RoomStyle, render_scenes
from geomtx.geometry import normalize_scene
from geomtx.metrics import sparse_view_report
from geomtx.types import Cameras, DenseMap, Predictions, SceneBatch


def rooms(num_views: int, seeds: range = range(3)) -> SceneBatch:
    return normalize_scene(render_scenes(list(seeds), num_views, (36, 48), style=RoomStyle.nano()))[0]


def truth(batch: SceneBatch) -> Predictions:
    return Predictions(cameras=batch.cameras, depth=DenseMap(batch.depth, torch.ones_like(batch.depth)))


def test_the_truth_is_one_surface():
    report = sparse_view_report(truth, {2: [rooms(2)], 4: [rooms(4), rooms(4, range(5, 6))]})
    assert {views: scores.scenes for views, scores in report.items()} == {2: 3, 4: 4}
    for scores in report.values():
        assert scores.pose_auc_30 == 1
        assert scores.depth_inconsistency < 0.02  # edges and rounding of the look-up
        assert scores.fragmentation < 0.15  # what is hidden in every other view


def test_a_map_of_another_scale_is_a_shard():
    def scaled(batch: SceneBatch) -> Predictions:
        depth = batch.depth.clone()
        depth[:, 1] *= 1.2
        return truth(batch._replace(depth=depth))

    for views in (2, 4):
        good, bad = (sparse_view_report(p, {views: [rooms(views)]})[views] for p in (truth, scaled))
        assert bad.fragmentation > good.fragmentation + 0.2
        assert bad.depth_inconsistency > good.depth_inconsistency + 0.01
        assert bad.pose_auc_30 == 1


def test_a_wrong_camera_shows_in_all_three():
    def turned(batch: SceneBatch) -> Predictions:
        pose, intrinsics = batch.cameras
        pose = pose.clone()
        pose[:, 1, :, 3] += 0.2
        return truth(batch)._replace(cameras=Cameras(pose, intrinsics))

    good, bad = (sparse_view_report(p, {3: [rooms(3)]})[3] for p in (truth, turned))
    assert bad.pose_auc_30 < 0.9
    assert bad.fragmentation > good.fragmentation + 0.1
    assert bad.depth_inconsistency > good.depth_inconsistency


def test_without_known_cameras_there_is_no_auc():
    batch = rooms(2)
    scores = sparse_view_report(lambda _: truth(batch), {2: [batch._replace(cameras=None)]})[2]
    assert math.isnan(scores.pose_auc_30)
    assert scores.fragmentation < 0.15


def test_bad_input():
    with pytest.raises(ValueError, match=r"^scenes must have 3 views, got 2$"):
        sparse_view_report(truth, {3: [rooms(2)]})
    with pytest.raises(ValueError, match=r"^scenes must have at least 2 views, got 1$"):
        sparse_view_report(truth, {1: [rooms(1)]})
    with pytest.raises(ValueError, match=r"^scenes must not be empty, got none with 2 views$"):
        sparse_view_report(truth, {2: []})
    with pytest.raises(ValueError, match=r"^predictions must have cameras and depth, got none of one$"):
        sparse_view_report(lambda batch: truth(batch)._replace(depth=None), {2: [rooms(2)]})
