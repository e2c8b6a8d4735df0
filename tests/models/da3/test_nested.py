import json
from functools import partial
from pathlib import Path

import pytest
import torch

import geomtx
from families import take_scene
from geomtx import DepthAnything3, DepthAnything3Config, NestedDepthAnything3, NestedDepthAnything3Config
from geomtx.cli.checkpoint_summary import summarize_checkpoint
from geomtx.cli.info import _describe_weights
from geomtx.cli.weights import PAIRS
from geomtx.inference.plan import LEAN_PLAN, PassSize, estimate_bytes
from geomtx.models import published
from geomtx.models.da3 import depth_in_metres, nested
from geomtx.models.registry import empty_model, find_family
from geomtx.scene import checks
from geomtx.scene.checks import check_scene_memory
from lean import build_lean, visible
from reference import named_tensors


def build() -> NestedDepthAnything3:
    return visible(NestedDepthAnything3(NestedDepthAnything3Config.tiny())).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 3, 28, 42)


def assert_same(got, expected, tolerance: float = 0.0) -> None:
    got, expected = named_tensors(got), named_tensors(expected)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=tolerance, atol=tolerance, msg=lambda text, n=name: n + text)


@torch.no_grad()
def test_each_scene_has_a_scale_of_its_own(images):
    model = build()
    images[1] *= 0.3
    both = model(images)
    assert both.metric_scale.shape == (2,)
    assert both.metric_scale[0] != both.metric_scale[1]
    plain = model.any_view(images)
    scale = both.metric_scale[:, None, None]
    translations = plain.cameras.cam_from_world[..., 3] * scale
    torch.testing.assert_close(both.cameras.cam_from_world[..., 3], translations)
    ground = both.sky < 0.3
    torch.testing.assert_close(both.depth.value[ground], (plain.depth.value * scale[..., None])[ground])
    for scene in range(2):
        assert_same(model(images[scene]), take_scene(both, scene), 1e-4)
    assert named_tensors(model(images, heads=("sky",))).keys() == {"sky", "metric_scale"}


@torch.no_grad()
def test_padding_does_not_count_for_the_scale(images):
    model, mask = build(), torch.ones(2, 3, 2, 3, dtype=torch.bool)
    mask[:, 1, :, 1:] = False
    found = {name: each.model(images, None, mask, heads=each.heads) for name, each in model.networks.items()}
    pixels = mask.repeat_interleave(14, 2).repeat_interleave(14, 3)
    wrong = found["metric"].depth.value.where(pixels, 50.0)
    spoilt = found | {"metric": found["metric"]._replace(depth=found["metric"].depth._replace(value=wrong))}
    whole = model(images, patch_mask=mask)
    assert_same(model.merge(spoilt, patch_mask=mask), whole)
    assert_same(model(images[0], patch_mask=mask[0]), take_scene(whole, 0), 1e-4)
    assert not torch.equal(model.merge(found).metric_scale, whole.metric_scale)


def test_a_scene_is_in_metres(images):
    model = build()
    scene = geomtx.reconstruct(model, images[0])
    assert scene.units == "metres"
    torch.testing.assert_close(scene.cameras.cam_from_world[0], torch.eye(3, 4), rtol=0, atol=1e-5)
    with torch.no_grad():
        whole = model(images[0])
    torch.testing.assert_close(scene.predictions.depth.value, whole.depth.value[0])
    torch.testing.assert_close(scene.predictions.sky, whole.sky[0])
    for options in ({"memory": "low"}, {"memory": 10**9}, {"approximation": geomtx.inference.GlobalApproximation()}):
        other = geomtx.reconstruct(model, images[0], **options)
        torch.testing.assert_close(other.predictions.depth.value, whole.depth.value[0], rtol=1e-3, atol=1e-4)
    known = scene.rescale(2.0).cameras
    given = geomtx.reconstruct(model, images[0], cameras=known)
    torch.testing.assert_close(given.cameras.cam_from_world, known.cam_from_world, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("names", ["geomtx", "published"])
def test_weights_come_back(names, images, tmp_path: Path):
    model = build()
    model.save_pretrained(tmp_path, names=names)
    summary = summarize_checkpoint(str(tmp_path))
    assert (summary.naming, summary.heads) == (names, ("camera", "depth", "sky"))
    assert find_family(tmp_path).model is NestedDepthAnything3
    assert find_family(tmp_path / "model.safetensors").model is NestedDepthAnything3
    if names == "geomtx":
        only = geomtx.load_model(tmp_path, heads=("depth",))
        assert only.heads == ("depth",)
        assert_same(only(images), model(images, heads=("depth",)))
        loaded = geomtx.load_model(tmp_path)
        assert empty_model(tmp_path).config == model.config
    else:
        assert json.loads((tmp_path / "config.json").read_text())["model_name"] == "da3-large"
        loaded = NestedDepthAnything3.from_pretrained(tmp_path, config=model.config)
        assert geomtx.load_model(tmp_path).config == model.config  # from the file's own metadata
    assert loaded.config == model.config
    assert_same(loaded(images), model(images))
    with pytest.raises(ValueError, match=r"^weights must be of a DepthAnything3, got '.*' of a NestedDepthAnything3; "):
        DepthAnything3.from_pretrained(tmp_path)


def test_heads_of_ones_own(images, tmp_path: Path):
    """They belong to the network of many views, run with it and are stored with the model."""
    model = build()
    taps = model.any_view.encoder.taps
    decoder = geomtx.DPTDecoder(64, 16, channels=(16, 16, 32, 32), taps=(*taps[:1] * 2, *taps[-1:] * 2))
    model.add_head("normals", geomtx.DenseHead(decoder, 3))
    with torch.no_grad():
        found = model(images)
        assert model(images, heads=("depth",)).extra is None
    torch.testing.assert_close(found.extra["normals"], model.any_view(images, heads=("normals",)).extra["normals"])
    for options in ({}, {"memory": "low"}):
        scene = geomtx.reconstruct(model, images[0], **options)
        torch.testing.assert_close(
            scene.predictions.extra["normals"].value, found.extra["normals"].value[0], rtol=1e-4, atol=1e-4
        )
    loaded = NestedDepthAnything3.from_pretrained(model.save_pretrained(tmp_path / "weights"))
    assert loaded.heads == (*("camera", "depth", "sky"), "normals")
    assert_same(loaded(images), found)
    without = NestedDepthAnything3.from_pretrained(tmp_path / "weights", extra_heads={"normals": None})
    assert model.remove_head("normals") is not None
    assert without.heads == model.heads == ("camera", "depth", "sky")


def test_a_scene_that_cannot_fit_is_refused(monkeypatch):
    """By the larger of the two networks, which run one after the other."""
    model = build()
    sizes = [PassSize(4, (28, 42), heads, device="meta") for heads in (("camera", "depth"), ("depth", "sky"))]
    needed = max(estimate_bytes(m, LEAN_PLAN, s) for m, s in zip((model.any_view, model.metric), sizes, strict=True))
    check = partial(
        check_scene_memory, model, (28, 42), model.heads, torch.device("meta"), num_views=4, at_once=4, element_size=2
    )
    monkeypatch.setattr(checks, "free_bytes", lambda place: needed // 2 if place.type == "meta" else None)
    check()
    monkeypatch.setattr(checks, "free_bytes", lambda place: needed // 2 - 1 if place.type == "meta" else None)
    with pytest.raises(ValueError, match="4 views need at least"):
        check()


def test_two_published_weights_have_a_name(images, tmp_path: Path, monkeypatch):
    assert tuple(published.NESTED_PAIRS) == PAIRS
    assert {weights.name for weights in geomtx.list_models("da3nested-*-large")} >= set(PAIRS)
    assert all(geomtx.list_models(name)[0].licence == "Apache-2.0" for name in PAIRS)
    model = build()
    folders = [model.any_view.save_pretrained(tmp_path / "any"), model.metric.save_pretrained(tmp_path / "metric")]
    monkeypatch.setitem(nested.NESTED_PAIRS, PAIRS[0], tuple(map(str, folders)))
    loaded = geomtx.load_model(PAIRS[0], dtype=torch.float32)
    assert type(loaded) is NestedDepthAnything3
    assert_same(loaded(images), model(images))
    assert empty_model(PAIRS[0]).config == model.config
    heads = [value for name, value in _describe_weights(PAIRS[0]) if name == "heads"]
    assert heads == ["camera, depth, rays", "depth, sky"]


def test_networks_that_make_no_metres():
    tiny = DepthAnything3Config.tiny
    single = {"first_global": None, "depth": 2, "taps": (0, 0, 1, 1)}
    with pytest.raises(ValueError, match=r"^any_view must be .*: metres need its focal length, got the heads depth$"):
        NestedDepthAnything3Config(tiny(heads=("depth",)), tiny(**single, metric=True))
    with pytest.raises(ValueError, match=r"^metric must be a metric model with the heads depth and sky, got "):
        NestedDepthAnything3Config(tiny(), tiny(**single))
    with pytest.raises(ValueError, match=r"^any_view must be a model of many views"):
        NestedDepthAnything3Config(tiny(**single, metric=True), tiny(**single, metric=True))
    with pytest.raises(ValueError, match=r"^patch_size must be the same in both models, got 7 in metric$"):
        NestedDepthAnything3Config(tiny(), tiny(**single, metric=True, patch_size=7))


@pytest.mark.usefixtures("unchecked")
def test_metres_need_a_focal_length():
    with pytest.raises(ValueError, match=r"^intrinsics must be given, as depth in metres needs a focal l"):
        depth_in_metres(torch.ones(1, 1, 2, 2), None)


def test_weights_of_another_family(tmp_path: Path):
    build_lean(heads=("camera",)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^weights must be of a NestedDepthAnything3, got '.*' of a VGGT; "):
        NestedDepthAnything3.from_pretrained(tmp_path)
