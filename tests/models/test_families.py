"""What every family of models does, whatever its parts are; the families are in `families.py`."""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

import geomtx
from families import FAMILIES, build, draw_images, normals, some_patches, take_scene
from geomtx import Predictions, Scene
from geomtx.cli.checkpoint_summary import summarize_checkpoint
from geomtx.inference import GlobalApproximation, MemoryPlan, predict
from geomtx.inference.quantize import is_quantized
from reference import named_tensors, relative_error

needs_torchao = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="needs torchao, which the extra quant brings"
)


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture
def images(family) -> torch.Tensor:
    return draw_images(family, 2, 3)


def assert_same(got, expected, tolerance: float = 1e-9) -> None:
    got, expected = named_tensors(got), named_tensors(expected)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=tolerance, atol=tolerance, msg=lambda text, n=name: n + text)


# Scenes, views, masks


@torch.no_grad()
def test_scenes_of_a_batch_do_not_see_each_other(family, images):
    model, mask = build(family).double(), some_patches(images)
    both = model(images, patch_mask=mask)
    for scene in range(2):
        assert_same(model(images[scene], patch_mask=mask[scene]), take_scene(both, scene))


@torch.no_grad()
def test_views_have_no_order_but_for_a_first_that_is_the_reference(family):
    model, images = build(family).double(), draw_images(family, 1, 4)
    order = [0, 3, 1, 2] if FAMILIES[family].first_is_reference else [2, 0, 3, 1]
    whole = model(images)
    assert_same(model(images[:, order]), whole.take_views(order))
    seen = (model(images[:, :3]).depth.value - whole.depth.value[:, :3]).abs().max()
    assert (seen > 1e-6) == FAMILIES[family].across


@torch.no_grad()
def test_what_masked_patches_hold_changes_nothing(family, images):
    model, mask = build(family).double(), some_patches(images)
    size = FAMILIES[family].patch_size
    pixels = mask.repeat_interleave(size, dim=2).repeat_interleave(size, dim=3)[:, :, None]
    expected = model(images, patch_mask=mask)
    for content in (torch.nan, -1e6):
        assert_same(model(images.masked_fill(~pixels, content), patch_mask=mask), expected, 0)
    assert all(tensor.isfinite().all() for tensor in named_tensors(expected).values())
    whole = torch.ones_like(mask)
    assert_same(model(images, patch_mask=whole), model(images))


# Ways of running


@torch.no_grad()
def test_ways_of_running_give_the_same(family, images):
    model, mask = build(family).double(), some_patches(images)
    model.add_head("normals", normals(family).double())
    for fewer in (None, GlobalApproximation(2, 2), GlobalApproximation(num_local_layers=1)):
        if fewer is not None and not FAMILIES[family].across:
            with pytest.raises(ValueError, match=r"^approximation must be None where no block is across views, got G"):
                predict(model, images, approximation=fewer)
            continue
        expected = predict(model, images, None, mask, approximation=fewer)
        for plan in (MemoryPlan(2, 7, "cpu"), MemoryPlan(1, 1000, part_device="cpu"), MemoryPlan(1)):
            assert_same(predict(model, images, None, mask, plan=plan, approximation=fewer), expected)
    assert_same(predict(model, images, None, mask), model(images, patch_mask=mask))
    for head in model.heads:
        assert_same(predict(model, images, heads=(head,), plan=MemoryPlan(2, 7)), model(images, heads=(head,)))
    with torch.enable_grad():
        assert_same(predict(model, images, recompute=True), model(images))


def test_recomputation_has_the_same_gradients(family, images):
    model = build(family).double()
    found = []
    for options in ({}, {"recompute": True}):
        predictions = named_tensors(predict(model, images, **options))
        total = sum(tensor.cos().sum() for tensor in predictions.values())
        learning = [parameter for parameter in model.encoder.backbone.parameters() if parameter.requires_grad]
        found.append(torch.autograd.grad(total, learning, allow_unused=True))
    for got, expected in zip(*found, strict=True):
        assert (got is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("how", ["bfloat16", "float16", "autocast"])
@torch.no_grad()
def test_half_precision(family, how, images):
    """Predictions are in float32, finite, and near those of double precision."""
    model = build(family).double()
    expected = model(images)
    other = copy.deepcopy(model).to(torch.float32 if how == "autocast" else getattr(torch, how))
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        found = named_tensors(other(images.float()))
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in found.values())
    assert relative_error(found["depth.value"], expected.depth.value) < (2e-3 if how == "float16" else 2e-2)
    if expected.cameras is not None:
        assert relative_error(found["cameras.cam_from_world"], expected.cameras.cam_from_world) < 5e-2


@needs_torchao
@torch.no_grad()
def test_quantised_weights_stay_near(family, images):
    model = build(family)
    expected = model(images.float())
    geomtx.quantize_model(model, "int8")
    assert is_quantized(model)
    found = model(images.float())
    assert 0 < relative_error(found.depth.value, expected.depth.value) < 0.05
    assert_same(predict(model, images.float(), plan=MemoryPlan(2, 7)), found, 2e-3)


# Heads, adapters, freezing


@torch.no_grad()
def test_a_head_is_added_and_taken_off(family, images, tmp_path: Path):
    model, head = build(family).double(), normals(family).double()
    before = model(images)
    model.add_head("normals", head)
    after = model(images)
    assert model.heads == (*model.config.heads, "normals")
    assert_same(after._replace(extra=None), before, 0)
    assert_same(after.extra["normals"], head(model.encoder(images)), 0)
    assert_same(model(images, heads=("normals",)).extra, after.extra, 0)
    model.save_pretrained(tmp_path)
    loaded = geomtx.load_model(tmp_path)
    assert type(loaded) is type(model)
    assert_same(loaded(images), after, 0)
    some = type(model).from_pretrained(tmp_path, heads=("normals",))
    assert_same(some(images).extra, after.extra, 0)
    assert type(model).from_pretrained(tmp_path, extra_heads={"normals": None}).heads == model.config.heads
    assert model.remove_head("normals") is head
    assert_same(model(images), before, 0)
    with pytest.raises(ValueError, match=r"^name must not be one of .*, got 'depth'$"):
        model.add_head("depth", nn.Identity())


def test_no_head_is_added_under_the_name_of_one_of_any_family():
    model = build("vggt")
    for head in {head for name in FAMILIES for head in build(name).config.heads}:
        with pytest.raises(ValueError, match=rf"^name must not be one of .*, got '{head}'$"):
            model.add_head(head, nn.Identity())


def test_adapters_are_trained_and_merged(family, images):
    model, images = build(family), images[:1].float()
    expected = model(images)
    geomtx.freeze(model, ["*"])
    names = geomtx.add_lora(model, ["encoder.*.attention.*"], rank=2)
    assert_same(model(images), expected, 1e-5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".up"):
                parameter.normal_(std=0.1)
    adapted = model(images)
    assert (adapted.depth.value - expected.depth.value).abs().max() > 1e-4
    adapted.depth.value.log().square().mean().backward()
    learning = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learning
    assert {name.rpartition(".")[2] for name in learning} <= {"up", "down"}
    assert len(names) > 2
    with torch.no_grad():
        assert_same(predict(model, images, plan=MemoryPlan(2, 7)), adapted, 1e-4)
        geomtx.merge_lora(model)
        assert_same(model(images), adapted, 1e-4)


def test_frozen_parts_learn_nothing(family, images):
    model = build(family).train()
    geomtx.freeze(model, ["encoder"])
    model(images.float()).depth.value.sum().backward()
    learning = {name.partition(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learning
    assert "encoder" not in learning
    geomtx.unfreeze(model, ["encoder"])
    model(images.float()).depth.value.sum().backward()
    assert any(p.grad is not None for p in model.encoder.parameters())


# Files and scenes


@pytest.mark.parametrize("names", ["geomtx", "published"])
def test_weights_come_back(family, names, tmp_path: Path):
    model = build(family)
    model.save_pretrained(tmp_path, names=names)
    loaded = type(model).from_pretrained(tmp_path, **({} if names == "geomtx" else {"config": model.config}))
    assert loaded.config == model.config
    assert not loaded.training
    state = loaded.state_dict()
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    summary = summarize_checkpoint(str(tmp_path))
    assert (summary.naming, summary.heads, summary.prefix) == (names, model.config.heads, "")
    assert summary.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    some = type(model).from_pretrained(tmp_path / "model.safetensors", heads=("depth",), config=model.config)
    assert some.heads == ("depth",)
    assert named_tensors(some(draw_images(family, 1).float())).keys() == {"depth.value", "depth.confidence"}


def test_a_scene_and_its_files(family, tmp_path: Path):
    model = build(family)
    model.add_head("normals", normals(family))
    views = draw_images(family, 3).float()
    height, width = views.shape[-2:]
    scene = geomtx.reconstruct(model, views)
    assert scene.depth[0].value.shape == (height, width)
    assert scene.predictions.extra["normals"].value.shape == (3, height, width, 3)
    for options in ({"memory": "low"}, {"view_chunk": 1}, {"dtype": torch.bfloat16}, {"compile": False}):
        other = geomtx.reconstruct(model, views, **options)
        assert relative_error(other.predictions.depth.value, scene.predictions.depth.value) < 3e-2
    if scene.cameras is not None:
        if not FAMILIES[family].first_is_reference:
            torch.testing.assert_close(scene.cameras.cam_from_world[0], torch.eye(3, 4), atol=1e-5, rtol=0)
        assert len(scene.points().xyz)
    scene.save(tmp_path / "scene")
    loaded = Scene.load(tmp_path / "scene")
    assert isinstance(loaded.predictions, Predictions)
    assert_same(loaded.predictions, scene.predictions, 0)


@pytest.mark.usefixtures("unchecked")
def test_bad_inputs_are_named_at_the_door(family):
    model, images, patch = build(family), draw_images(family, 2).float(), FAMILIES[family].patch_size
    for call in (model, lambda images: predict(model, images)):
        with pytest.raises(ValueError, match=r"^images must be floating point, got torch.uint8$"):
            call(images.to(torch.uint8))
        with pytest.raises(ValueError, match=f"^image height must be a multiple of {patch}, got "):
            call(images[..., 1:, :])
    with pytest.raises(ValueError, match=r"^head must be one of .*, got 'normals'$"):
        model(images, heads=("normals",))
