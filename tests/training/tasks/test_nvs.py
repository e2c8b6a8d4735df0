import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import geomtx
from geomtx.data.synthetic.render import render_scenes
from geomtx.geometry import normalize_scene, relate_cameras
from geomtx.losses import PERCEPTUAL_TAPS
from geomtx.losses.perceptual import VGGFeatures
from geomtx.metrics import psnr
from geomtx.models.nvs import NVSConfig, VGGTForNVS
from geomtx.training.config import LossSection, ModelSection
from geomtx.training.config_file import load_config, parse_config
from geomtx.training.tasks.nvs import NvsTask
from geomtx.training.tasks.rehearsal import PreparedBatch, Rehearsal
from geomtx.training.tasks.task import build_task
from geomtx.training.trainer import Trainer
from geomtx.types import Cameras
from training.small_run import NUMBERS, is_equal, random_scenes, weights_of

HW = (28, 28)


def make_model(**changes) -> VGGTForNVS:
    model = VGGTForNVS(NVSConfig(vggt=geomtx.VGGTConfig.tiny(**NUMBERS), **changes))
    torch.nn.init.normal_(model.rgb_head.out.weight)
    return model


def small_run(folder: Path, *, resume: bool = False, task=None, **changes) -> Trainer:
    values = {
        "model": {"kind": "nvs", "preset": "tiny", "numbers": {**NUMBERS, "heads": ["camera", "depth"]}},
        "task": {"num_inputs": 2, "rehearsal": {"weight": 0.5, "share": 0.5}, **(task or {})},
        "data": {"image_hw": [28, 28], "images": 6, "views": {3: 1}, "num_tracks": 4},
        "validation": {"every": 2, "scenes": 1, "views": [3]},
        "optimiser": {"lr": 2e-3, "groups": {"vggt.*": {"lr": 0.1}}},
        "schedule": {"steps": 2},
        "log": {"every": 2, "tensorboard": False},
        **changes,
    }
    return Trainer(parse_config(values), folder, resume=resume, cpu=True, progress=False)


def test_views_are_drawn_anew_but_the_first_stays():
    batch = random_scenes(40, 5)
    batch = batch._replace(images=torch.arange(5.0)[None, :, None, None, None].expand(40, 5, 3, 28, 28))
    prepared = NvsTask(num_inputs=2, num_targets=2).prepare(batch).scenes
    order = prepared.images[:, :, 0, 0, 0].long()
    assert order.shape == (40, 4)
    assert (order[:, 0] == 0).all()
    assert (order.sort(dim=1).values.diff(dim=1) > 0).all()
    assert order[:, 1].unique().tolist() == [1, 2, 3, 4]
    expected = normalize_scene(batch)[0]
    rows = torch.arange(40)[:, None]
    assert torch.equal(prepared.depth, expected.depth[rows, order])
    assert torch.equal(prepared.tracks.coords_px, expected.tracks.coords_px[rows, order])
    assert torch.equal(prepared.tracks.valid, expected.tracks.valid)
    assert torch.equal(prepared.cameras.intrinsics, expected.cameras.intrinsics[rows, order])
    asked = NvsTask(num_inputs=2).prepare(batch._replace(query_views=torch.full((40, 4), 3))).scenes
    assert asked.query_views is None


def test_in_training_some_scenes_ask_for_any_view():
    batch = random_scenes(300, 5)
    batch = batch._replace(images=torch.arange(5.0)[None, :, None, None, None].expand(300, 5, 3, 28, 28))
    task = NvsTask(num_inputs=2, num_targets=2, redraw=0.4)
    prepared = task.prepare(batch).scenes
    order = prepared.images[:, :, 0, 0, 0].long()
    assert order.shape == (300, 4)
    assert (order[:, 0] == 0).all()
    inputs, targets = order[:, :2], order[:, 2:]
    assert (inputs[:, 0] != inputs[:, 1]).all()
    assert targets.unique().tolist() == [0, 1, 2, 3, 4]
    # Of two targets of five views, with replacement, 19 in 25 pairs have an input or the same view twice.
    repeated = (targets[..., None] == inputs[:, None]).any(dim=(1, 2)) | (targets[:, 0] == targets[:, 1])
    assert abs(repeated.float().mean() - 0.4 * (1 - 3 / 5 * 2 / 5)) < 0.1
    expected = normalize_scene(batch)[0]
    rows = torch.arange(300)[:, None]
    assert torch.equal(prepared.depth, expected.depth[rows, order])
    assert torch.equal(prepared.cameras.cam_from_world, expected.cameras.cam_from_world[rows, order])
    held_out = task.prepare(batch, training=False).images[:, :, 0, 0, 0]
    assert (held_out.sort(dim=1).values.diff(dim=1) > 0).all()


def test_the_unit_is_of_the_inputs_depth_or_of_their_cameras():
    batch = render_scenes(range(2), 4, HW)
    task = NvsTask(num_inputs=2)
    prepared = task.prepare(batch).scenes
    related = task.relate(prepared)
    inputs = prepared._replace(
        images=prepared.images[:, :2],
        cameras=Cameras(*(t[:, :2] for t in prepared.cameras)),
        depth=prepared.depth[:, :2],
        points=prepared.points[:, :2],
        mask=prepared.mask[:, :2],
        tracks=None,
    )
    _, scale = normalize_scene(inputs)
    torch.testing.assert_close(related.scale, scale)
    targets = Cameras(*(t[:, 2:] for t in prepared.cameras))
    by_cameras = NvsTask(num_inputs=2, unit="cameras").relate(prepared)
    torch.testing.assert_close(by_cameras.scale, relate_cameras(inputs.cameras, targets).scale)
    hidden = prepared._replace(mask=prepared.mask & torch.tensor([True, False])[:, None, None, None])
    torch.testing.assert_close(task.relate(hidden).scale, torch.stack([scale[0], by_cameras.scale[1]]))
    plain = prepared._replace(depth=None, points=None, mask=None)
    torch.testing.assert_close(task.relate(plain).scale, by_cameras.scale)


def test_what_is_predicted_is_the_targets_and_some_scenes():
    task, model = NvsTask(num_inputs=2, rehearsal=Rehearsal(share=0.3)), make_model()
    scenes = render_scenes(range(4), 4, HW, num_tracks=3)
    batch = task.prepare(scenes)
    outputs = task.predict(model.train(), batch)
    assert outputs.images.shape == (4, 2, 3, *HW)
    assert outputs.scenes.depth.value.shape == (2, 4, *HW)
    assert outputs.scenes.tracks.coords_px.shape == (2, 4, 3, 2)
    held_out = task.prepare(scenes, training=False)
    assert len(task.predict(model.eval(), held_out).scenes.depth.value) == 4
    assert NvsTask(num_inputs=2).predict(model, PreparedBatch(batch.scenes)).scenes is None


def test_known_cameras_go_in_where_the_model_takes_them():
    task, batch = NvsTask(num_inputs=2), render_scenes(range(2), 3, HW)
    model = make_model(known_cameras=True).eval()
    prepared = task.prepare(batch)
    before = task.predict(model, prepared).images
    torch.nn.init.normal_(model.conditioning.contract.weight)
    after = task.predict(model, prepared).images
    assert (after - before).abs().max() > 1e-6
    scenes = prepared.scenes._replace(camera_mask=torch.tensor([[True, False, True]]).expand(2, 3))
    moved = scenes.cameras.cam_from_world.clone()
    moved[:, 1, :, 3] += 1.0
    masked = PreparedBatch(scenes)
    other = PreparedBatch(scenes._replace(cameras=scenes.cameras._replace(cam_from_world=moved)))
    assert torch.equal(task.predict(model, other).images, task.predict(model, masked).images)
    assert (task.predict(model, masked).images - after).abs().max() > 1e-6


def test_the_loss_is_of_pictures_and_of_the_original_tasks():
    task, model = NvsTask(num_inputs=2, rehearsal=Rehearsal(0.25)), make_model().train()
    batch = task.prepare(render_scenes(range(2), 3, HW, num_tracks=3))
    outputs = task.predict(model, batch)
    report = task.build_loss(LossSection())(outputs, batch)
    alone = NvsTask(num_inputs=2).build_loss(LossSection())(outputs, batch)
    scenes = geomtx.MultitaskLoss()(outputs.scenes, batch.rehearsal)
    torch.testing.assert_close(report.total, alone.total + 0.25 * scenes.total)
    assert set(report.tasks) == {"rendering", *(f"rehearsal_{name}" for name in scenes.tasks)}
    torch.testing.assert_close(torch.stack(list(report.tasks.values())).sum(), report.total)
    assert {"mse", "dissimilarity", "rehearsal_loss_camera"} <= set(report.terms)


def test_targets_of_unknown_camera_count_for_nothing():
    task, model = NvsTask(num_inputs=2), make_model()
    prepared = task.prepare(render_scenes(range(2), 4, HW))
    mask = torch.tensor([[True, True, True, False], [False, True, True, True]])
    batch = PreparedBatch(prepared.scenes._replace(camera_mask=mask))
    outputs = task.predict(model, batch)
    report = task.build_loss(LossSection())(outputs, batch)
    kept = task.build_loss(LossSection())
    expected = kept.rendering(outputs.images[:1, :1], batch.images[:1, 2:3]).total
    # The second scene has no frame; `prepare` masks all of it.
    masked = PreparedBatch(batch.scenes._replace(camera_mask=mask & mask[:, :1]))
    torch.testing.assert_close(task.build_loss(LossSection())(outputs, masked).total, expected)
    assert report.total > 0
    scores = task.score(outputs, masked)
    torch.testing.assert_close(scores["psnr"][0], psnr(outputs.images[0, 0], batch.images[0, 2]))
    assert scores["psnr"].isnan().tolist() == scores["ssim"].isnan().tolist() == [False, True]


def test_the_rehearsed_scenes_are_scored():
    task, model = NvsTask(num_inputs=2, rehearsal=Rehearsal(share=0.5)), make_model().train()
    batch = task.prepare(render_scenes(range(2), 3, HW, num_tracks=2))
    scores = task.score(task.predict(model, batch), batch)
    assert scores["auc@30"].shape == (1,)
    assert scores["psnr"].shape == (2,)
    assert not scores["psnr"].isnan().any()


def test_without_weights_the_other_loss_is_said(caplog, tmp_path: Path):
    with caplog.at_level(logging.WARNING, logger="geomtx"):
        NvsTask().build_loss(LossSection())
    assert "No task.perceptual_weights: the loss of pictures is MSE + 0.2 (1 - SSIM)" in caplog.text
    caplog.clear()
    save_file(VGGFeatures(19, PERCEPTUAL_TAPS).state_dict(), tmp_path / "vgg.safetensors")
    with caplog.at_level(logging.WARNING, logger="geomtx"):
        loss = NvsTask(perceptual_weights=str(tmp_path / "vgg.safetensors")).build_loss(LossSection())
    assert not caplog.text
    assert loss.rendering.perceptual is not None


def test_models_of_a_configuration(tmp_path: Path):
    task = NvsTask(numbers={"isolate_targets": True})
    assert task.build_model(ModelSection(kind="nvs", preset="nano")).config == NVSConfig(
        vggt=geomtx.VGGTConfig.nano(), isolate_targets=True
    )
    nano = task.build_model(ModelSection(kind="nvs", weights="nano", heads=("camera",)))
    assert nano.config.vggt.heads == ("camera",)
    assert nano.config.isolate_targets
    assert NvsTask().rebuild_model(nano.config.to_dict()).config == nano.config
    nano.save_pretrained(tmp_path)
    again = NvsTask().build_model(ModelSection(kind="nvs", weights=str(tmp_path)))
    assert is_equal(again.state_dict(), nano.state_dict())


def test_stopped_and_resumed_is_as_if_never_stopped(tmp_path: Path):
    """With the checkpoint of its first step in place of its last one."""
    checkpoint = {"every": 1, "keep_every": 1}
    whole = small_run(tmp_path / "whole", checkpoint=checkpoint)
    whole.train()
    (tmp_path / "parts").mkdir()
    (tmp_path / "whole" / "checkpoint-0000001.pt").replace(tmp_path / "parts" / "checkpoint.pt")
    torch.manual_seed(123)
    resumed = small_run(tmp_path / "parts", resume=True, checkpoint=checkpoint)
    assert resumed.step == 1
    resumed.train()
    assert is_equal(weights_of(whole), weights_of(resumed))
    saved = VGGTForNVS.from_pretrained(tmp_path / "parts" / "weights")
    assert is_equal(saved.state_dict(), weights_of(resumed))
    log = (tmp_path / "whole" / "log.jsonl").read_text()
    assert '"psnr/3v"' in log
    assert '"ssim/3v"' in log


def test_frozen_stays_what_it_was_and_adapters_are_merged_when_saved(tmp_path: Path):
    changes = {"freeze": ["vggt"], "optimiser": {"lr": 2e-3}, "task": {"rehearsal": None}, "validation": {}}
    trainer = small_run(tmp_path / "frozen", **changes)
    before = weights_of(trainer)
    trainer.train()
    after = weights_of(trainer)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert {name.partition(".")[0] for name in changed} == {"ray_embedding", "rgb_head"}
    lora = {"patterns": ["vggt.encoder.*.qkv"], "rank": 2}
    trainer = small_run(tmp_path / "lora", **{**changes, "lora": lora})
    trainer.train()
    batch = trainer.task.prepare(render_scenes(range(2), 3, HW))
    saved = VGGTForNVS.from_pretrained(tmp_path / "lora" / "weights")
    torch.manual_seed(0)
    made = trainer.task.predict(trainer.bare_model.eval(), batch).images
    torch.testing.assert_close(trainer.task.predict(saved, batch).images, made)
    assert not is_equal(saved.vggt.state_dict(), {n[6:]: v for n, v in before.items() if n.startswith("vggt.")})


@pytest.mark.parametrize("name", ["nvs", "nvs_nano"])
def test_recipes_that_ship(name):
    config = load_config(name)
    task = build_task(config.model.kind, config.task)
    assert isinstance(task, NvsTask)
    assert min(config.data.views) > task.num_inputs
    assert not (config.data.augment)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inputs": 0}, r"^task.num_inputs must be a whole number, at least 1, got 0$"),
        ({"num_targets": 0}, r"^task.num_targets must be a whole number, at least 1, got 0$"),
        ({"unit": "metres"}, r"^task.unit must be one of 'depth', 'cameras', got 'metres'$"),
        ({"numbers": {"vggt": {}}}, r"^task.numbers must leave 'vggt' to the model's preset, .*, got it too$"),
        ({"numbers": {"rays": 1}}, r"^config key must be one of .*, got 'task.numbers.rays'"),
        ({"rehearsal": {"weight": -1}}, r"^task.rehearsal.weight must be at least 0, got -1.0$"),
        ({"rehearsal": {"share": 2}}, r"^task.rehearsal.share must be in 0 … 1, got 2.0$"),
        ({"redraw": 1.5}, r"^task.redraw must be in 0 … 1, got 1.5$"),
        ({"chroma_weight": -1}, r"^task.chroma_weight must be at least 0, got -1.0$"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        build_task("nvs", options)


def test_scenes_that_nothing_can_be_made_of():
    with pytest.raises(ValueError, match=r"^data.views must be above task.num_inputs, 3, got 3$"):
        NvsTask(num_inputs=3).prepare(random_scenes(1, 3))
    with pytest.raises(ValueError, match=r"^scenes must have cameras to synthesise views of, got none$"):
        NvsTask(num_inputs=2).prepare(random_scenes(1, 3)._replace(cameras=None))
