import math

import pytest
import torch

import geomtx
from geomtx.geometry.normalization import normalize_scene
from geomtx.losses.multitask import MultitaskLoss
from geomtx.metrics.evaluate import evaluate_predictions, summarize
from geomtx.training.step import predict
from geomtx.training.validation import validate
from training.small_run import NUMBERS, random_scenes


@pytest.fixture
def model() -> geomtx.VGGT:
    return geomtx.VGGT(geomtx.VGGTConfig.tiny(**NUMBERS, heads=("camera", "depth"))).train()


def test_scores_are_those_of_evaluation(model: geomtx.VGGT):
    batches = [(3, random_scenes(2, num_views=3)), (3, random_scenes(1, num_views=3))]
    got = validate(model, MultitaskLoss(), batches)
    assert model.training
    model.eval()
    with torch.no_grad():
        evaluations = [evaluate_predictions(predict(model, normalize_scene(batch)[0]), batch) for _, batch in batches]
    want = summarize(evaluations)
    for name, other in (("auc@30", "auc_30"), ("abs_rel", "depth_abs_rel"), ("delta_1.25", "depth_delta")):
        assert got[f"{name}/3v"] == pytest.approx(want[other], rel=1e-5), name


def test_a_scene_without_truth_spoils_no_mean(model: geomtx.VGGT):
    scenes = random_scenes(2)
    scenes.mask[1] = False
    half = scenes._replace(camera_mask=torch.tensor([[True, True], [True, False]]))
    got = validate(model, MultitaskLoss(), [(2, half)])
    alone = validate(model, MultitaskLoss(), [(2, random_scenes(1)), (2, half)])
    assert all(math.isfinite(value) for value in (*got.values(), *alone.values()))
    first = type(scenes)(
        scenes.images[:1], geomtx.Cameras(*(part[:1] for part in scenes.cameras)), None, scenes.depth[:1]
    )
    for name in ("auc@30/2v", "abs_rel/2v"):
        assert got[name] == pytest.approx(validate(model, MultitaskLoss(), [(2, first)])[name], rel=1e-5)
