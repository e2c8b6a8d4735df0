import json
from pathlib import Path

import pytest
import torch

import geomtx
from geomtx import Cameras, DepthAnything3, DepthAnything3Config, Predictions, Scene
from geomtx.inference import GlobalApproximation, MemoryPlan, predict
from geomtx.models.registry import find_family
from lean import build_lean, visible
from reference import named_tensors

LEAN = {"depth": 6, "taps": (3, 3, 5, 5), "camera_depth": 1}
CONFIGS = {
    "many views": DepthAnything3Config.tiny(**LEAN),
    "giant's order": DepthAnything3Config.tiny(**LEAN | {"first_global": 1, "gated": True}),
    "single views": DepthAnything3Config.tiny(depth=2, first_global=None, taps=(0, 0, 1, 1)),
}


def build(kind: str = "many views") -> DepthAnything3:
    return visible(DepthAnything3(CONFIGS[kind])).eval().double()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 3, 28, 42, dtype=torch.float64)


def assert_same(got: Predictions, expected: Predictions, tolerance: float = 1e-9) -> None:
    got, expected = named_tensors(got), named_tensors(expected)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=tolerance, atol=tolerance, msg=lambda text, n=name: n + text)


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_ways_of_running_give_the_same(kind, images):
    model = build(kind)
    mask = torch.rand(2, 3, 2, 3) < 0.8
    mask[:, 0, 0, 0] = True
    for fewer in (None, GlobalApproximation(2, 2), GlobalApproximation(num_local_layers=1)):
        options = {"approximation": fewer}
        if kind == "single views" and fewer is not None:
            continue
        expected = predict(model, images, None, mask, **options)
        assert_same(predict(model, images, None, mask, plan=MemoryPlan(2, 7, "cpu"), **options), expected)
        assert_same(predict(model, images, None, mask, plan=MemoryPlan(1), **options), expected)
    assert_same(predict(model, images, None, mask), model(images, patch_mask=mask))
    with torch.enable_grad():
        assert_same(predict(model, images, recompute=True), model(images))


@torch.no_grad()
def test_scenes_and_the_order_of_views_are_independent(images):
    """Each scene has a reference view of its own, which is the same photo wherever it is."""
    model = build()
    both = model(images)
    for scene in range(2):
        assert_same(model(images[scene]), both.map(lambda t, i=scene: t[i : i + 1] if len(t) == 2 else t[:, i : i + 1]))
    order = [2, 0, 1]
    assert_same(model(images[:, order]), both.take_views(order))


@torch.no_grad()
def test_masked_patches_are_not_read(images):
    model, mask = build(), torch.ones(2, 3, 2, 3, dtype=torch.bool)
    mask[:, 1, :, 2:] = False
    changed = images.clone()
    changed[:, 1, :, :, 28:] = torch.nan
    assert_same(model(changed, patch_mask=mask, heads=("camera",)), model(images, patch_mask=mask, heads=("camera",)))


@torch.no_grad()
def test_known_cameras_count_up_to_frame_and_unit(images):
    model = build()
    cameras = model(images.flip(1)).cameras
    helped = model(images, cameras=cameras)
    assert (helped.depth.value - model(images).depth.value).abs().max() > 1e-3
    assert_same(predict(model, images, cameras=cameras, plan=MemoryPlan(2, 7)), helped)
    turn = geomtx.geometry.quat_to_matrix(torch.tensor([0.1, 0.2, -0.3, 0.9], dtype=torch.float64))
    poses = cameras.cam_from_world
    moved = torch.cat([poses[..., :3] @ turn, 7 * (poses[..., 3:] + poses[..., :3] @ poses.new_ones(3, 1))], dim=-1)
    far = Cameras(torch.cat([poses[..., :3], 50 * poses[..., 3:]], dim=-1), cameras.intrinsics)
    assert_same(
        model(images, cameras=Cameras(torch.cat([moved[..., :3], 50 * moved[..., 3:]], dim=-1), cameras.intrinsics)),
        model(images, cameras=far),
        1e-6,
    )


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("names", ["geomtx", "published"])
def test_weights_come_back(kind, names, tmp_path: Path):
    model = build(kind).float()
    model.save_pretrained(tmp_path, names=names)
    loaded = geomtx.load_model(tmp_path)
    assert type(loaded) is DepthAnything3
    assert loaded.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    some = geomtx.load_model(tmp_path / "model.safetensors", heads=("depth",))
    assert some.heads == ("depth",)
    assert named_tensors(some(torch.rand(1, 3, 28, 28))).keys() == {"depth.value", "depth.confidence"}
    if names == "published":
        assert json.loads((tmp_path / "config.json").read_text())["model_name"].startswith("da3")


def test_a_published_file_without_a_configuration_is_recognised(tmp_path: Path):
    """Sizes that nobody published are refused, by the class that the names are for."""
    from safetensors.torch import load_file, save_file

    build().float().save_pretrained(tmp_path, names="published")
    file = tmp_path / "bare.safetensors"
    save_file(load_file(tmp_path / "model.safetensors") | {"model.gs_head.norm.weight": torch.zeros(1)}, file)
    assert find_family(file).model is DepthAnything3
    with pytest.raises(ValueError, match=r"^weights must be of a published Depth Anything 3 model, got '.*' 32 wide$"):
        geomtx.load_model(file)
    with pytest.raises(ValueError, match=r"^weights must be of a VGGT, got .* of a DepthAnything3; Dep"):
        geomtx.VGGT.from_pretrained(file)
    loaded = DepthAnything3.from_pretrained(file, config=CONFIGS["many views"])  # the Gaussians are passed over
    assert loaded.heads == ("camera", "depth", "rays")


def test_weights_of_another_family_are_refused(tmp_path: Path):
    build_lean(heads=("camera",)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^weights must be of a DepthAnything3, got '.*' of a VGGT; "):
        DepthAnything3.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            "many views",
            {"query_points": torch.zeros(1, 2)},
            "^query_points must be None, as ",
        ),
        ("many views", {"heads": ("sky",)}, "^head must be one of"),
        (
            "single views",
            {"cameras": Cameras(torch.eye(3, 4)[None], torch.eye(3)[None])},
            "^cameras must be None",
        ),
        (
            "many views",
            {"cameras": Cameras(torch.eye(3, 4)[None], torch.eye(3)[None])},
            r"^cam_from_world must have shape \(1, 3, 3, 4\)",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_inputs_that_the_model_does_not_take(kind, options, message, images):
    with pytest.raises(ValueError, match=message):
        build(kind)(images[0], **options)


def test_a_scene_is_in_the_first_cameras_frame(tmp_path: Path):
    scene = geomtx.reconstruct(build().float(), torch.rand(3, 3, 28, 42), progress=False)
    torch.testing.assert_close(scene.cameras.cam_from_world[0], torch.eye(3, 4), atol=1e-5, rtol=0)
    assert scene.predictions.rays is None
    assert scene.predictions.depth is not None


def test_a_scene_of_single_views_keeps_the_sky(tmp_path: Path):
    scene = geomtx.reconstruct(build("single views").float(), torch.rand(2, 3, 28, 42), progress=False)
    assert scene.cameras is None
    scene.save(tmp_path / "scene")
    sky = Scene.load(tmp_path / "scene").predictions.sky
    assert torch.equal(sky, scene.predictions.sky)
    assert sky.shape == (2, 28, 42)
    confidence = scene.predictions.depth.confidence
    assert torch.equal(confidence, 1 + (sky < 0.3).float())


def test_gradients_reach_every_parameter_that_is_used():
    model = build().float().train()
    images = torch.rand(1, 3, 3, 28, 28)
    cameras = model(images).cameras
    predictions = [model(images), model(images, cameras=Cameras(*(each.detach() for each in cameras)))]
    sum(tensor.sum() for each in predictions for tensor in named_tensors(each).values()).backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert {name.split(".")[2] for name in without} == {"coarse_outputs"}
