import dataclasses
import logging

import pytest
import torch

from geomtx import VGGT, VGGTConfig, VideoTracker, VideoTrackerConfig
from geomtx.losses import window_loss
from geomtx.training.config import LossSection, ModelSection
from geomtx.training.config_file import load_config, parse_config
from geomtx.training.tasks.rehearsal import Rehearsal
from geomtx.training.tasks.task import Task, build_task
from geomtx.training.tasks.video_tracker import VideoTask, draw_queries, is_near, is_seen, query_points
from geomtx.training.trainer import Trainer
from geomtx.types import SceneBatch, TrackLabels, Tracks
from training.small_run import is_equal, weights_of

VGGT_NUMBERS = {
    "dim": 16, "patch_size": 7, "image_size": 28, "vit_depth": 1, "camera_depth": 1, "camera_iterations": 1,
    "depth": 1, "taps": [0, 0, 0, 0], "dpt_features": 8, "dpt_channels": [8, 8, 8, 8], "track_features": 8,
    "track_levels": 2, "track_depth": 1, "track_iterations": 1,
}  # fmt: skip
TRACKER = {"window": 4, "window_stride": 2, "stride": 2, "num_virtual": 2, "iterations": 2, "test_iterations": 2}
SECTION = ModelSection(kind="video_tracker", preset="tiny", numbers=VGGT_NUMBERS)
PRACTICE = Rehearsal(scenes=1, views=(2,), num_tracks=2, style={"num_solids": [1, 1], "shadows": False})


def draw_batch(num_videos: int = 2, num_frames: int = 5, num_tracks: int = 4) -> SceneBatch:
    shape = (num_videos, num_frames, num_tracks)
    coords = torch.rand(*shape, 2) * 27
    visible = torch.rand(shape) > 0.3
    visible[..., -1] = False  # never seen
    visible[:, 2, 0] = True
    return SceneBatch(
        torch.rand(num_videos, num_frames, 3, 28, 28),
        tracks=TrackLabels(coords, visible, torch.ones(num_videos, num_tracks, dtype=torch.bool)),
    )


def video_config(**changes):
    values = {
        "model": {"kind": "video_tracker", "preset": "tiny", "numbers": VGGT_NUMBERS},
        "task": {"tracker": TRACKER, "rehearsal": {**dataclasses.asdict(PRACTICE), "views": [2]}},
        "data": {"kind": "synthetic_video", "image_hw": [28, 28], "images": 10, "views": {5: 1}, "num_tracks": 4,
                 "style": PRACTICE.style},
        "optimiser": {"lr": 2e-3},
        "schedule": {"steps": 2, "shape": "linear"},
        "validation": {"every": 2, "scenes": 1, "views": [5]},
        "log": {"every": 2, "tensorboard": False},
    }  # fmt: skip
    return parse_config({**values, **changes})


def test_it_is_the_task_of_video_trackers():
    task = build_task("video_tracker", {"tracker": TRACKER, "rehearsal": {"scenes": 2, "views": [2]}})
    assert isinstance(task, VideoTask)
    assert isinstance(task, Task)
    assert task.rehearsal == Rehearsal(scenes=2, views=(2,))


def test_queries_are_where_points_are_seen():
    labels = draw_batch(8, 6, 50).tracks
    views, valid = draw_queries(labels, 0.75)
    assert torch.equal(valid, labels.visible.any(1))
    seen = labels.visible.gather(1, views[:, None])[:, 0]
    assert torch.equal(seen, valid)
    first = labels.visible.int().argmax(1)
    # A quarter of them is drawn from about four frames of which one is the first.
    assert 0.7 < (views == first)[valid].float().mean() < 0.93
    assert torch.equal(draw_queries(labels, 1.0)[0], first)
    anywhere = draw_queries(labels, 0.0)[0][valid]
    assert anywhere.unique().tolist() == list(range(6))


def test_query_points_are_those_of_valid_tracks():
    labels = draw_batch().tracks
    views, valid = draw_queries(labels, 0.5)
    labels = labels._replace(valid=valid, coords_px=torch.where(valid[:, None, :, None], labels.coords_px, torch.nan))
    points = query_points(labels, views)
    for b in range(2):
        for n in range(4):
            expected = [float(views[b, n]), *labels.coords_px[b, views[b, n], n].tolist()] if valid[b, n] else [0, 0, 0]
            assert points[b, n].tolist() == expected


def test_positions_far_outside_are_not_learned():
    coords = torch.tensor([[3.0, 3], [-9, 3], [-16, 3], [3, 29], [3, 41], [torch.nan, 1]])
    labels = TrackLabels(coords[None, None], torch.ones(1, 1, 6, dtype=torch.bool), torch.ones(1, 6, dtype=torch.bool))
    assert is_near(labels, (20, 30))[0, 0].tolist() == [True, True, False, True, False, False]


def test_what_is_seen_by_either_rule():
    tracks = Tracks(torch.zeros(1, 1, 3, 2), torch.tensor([[[0.95, 0.85, 0.95]]]), torch.tensor([[[0.9, 0.9, 0.5]]]))
    assert is_seen(tracks, "cotracker2").tolist() == [[[True, False, True]]]
    assert is_seen(tracks, "cotracker3").tolist() == [[[True, True, False]]]


@pytest.mark.parametrize("loss", ["cotracker2", "cotracker3"])
def test_predict_compare_and_score(loss):
    task = VideoTask(tracker=TRACKER, loss=loss, weight=0.5, rehearsal=dataclasses.replace(PRACTICE, weight=2.0))
    model = task.build_model(SECTION).train()
    batch = task.prepare(draw_batch())
    assert batch.scenes.query_views.shape == (2, 4)
    outputs = task.predict(model, batch)
    report = task.build_loss(LossSection())(outputs, batch)
    torch.testing.assert_close(report.total, sum(report.tasks.values()))
    torch.testing.assert_close(report.tasks["video"], 0.5 * report.terms["loss_video_total"])
    names = {"video", "rehearsal_camera", "rehearsal_depth", "rehearsal_points", "rehearsal_tracks"}
    assert report.tasks.keys() == names
    rehearsed = task.build_loss(LossSection()).original(outputs.scenes, batch.rehearsal)
    torch.testing.assert_close(report.tasks["rehearsal_camera"], 2 * rehearsed.tasks["camera"])
    report.total.backward()
    scores = task.score(outputs, batch)
    assert {name: value.shape for name, value in scores.items()} == dict.fromkeys(("aj", "delta", "oa"), (2,))
    assert task.prepare(draw_batch(), training=False).rehearsal is None


def test_errors_are_measured_in_images_of_one_width():
    task = VideoTask(tracker=TRACKER, loss_width=56)
    model = task.build_model(SECTION)
    batch = task.prepare(draw_batch())
    outputs = task.predict(model, batch)
    loss = window_loss(outputs.video.windows, batch.scenes.tracks, batch.scenes.query_views).position
    torch.testing.assert_close(task.build_loss(LossSection())(outputs, batch).terms["loss_video_position"], 2 * loss)


def test_models_to_begin_with(tmp_path):
    task = VideoTask(tracker=TRACKER)
    model = task.build_model(SECTION)
    assert model.config.window == 4
    assert model.config.vggt.dim == 16
    model.save_pretrained(tmp_path / "tracker")
    VGGT(VGGTConfig.from_dict({**VGGTConfig.tiny().to_dict(), **VGGT_NUMBERS})).save_pretrained(tmp_path / "vggt")
    started = task.build_model(ModelSection(kind="video_tracker", preset="tiny", weights=str(tmp_path / "vggt")))
    assert started.config == model.config
    same = VideoTask().build_model(ModelSection(kind="video_tracker", weights=str(tmp_path / "tracker")))
    assert is_equal(same.state_dict(), model.state_dict())
    assert task.rebuild_model(model.config.to_dict()).config == model.config
    with pytest.raises(
        ValueError, match=r"^task.tracker must be empty for weights of a VideoTracker, got \{'window': 4"
    ):
        task.build_model(ModelSection(kind="video_tracker", weights=str(tmp_path / "tracker")))
    with pytest.raises(ValueError, match=r"^model.weights must be none for features of images, got '"):
        VideoTask(tracker={"features": "images"}).build_model(
            ModelSection(kind="video_tracker", preset="tiny", weights=str(tmp_path / "vggt"))
        )


def test_a_run_stopped_and_resumed_is_the_run_that_was_not(tmp_path):
    """With the checkpoint of its first step in place of its last one."""
    config = video_config(checkpoint={"every": 1, "keep_every": 1})
    whole = Trainer(config, tmp_path / "whole", cpu=True, progress=False)
    folder = whole.train()
    (tmp_path / "parts").mkdir()
    (tmp_path / "whole" / "checkpoint-0000001.pt").replace(tmp_path / "parts" / "checkpoint.pt")
    second = Trainer(config, tmp_path / "parts", cpu=True, progress=False, resume=True)
    assert second.step == 1
    second.train()
    assert is_equal(weights_of(second), weights_of(whole))
    loaded = VideoTracker.from_pretrained(folder)
    assert is_equal(loaded.state_dict(), whole.bare_model.state_dict())


def test_the_frozen_vggt_stays_what_it_was(tmp_path):
    config = video_config(freeze=["features.vggt"], task={"tracker": TRACKER}, validation={})
    trainer = Trainer(config, tmp_path, cpu=True, progress=False)
    before = weights_of(trainer)
    trainer.train()
    changed = {name for name, value in weights_of(trainer).items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in changed} == {"features", "tracker"}
    assert not [name for name in changed if name.startswith("features.vggt")]
    assert [name for name in changed if name.startswith("features.decoder")]


@pytest.mark.parametrize("name", ["video_tracker", "video_tracker_nano"])
def test_recipes_are_configurations(name):
    config = load_config(name)
    task = build_task(config.model.kind, config.task)
    assert isinstance(task, VideoTask)
    assert config.schedule.shape == "linear"


def test_numbers_of_the_published_recipe():
    config = load_config("video_tracker")
    assert (config.optimiser.lr, config.optimiser.weight_decay, config.optimiser.eps) == (5e-4, 1e-5, 1e-8)
    assert (config.data.image_hw, config.data.num_tracks, config.data.views) == ((378, 504), 768, {24: 1.0})
    assert config.optimiser.groups["features.vggt.*"].lr == 0.1
    tracker = VideoTrackerConfig()
    assert (tracker.window, tracker.window_stride, tracker.num_virtual, tracker.stride) == (8, 4, 64, 4)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"query_first": 1.5}, r"^query_first must be in 0 … 1, got 1.5$"),
        ({"loss": "raft"}, r"^loss must be one of 'cotracker2', 'cotracker3', got 'raft'$"),
        ({"loss_width": 0}, r"^loss_width must be a whole number, at least 1, got 0$"),
        ({"weight": -1}, r"^weight must be at least 0, got -1$"),
        (
            {"tracker": {"vggt": {}}},
            r"^tracker must leave 'vggt' to the model's preset, numbers or weights, got it too$",
        ),
        ({"rehearsal": Rehearsal()}, r"^rehearsal.scenes must be given for videos, whose own scenes move, got none$"),
    ],
)
def test_errors(values, error):
    with pytest.raises(ValueError, match=error):
        VideoTask(**values)


def test_a_batch_without_tracks():
    with pytest.raises(ValueError, match=r"^batch must have tracks to train a tracker, got none; "):
        VideoTask().prepare(draw_batch()._replace(tracks=None))
    with pytest.raises(ValueError, match=r"^data.views must be at least 2 to track through, got 1$"):
        VideoTask().prepare(draw_batch()._replace(images=torch.zeros(2, 1, 3, 28, 28)))
    with pytest.raises(ValueError, match=r"^config key must be .*, got 'task.tracker.windows'; did you mean 'window'"):
        build_task("video_tracker", {"tracker": {"windows": 4}})


def test_numbers_of_views_are_no_matter_for_videos(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="geomtx"):
        Trainer(video_config(), tmp_path, cpu=True, progress=False)
    assert caplog.messages == []
