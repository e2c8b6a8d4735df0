from pathlib import Path

import pytest
import torch

import geomtx
from geomtx.geometry.scene_frame import normalize_scene
from geomtx.losses.multitask import MultitaskLoss
from geomtx.metrics.evaluate import evaluate_predictions, summarize
from geomtx.training.config import LossSection, ModelSection
from geomtx.training.tasks.task import build_task
from geomtx.training.tasks.vggt import VggtTask, queries_for
from training.small_run import NUMBERS, is_equal, random_scenes

TASK = VggtTask()


@pytest.fixture
def model() -> geomtx.VGGT:
    return geomtx.VGGT(geomtx.VGGTConfig.tiny(**NUMBERS))


def test_models_by_numbers_and_of_weights(model: geomtx.VGGT, tmp_path: Path):
    built = TASK.build_model(ModelSection(preset="tiny", numbers={"depth": 4, "heads": ["camera"]}))
    assert (built.config.depth, built.heads) == (4, ("camera",))
    assert TASK.rebuild_model(built.config.to_dict()).config == built.config
    model.half().save_pretrained(tmp_path)
    loaded = TASK.build_model(ModelSection(weights=str(tmp_path), heads=("depth", "camera")))
    assert set(loaded.heads) == {"camera", "depth"}
    want = {
        n: t.float() for n, t in model.state_dict().items() if n.partition(".")[0] not in {"point_head", "track_head"}
    }
    assert is_equal(loaded.state_dict(), want)
    with pytest.raises(ValueError, match=r"^heads must be one of 'camera', .*, got 'sky'$"):
        TASK.build_model(ModelSection(weights=str(tmp_path), heads=("sky",)))


class Nothing(torch.nn.Module):
    """A head of a user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(1))

    def forward(self, tokens: geomtx.Tokens) -> torch.Tensor:
        return tokens.layer(max(tokens.layers)).mean()


@pytest.mark.parametrize("kind", ["vggt", "nvs", "video_tracker"])
def test_added_heads_are_left_out_and_that_is_said(model: geomtx.VGGT, kind: str, tmp_path: Path, caplog):
    model.add_head("my_camera", geomtx.CameraHead(2 * model.config.dim, 1, num_heads=2))
    model.save_pretrained(tmp_path / "vggt")
    built = build_task(kind, {}).build_model(ModelSection(kind=kind, preset="tiny", weights=str(tmp_path / "vggt")))
    assert not [name for name in built.state_dict() if "my_camera" in name]
    assert (
        "Added heads of model.weights are left out, as the configuration has no losses for them: my_camera."
        in caplog.text
    )
    if kind != "vggt":
        built.vggt.add_head("mine", Nothing())
    caplog.clear()
    built.save_pretrained(tmp_path / "again")
    again = build_task(kind, {}).build_model(ModelSection(kind=kind, weights=str(tmp_path / "again")))
    assert (again if kind == "vggt" else again.vggt).heads == model.config.heads
    assert ("are left out, as the configuration has no losses for them: mine." in caplog.text) == (kind != "vggt")


def test_predictions_of_prepared_scenes(model: geomtx.VGGT):
    batch = random_scenes(2)
    prepared = TASK.prepare(batch)
    assert all(torch.equal(a, b) for a, b in zip(prepared.cameras, normalize_scene(batch)[0].cameras, strict=True))
    model.eval()
    with torch.no_grad():
        found = TASK.predict(model, prepared)
        want = model(prepared.images, queries_for(model, prepared))
    assert torch.equal(found.tracks.coords_px, want.tracks.coords_px)
    assert torch.equal(found.depth.value, want.depth.value)
    assert TASK.build_loss(LossSection())(found, prepared).total == MultitaskLoss()(want, prepared).total
    assert TASK.predict(model, prepared._replace(tracks=None)).tracks is None


def test_tracks_that_begin_later_are_left_out(model: geomtx.VGGT):
    batch = random_scenes(2)
    visible = batch.tracks.visible.clone()
    visible[:, 0] = True
    visible[0, 0, 1] = False
    coords = torch.where(visible[..., None], batch.tracks.coords_px, 1e4)
    before = torch.ones_like(batch.tracks.valid)
    prepared = TASK.prepare(batch._replace(tracks=geomtx.TrackLabels(coords, visible, before)))
    assert (before & ~prepared.tracks.valid).nonzero().tolist() == [[0, 1]]
    assert queries_for(model, prepared).abs().max() < 1e4
    assert queries_for(model, prepared._replace(tracks=None)) is None


def test_scores_are_those_of_evaluation(model: geomtx.VGGT):
    batch = random_scenes(3, num_views=3)
    prepared = TASK.prepare(batch)
    with torch.no_grad():
        predictions = TASK.predict(model.eval(), prepared)
    scores = TASK.score(predictions, prepared)
    want = summarize([evaluate_predictions(predictions, batch)])
    assert scores.keys() == {"auc@5", "auc@15", "auc@30", "abs_rel", "delta_1.25"}
    assert all(score.shape == (3,) for score in scores.values())
    for name, other in (("auc@30", "auc_30"), ("abs_rel", "depth_abs_rel"), ("delta_1.25", "depth_delta")):
        assert float(scores[name].mean()) == pytest.approx(want[other], rel=1e-5), name
    assert TASK.score(predictions._replace(depth=None), prepared).keys() == {"auc@5", "auc@15", "auc@30"}
