import copy
import math

import pytest

import geomtx
from geomtx.losses.multitask import MultitaskLoss
from geomtx.losses.terms import ConsistencyTerm, DenseTerm
from geomtx.training.config_file import parse_config
from geomtx.training.prepare import build_loss, check_rehearsal, leave_out_tracks, prepare_model
from geomtx.training.tasks.nvs import NvsTask
from geomtx.training.tasks.rehearsal import Rehearsal
from geomtx.training.tasks.vggt import VggtTask
from geomtx.training.tasks.video_tracker import VideoTask


def loss(**values: object) -> MultitaskLoss:
    return build_loss(parse_config({"loss": values}).loss)


def test_presets():
    assert loss().tasks == MultitaskLoss().tasks
    assert loss(preset="paper").tasks == MultitaskLoss.paper().tasks
    assert loss(preset="released").tasks == MultitaskLoss.released().tasks


def test_losses_of_added_heads_go_with_the_others():
    section = parse_config({"loss": {"terms": {"tracks": None, "depth": {"weight": 2.0}}}}).loss
    sky = DenseTerm("depth", weight=3.0)
    assert build_loss(section, others={"sky": sky}).tasks == {**build_loss(section).tasks, "sky": sky}


@pytest.mark.parametrize("section", [{"preset": "tiny"}, {"weights": "nano"}])
def test_the_head_of_tracks_is_left_out_where_scenes_have_none(section: dict, caplog: pytest.LogCaptureFixture):
    config = parse_config({"model": section})
    changed = leave_out_tracks(config).model
    heads = changed.heads or changed.numbers["heads"]
    assert list(heads) == ["camera", "depth", "points"]
    assert caplog.text.count("The head of tracks is left out of the model") == 1
    stored = {"heads": ["camera", "depth", "points"]}
    assert leave_out_tracks(config, stored).model == changed  # to resume, without a word
    assert caplog.text.count("left out") == 1


@pytest.mark.parametrize(
    "values",
    [
        {"data": {"num_tracks": 4}},
        {"freeze": ["*_head"]},
        {"model": {"preset": "tiny", "numbers": {"heads": ["tracks"]}}},
        {"model": {"weights": "nano", "heads": ["tracks"]}},
        {"model": {"kind": "nvs"}},
    ],
)
def test_the_head_of_tracks_stays_where_it_is_asked_for(values: dict):
    config = parse_config({"model": {"preset": "tiny"}, **values})
    assert leave_out_tracks(config) is config


def test_several_processes_train_no_head_that_never_runs(tiny_model: geomtx.VGGT):
    nvs, video = geomtx.VGGTForNVS.from_vggt(tiny_model), geomtx.VideoTracker.from_vggt(tiny_model, levels=2)
    tiny_model.add_head("mine", geomtx.CameraHead(2 * tiny_model.config.dim, 1, num_heads=2))
    for model, task, name in ((nvs, NvsTask(), "vggt"), (video, VideoTask(), "features.vggt")):
        check_rehearsal(model, task, 1)
        heads = ", ".join(f"{name}.{head}" for head in ("camera_head", "depth_head", "point_head", "track_head"))
        message = rf"^task.rehearsal must be on where .*, got none for {heads}, {name}.extra_heads; else freeze these$"
        with pytest.raises(ValueError, match=message):
            check_rehearsal(model, task, 2)
        prepare_model(frozen := copy.deepcopy(model), parse_config({"freeze": [f"{name}.*_head*"]}))
        check_rehearsal(frozen, task, 2)
    check_rehearsal(nvs, NvsTask(rehearsal=Rehearsal(0.5)), 2)
    check_rehearsal(video, VideoTask(rehearsal=Rehearsal(scenes=1)), 2)
    # What isn't known to leave heads out is let pass.
    check_rehearsal(tiny_model, VggtTask(), 2)
    check_rehearsal(nvs, object(), 2)


def test_other_numbers_and_tasks_off_and_on():
    terms = {"camera": {"weight": 2.0, "part_weights": [1, 1, 1]}, "tracks": None, "points": {"gradient": None}}
    tasks = loss(preset="released", terms=terms).tasks
    released = MultitaskLoss.released().tasks
    assert tasks.keys() == {"camera", "depth", "points"}
    assert (tasks["camera"].weight, tasks["camera"].part_weights) == (2.0, (1, 1, 1))
    assert tasks["camera"].clamp == released["camera"].clamp
    assert tasks["depth"] == released["depth"]
    assert tasks["points"] == DenseTerm("points", gradient=None)


def test_losses_across_views_are_off_until_asked_for():
    assert "consistency" not in loss().tasks
    tasks = loss(terms={"consistency": {"photometric": 0.5, "num_sources": 1}}).tasks
    assert tasks["consistency"] == ConsistencyTerm(photometric=0.5, num_sources=1)


def test_what_there_is_not():
    with pytest.raises(ValueError, match=r"^loss\.terms must be one of 'camera', .*, got 'x'$"):
        loss(terms={"x": {}})
    with pytest.raises(ValueError, match=r"^config key .*, got 'loss\.terms\.depth\.wait'; did you mean 'weight'\?$"):
        loss(terms={"depth": {"wait": 1}})
    with pytest.raises(ValueError, match=r"^loss\.terms\.depth\.weight must be a number, got 'five'$"):
        loss(terms={"depth": {"weight": "five"}})
    with pytest.raises(ValueError, match=r"^loss\.terms\.depth\.weight must be a finite number, got nan$"):
        loss(terms={"depth": {"weight": math.nan}})
    with pytest.raises(
        ValueError, match=r"^loss\.terms\.depth\.gradient must be one of 'gradient', None, got 'normal'$"
    ):
        loss(terms={"depth": {"gradient": "normal"}})


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("depth", {"quantile": 2}, r"quantile must be in \(0, 1\], got 2\.0"),
        ("depth", {"weight": -1}, r"weight must be at least 0, got -1\.0"),
        ("camera", {"decay": -1}, r"decay must be positive, got -1\.0"),
        ("tracks", {"threshold_px": 0}, r"threshold_px must be positive, got 0\.0"),
    ],
)
def test_numbers_out_of_range_before_the_first_step(task: str, changes: dict, message: str):
    with pytest.raises(ValueError, match=rf"^loss\.terms\.{task}\.{message}$"):
        loss(terms={task: changes})


def test_nothing_to_minimise():
    off = dict.fromkeys(("camera", "depth", "points", "tracks"))
    with pytest.raises(ValueError, match=r"^loss\.terms must leave a task with a weight above 0, got none$"):
        loss(terms=off)
    with pytest.raises(ValueError, match=r"^loss\.terms must leave .*, got depth with weight 0$"):
        loss(terms={**off, "depth": {"weight": 0}})
    assert loss(terms={**off, "consistency": {}}).tasks.keys() == {"consistency"}
