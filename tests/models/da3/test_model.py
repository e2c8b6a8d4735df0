import json
from pathlib import Path

import pytest
import torch

import geomtx
from families import build as build_family
from geomtx import Cameras, DepthAnything3, Predictions, Scene
from geomtx.geometry.ray_cameras import cameras_from_rays
from geomtx.inference import MemoryPlan, predict
from geomtx.models.registry import find_family
from lean import build_lean
from reference import named_tensors


def build(kind: str = "da3") -> DepthAnything3:
    return build_family(kind).double()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 3, 28, 42, dtype=torch.float64)


def assert_same(got: Predictions, expected: Predictions, tolerance: float = 1e-9) -> None:
    got, expected = named_tensors(got), named_tensors(expected)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=tolerance, atol=tolerance, msg=lambda text, n=name: n + text)


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


def test_a_published_file_without_a_configuration_is_recognised(tmp_path: Path):
    """Sizes that nobody published are refused, by the class that the names are for."""
    from safetensors.torch import load_file, save_file

    build().float().save_pretrained(tmp_path, names="published")
    assert json.loads((tmp_path / "config.json").read_text())["model_name"].startswith("da3")
    file = tmp_path / "bare.safetensors"
    save_file(load_file(tmp_path / "model.safetensors") | {"model.gs_head.norm.weight": torch.zeros(1)}, file)
    assert find_family(file).model is DepthAnything3
    with pytest.raises(ValueError, match=r"^weights must be of a published Depth Anything 3 model, got '.*' 32 wide$"):
        geomtx.load_model(file)
    with pytest.raises(ValueError, match=r"^weights must be of a VGGT, got .* of a DepthAnything3; Dep"):
        geomtx.VGGT.from_pretrained(file)
    loaded = DepthAnything3.from_pretrained(file, config=build().config)  # the Gaussians are passed over
    assert loaded.heads == ("camera", "depth", "rays")


def test_weights_of_another_family_are_refused(tmp_path: Path):
    build_lean(heads=("camera",)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^weights must be of a DepthAnything3, got '.*' of a VGGT; "):
        DepthAnything3.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            "da3",
            {"query_points": torch.zeros(1, 2)},
            "^query_points must be None, as ",
        ),
        ("da3", {"heads": ("sky",)}, "^head must be one of"),
        (
            "da3, single views",
            {"cameras": Cameras(torch.eye(3, 4)[None], torch.eye(3)[None])},
            "^cameras must be None",
        ),
        (
            "da3",
            {"cameras": Cameras(torch.eye(3, 4)[None], torch.eye(3)[None])},
            r"^cam_from_world must have shape \(1, 3, 3, 4\)",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_inputs_that_the_model_does_not_take(kind, options, message, images):
    with pytest.raises(ValueError, match=message):
        build(kind)(images[0], **options)


def test_rays_are_no_part_of_a_scene():
    scene = geomtx.reconstruct(build().float(), torch.rand(3, 3, 28, 42))
    assert scene.predictions.rays is None
    assert scene.predictions.depth is not None


@torch.no_grad()
def test_cameras_may_be_those_of_the_rays():
    model, images = build().float(), torch.rand(3, 3, 28, 42)
    found = model(images)
    for way in ("qr", "ql"):
        expected = cameras_from_rays(*found.rays, (28, 42), decomposition=way)
        for options in ({}, {"memory": "low"}):
            scene = geomtx.reconstruct(model, images, ray_cameras=way, **options)
            pose = expected.cam_from_world[0]
            relative = pose[:, :, :3] @ pose[:1, :, :3].mT
            torch.testing.assert_close(scene.cameras.cam_from_world[..., :3], relative, rtol=1e-2, atol=1e-2)
            torch.testing.assert_close(scene.cameras.intrinsics, expected.intrinsics[0], rtol=2e-2, atol=2e-1)
            assert scene.predictions.rays is None
    with pytest.raises(ValueError, match=r"^ray_cameras must be one of 'qr', 'ql', got 'rq'"):
        geomtx.reconstruct(model, images, ray_cameras="rq")
    with pytest.raises(ValueError, match=r"^ray_cameras must be None for a VGGT without the head rays, got some$"):
        geomtx.reconstruct(build_lean(), images, ray_cameras="qr")


def test_a_scene_of_single_views_keeps_the_sky(tmp_path: Path):
    scene = geomtx.reconstruct(build("da3, single views").float(), torch.rand(2, 3, 28, 42), progress=False)
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


def scattered(num: int) -> tuple[Cameras, torch.Tensor]:
    """Known cameras in a world of their own, with intrinsics in pixels of photos of 42 x 28 pixels."""
    quat = torch.randn(num, 4, dtype=torch.float64)
    rotation = geomtx.geometry.quat_to_matrix(quat / quat.norm(dim=-1, keepdim=True))
    center = 40 + 9 * torch.randn(num, 3, 1, dtype=torch.float64)
    intrinsics = torch.tensor([[40.0, 0.0, 21.0], [0.0, 44.0, 14.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    return Cameras(torch.cat([rotation, -rotation @ center], dim=-1), intrinsics.repeat(num, 1, 1)), center


def test_a_scene_of_known_cameras_is_in_their_world():
    model, images = build().float(), torch.rand(3, 3, 28, 42)
    cameras, _ = scattered(3)
    scene = geomtx.reconstruct(model, images, cameras=cameras)
    for got, expected in zip(scene.cameras, cameras, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-4)
    assert "known poses" in scene.provenance["world"]
    # Depth is what the network predicts of these cameras, in their unit.
    helped = model(images, cameras=Cameras(*(each.float() for each in cameras))).depth.value[0]
    ratio = scene.predictions.depth.value / helped
    torch.testing.assert_close(ratio, ratio.flatten()[0].expand_as(ratio), rtol=1e-4, atol=0)
    low = geomtx.reconstruct(model, images, cameras=cameras, memory="low")
    torch.testing.assert_close(low.predictions.depth.value, scene.predictions.depth.value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "change", "options", "message"),
    [
        (
            "da3",
            lambda c: c.cam_from_world[1].fill_(torch.nan),
            {},
            r" a pose for all 3 photos, .* for 'view_001.png'$",
        ),
        ("da3", lambda c: c.intrinsics[2].fill_(torch.nan), {}, r"intrinsics for all 3 photos, .* 'view_002.png'$"),
        ("da3", lambda c: c.cam_from_world.copy_(torch.eye(3, 4)), {}, r"known cameras must not all be in one place"),
        ("da3", lambda c: c.cam_from_world.mul_(2), {}, r"^known poses must be \[R \| t\] with rotations R"),
        ("da3", lambda c: c, {"reference": 1}, r"^cameras must go with the head camera, without a window and with the"),
        (
            "da3, single views",
            lambda c: c,
            {},
            r"^cameras must be None for this DepthAnything3, which takes none, got s",
        ),
        ("vggt", lambda c: c, {}, r"^cameras must be None for this VGGT, which takes none, got some; geomtx\.align"),
    ],
)
def test_known_cameras_that_a_scene_can_not_be_made_with(kind, change, options, message):
    cameras, _ = scattered(3)
    change(cameras)
    with pytest.raises(ValueError, match=message):
        geomtx.reconstruct(build(kind).float(), torch.rand(3, 3, 28, 42), cameras=cameras, **options)
