"""What every family of models does, whatever its parts are; the families are in `families.py`.

Tests with the fixture `family` are of those that see all views at once, those with `any_family` of all.
"""

import copy
import importlib.util
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import geomtx
from families import EVERY, FAMILIES, a_map, build, draw_images, normals, run, some_patches, take_scene
from geomtx import Predictions, Scene
from geomtx.cli.checkpoint_summary import summarize_checkpoint
from geomtx.inference import GlobalApproximation, MemoryPlan, predict
from geomtx.inference.quantize import is_quantized
from geomtx.scene.pairs import SparseOptions
from reference import named_tensors, relative_error

needs_torchao = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="needs torchao, which the extra quant brings"
)


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(params=EVERY)
def any_family(request) -> str:
    return request.param


@pytest.fixture
def images(request) -> torch.Tensor:
    name = "any_family" if "any_family" in request.fixturenames else "family"
    return draw_images(request.getfixturevalue(name), 2, 3)


def assert_same(got, expected, tolerance: float = 1e-9) -> None:
    got, expected = named_tensors(got), named_tensors(expected)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=tolerance, atol=tolerance, msg=lambda text, n=name: n + text)


# Scenes, views, masks


@torch.no_grad()
def test_scenes_of_a_batch_do_not_see_each_other(any_family, images):
    model, mask = build(any_family).double(), some_patches(images)
    both = run(any_family, model, images, patch_mask=mask)
    for scene in range(2):
        one = slice(scene, scene + 1)
        assert_same(run(any_family, model, images[one], patch_mask=mask[one]), take_scene(both, scene))
        if not EVERY[any_family].in_pairs:
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
def test_half_precision(any_family, how, images):
    """Predictions are in float32, finite, and near those of double precision."""
    model = build(any_family).double()
    expected = run(any_family, model, images)
    other = copy.deepcopy(model).to(torch.float32 if how == "autocast" else getattr(torch, how))
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        prediction = run(any_family, other, images.float())
    found = named_tensors(prediction)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in found.values())
    assert relative_error(a_map(prediction), a_map(expected)) < (2e-3 if how == "float16" else 2e-2)
    for name in ("cameras.cam_from_world", "first.descriptors.value"):
        if name in found:
            assert relative_error(found[name], named_tensors(expected)[name]) < 5e-2


@needs_torchao
@torch.no_grad()
def test_quantised_weights_stay_near(any_family, images):
    model, images = build(any_family), images.float()
    expected = run(any_family, model, images)
    geomtx.quantize_model(model, "int8")
    assert is_quantized(model)
    found = run(any_family, model, images)
    assert 0 < relative_error(a_map(found), a_map(expected)) < 0.05
    if not EVERY[any_family].in_pairs:
        assert_same(predict(model, images, plan=MemoryPlan(2, 7)), found, 2e-3)


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


def test_adapters_are_trained_and_merged(any_family, images):
    model, images = build(any_family), images[:1].float()
    expected = run(any_family, model, images)
    geomtx.freeze(model, ["*"])
    names = geomtx.add_lora(model, ["encoder.*.attention.*"], rank=2)
    if EVERY[any_family].in_pairs:
        names += geomtx.add_lora(model, ["decoder.*.cross_attention.*"], rank=2)
    assert_same(run(any_family, model, images), expected, 1e-5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".up"):
                parameter.normal_(std=0.1)
    adapted = run(any_family, model, images)
    assert (a_map(adapted) - a_map(expected)).abs().max() > 1e-4
    a_map(adapted).square().mean().backward()
    learning = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learning
    assert {name.rpartition(".")[2] for name in learning} <= {"up", "down"}
    assert len(names) > 2
    with torch.no_grad():
        if not EVERY[any_family].in_pairs:
            assert_same(predict(model, images, plan=MemoryPlan(2, 7)), adapted, 1e-4)
        geomtx.merge_lora(model)
        assert_same(run(any_family, model, images), adapted, 1e-4)


def test_frozen_parts_learn_nothing(any_family, images):
    model, images = build(any_family).train(), images.float()
    geomtx.freeze(model, ["encoder"])
    a_map(run(any_family, model, images)).sum().backward()
    learning = {name.partition(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learning
    assert "encoder" not in learning
    geomtx.unfreeze(model, ["encoder"])
    a_map(run(any_family, model, images)).sum().backward()
    assert any(p.grad is not None for p in model.encoder.parameters())


# Files and scenes


@pytest.mark.parametrize("names", ["geomtx", "published"])
def test_weights_come_back(any_family, names, tmp_path: Path):
    model = build(any_family)
    model.save_pretrained(tmp_path, names=names)
    loaded = type(model).from_pretrained(tmp_path, **({} if names == "geomtx" else {"config": model.config}))
    assert loaded.config == model.config
    assert not loaded.training
    state = loaded.state_dict()
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    summary = summarize_checkpoint(str(tmp_path))
    in_pairs = EVERY[any_family].in_pairs
    heads = ("points", "descriptors")[: 1 + model.has_descriptors] if in_pairs else model.config.heads
    assert (summary.naming, summary.heads, summary.prefix) == (names, heads, "")
    assert summary.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    other = geomtx.DepthAnything3 if isinstance(model, geomtx.VGGT) else geomtx.VGGT
    with pytest.raises(ValueError, match=rf"^weights must be of a {other.__name__}, got .*from_pretrained\(.*\) takes"):
        other.from_pretrained(tmp_path)
    if in_pairs:
        return
    some = type(model).from_pretrained(tmp_path / "model.safetensors", heads=("depth",), config=model.config)
    assert some.heads == ("depth",)
    assert named_tensors(some(draw_images(any_family, 1).float())).keys() == {"depth.value", "depth.confidence"}


def test_ways_to_a_scene(family):
    model = build(family)
    model.add_head("normals", normals(family))
    views = draw_images(family, 3).float()
    scene = geomtx.reconstruct(model, views)
    assert scene.predictions.extra["normals"].value.shape == (3, *views.shape[-2:], 3)
    for options in ({"memory": "low"}, {"view_chunk": 1}, {"dtype": torch.bfloat16}, {"compile": False}):
        other = geomtx.reconstruct(model, views, **options)
        assert relative_error(other.predictions.depth.value, scene.predictions.depth.value) < 3e-2


def test_a_scene_and_its_files(any_family, tmp_path: Path):
    model, views = build(any_family), draw_images(any_family, 3).float()
    few = SparseOptions(coarse_steps=2, fine_steps=2) if any_family == "mast3r" else None
    scene = geomtx.reconstruct(model, views, **({} if few is None else {"alignment": few}))
    assert scene.depth[0].value.shape == views.shape[-2:]
    if scene.cameras is not None:
        if not EVERY[any_family].first_is_reference:
            torch.testing.assert_close(scene.cameras.cam_from_world[0], torch.eye(3, 4), atol=1e-5, rtol=0)
        assert len(scene.points().xyz)
    scene.save(tmp_path / "scene")
    loaded = Scene.load(tmp_path / "scene")
    assert isinstance(loaded.predictions, Predictions)
    assert_same(loaded.predictions, scene.predictions, 0)


@pytest.mark.usefixtures("unchecked")
def test_bad_inputs_are_named_at_the_door(any_family):
    model, images, patch = build(any_family), draw_images(any_family, 1, 2).float(), EVERY[any_family].patch_size
    in_pairs = EVERY[any_family].in_pairs
    for call in (partial(run, any_family, model), *([] if in_pairs else [partial(predict, model)])):
        with pytest.raises(ValueError, match=r"^images must be floating point, got torch.uint8$"):
            call(images.to(torch.uint8))
        with pytest.raises(ValueError, match=f"^image height must be a multiple of {patch}, got "):
            call(images[..., 1:, :])
    if in_pairs:
        return
    with pytest.raises(ValueError, match=r"^head must be one of .*, got 'normals'$"):
        model(images, heads=("normals",))
