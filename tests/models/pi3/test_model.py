import logging
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import geomtx
from geometry.random_cameras import random_rigid
from geomtx import Cameras, KnownGeometry, Pi3, Pi3Config, Scene
from geomtx.cli import main
from geomtx.geometry import compose_rigid, invert_rigid, transform_points
from geomtx.heads import point_map
from geomtx.inference import GlobalApproximation, MemoryPlan, predict
from geomtx.models.published import PUBLISHED, state_licence
from geomtx.models.registry import find_family
from lean import build_lean, visible
from models.test_families import assert_same

HW = (28, 42)


def build(*, x: bool = False) -> Pi3:
    return visible(Pi3(Pi3Config.tiny(known_geometry=x))).eval().double()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 3, *HW, dtype=torch.float64)


@pytest.fixture
def known() -> KnownGeometry:
    """Something of all views, in which views differ by what is known of them."""
    masks = torch.tensor([[True, True, False], [False, True, True]])
    return KnownGeometry(
        random_rigid(2, 3),
        torch.tensor([[40.0, 0.0, 20.0], [0.0, 44.0, 13.0], [0.0, 0.0, 1.0]]).double().expand(2, 3, 3, 3),
        (torch.rand(2, 3, *HW, dtype=torch.float64) * 3 - 1).clamp(min=0),
        masks,
        None,
        masks.flip(1),
    )


@pytest.mark.parametrize("x", [False, True])
@torch.no_grad()
def test_predictions_are_of_the_same_points(x, images):
    """Depth is z, points in the world are those in the cameras, and focal lengths the best for them."""
    found = build(x=x)(images)
    local = found.points_cam.value
    assert torch.equal(found.depth.value, local[..., 2])
    world = transform_points(invert_rigid(found.cameras.cam_from_world), local.flatten(2, 3)).view_as(local)
    torch.testing.assert_close(found.points.value, world)
    rotation = found.cameras.cam_from_world[..., :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64).expand(2, 3, 3, 3))
    slopes = local[..., 0] / local[..., 2]
    columns = torch.arange(HW[1], dtype=torch.float64) - (HW[1] - 1) / 2
    focal = (slopes * columns).sum((-2, -1)) / slopes.square().sum((-2, -1))
    torch.testing.assert_close(found.cameras.intrinsics[..., 0, 0], focal)
    assert (found.depth.confidence > 1).all()
    assert (found.metric_scale is not None) == x


@torch.no_grad()
def test_without_its_scale_a_scene_has_another_unit(images):
    model = build(x=True)
    whole, plain = model(images), model(images, heads=("camera", "depth", "points"))
    scale = whole.metric_scale
    assert plain.metric_scale is None
    torch.testing.assert_close(whole.depth.value, plain.depth.value * scale[:, None, None, None])
    torch.testing.assert_close(whole.points.value, plain.points.value * scale[:, None, None, None, None])
    torch.testing.assert_close(whole.cameras.intrinsics, plain.cameras.intrinsics)
    torch.testing.assert_close(
        whole.cameras.cam_from_world[..., 3], plain.cameras.cam_from_world[..., 3] * scale[:, None, None]
    )


@torch.no_grad()
def test_known_geometry_in_all_ways_of_running(images, known):
    model = build(x=True)
    expected = model(images, cameras=known)
    for other in (known._replace(depth=None, depth_mask=None), known._replace(cam_from_world=None, pose_mask=None)):
        assert (model(images, cameras=other).depth.value - expected.depth.value).abs().max() > 1e-3
    for options in (
        {},
        {"plan": MemoryPlan(1, 7, "cpu", part_device="cpu")},
        {"plan": MemoryPlan(2, 1000)},
        {"approximation": GlobalApproximation()},
    ):
        assert_same(predict(model, images, cameras=known, **options), expected)
    with torch.enable_grad():
        assert_same(predict(model, images, cameras=known, recompute=True), expected)
    for scene in range(2):  # each has a unit and a frame of its own
        one = KnownGeometry(*(None if value is None else value[scene] for value in known))
        assert_same(model(images[scene], cameras=one).depth, expected.map(lambda t, i=scene: t[i : i + 1]).depth)


@torch.no_grad()
def test_known_geometry_counts_up_to_frame_and_unit_and_in_any_order(images, known):
    model = build(x=True)
    expected = model(images, cameras=known)
    moved = compose_rigid(known.cam_from_world, random_rigid(2, 1))
    moved = torch.cat([moved[..., :3], 7 * moved[..., 3:]], dim=-1)
    other = known._replace(cam_from_world=moved, depth=7 * known.depth)
    assert_same(model(images, cameras=other), expected, 1e-6)
    order = [2, 0, 1]
    swapped = KnownGeometry(*(None if value is None else value[:, order] for value in known))
    assert_same(model(images[:, order], cameras=swapped), expected.take_views(order))


@torch.no_grad()
def test_known_cameras_of_all_views_are_known_geometry(images, known):
    model = build(x=True)
    cameras = Cameras(known.cam_from_world, known.intrinsics)
    whole = KnownGeometry(known.cam_from_world, known.intrinsics)
    assert_same(model(images, cameras=cameras), model(images, cameras=whole), 0)
    assert (model(images, cameras=cameras).depth.value - model(images).depth.value).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_known_geometry_in_half_precision(dtype, images, known):
    model = build(x=True)
    expected = model(images, cameras=known)
    found = model.to(dtype)(images.float(), cameras=known.__class__(*map(_single, known)))
    assert found.depth.value.dtype == torch.float32
    assert ((found.depth.value - expected.depth.value).norm() / expected.depth.value.norm()) < 3e-2


def _single(value: torch.Tensor | None) -> torch.Tensor | None:
    return value.float() if value is not None and value.is_floating_point() else value


def test_gradients_reach_every_parameter_that_is_used(images, known):
    for model in (build().train(), build(x=True).train()):
        given = {} if model.conditioning is None else {"cameras": known}
        found = model(images, **given)
        tensors = [found.depth.value, found.depth.confidence, found.points.value, *found.cameras]
        sum(tensor.sum() for tensor in tensors).backward()
        unused = {name for name, parameter in model.named_parameters() if parameter.grad is None}
        assert unused == set()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_published_files_are_recognised(tmp_path: Path):
    """Without a configuration too; sizes that nobody published are refused, by the class that the names are for."""
    build(x=True).float().save_pretrained(tmp_path, names="published")
    tensors = load_file(tmp_path / "model.safetensors")
    assert torch.allclose(tensors["image_mean"].flatten(), torch.tensor([0.485, 0.456, 0.406]))
    file = tmp_path / "bare.safetensors"
    save_file(tensors, file)
    assert find_family(file).model is Pi3
    with pytest.raises(ValueError, match=r"^weights must be of a published Pi3 or Pi3X, got '.*' 32 wide$"):
        geomtx.load_model(file)
    with pytest.raises(ValueError, match=r"^weights must be of a VGGT, got .* of a Pi3; Pi3\.from_pretrained"):
        geomtx.VGGT.from_pretrained(file)
    wrong = Pi3Config.tiny()  # the other variant
    with pytest.raises(ValueError, match=r"doesn't fit the model: .*(is unexpected|is missing|instead of)"):
        Pi3.from_pretrained(file, config=wrong)
    build_lean(heads=("camera",)).save_pretrained(tmp_path / "vggt")
    with pytest.raises(ValueError, match=r"^weights must be of a Pi3, got '.*' of a VGGT"):
        Pi3.from_pretrained(tmp_path / "vggt")


def test_the_licence_is_stated(caplog):
    assert {PUBLISHED[name].licence for name in ("yyfz233/Pi3", "yyfz233/Pi3X")} == {"CC BY-NC 4.0: no commercial use"}
    state_licence.cache_clear()
    with caplog.at_level(logging.WARNING, logger="geomtx"):
        state_licence("yyfz233/Pi3")
    assert "no commercial use" in caplog.text


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (False, {"query_points": torch.zeros(1, 2)}, "^query_points must be None, as Pi3 tracks no points, got some$"),
        (False, {"heads": ("metric",)}, "^head must be one of"),
        (
            False,
            {"cameras": KnownGeometry(depth=torch.ones(3, *HW))},
            "^cameras must be None for a Pi3, which ",
        ),
        (
            True,
            {"cameras": Cameras(torch.eye(3, 4)[None], torch.eye(3)[None])},
            r"^cam_from_world must have shape \(1, 3, 3, 4\)",
        ),
    ],
)
def test_inputs_that_the_model_does_not_take(x, options, message, images):
    with pytest.raises(ValueError, match=message):
        build(x=x)(images[0], **options)


def test_photos_by_the_command(tmp_path: Path, capsys, monkeypatch):
    """With published names, and in metres."""
    # Of the points of random weights any sign is as likely.
    fit = point_map.fit_intrinsics
    monkeypatch.setattr(point_map, "fit_intrinsics", lambda *arguments: fit(*arguments).abs())
    build(x=True).float().save_pretrained(tmp_path / "weights", names="published")
    photos = [str(tmp_path / f"{index}.png") for index in range(3)]
    for photo in photos:
        Image.fromarray(torch.randint(0, 255, (40, 60, 3), dtype=torch.uint8).numpy()).save(photo)
    out = ["-o", str(tmp_path / "out"), "--weights", str(tmp_path / "weights")]
    assert main(["reconstruct", *photos, *out, "--mode", "area", "--size", "4000"]) in (0, None)
    scene = Scene.load(tmp_path / "out")
    assert scene.units == "metres"
    assert scene.predictions.depth.value.shape == (3, 42, 84)
    torch.testing.assert_close(scene.cameras.cam_from_world[0], torch.eye(3, 4), atol=1e-5, rtol=0)
    assert "metres" in capsys.readouterr().out
    assert main(["info", str(tmp_path / "weights")]) in (0, None)
    assert "published" in capsys.readouterr().out


def test_a_scene_of_known_cameras_is_in_their_world():
    """Of Pi3X; intrinsics are those of the photos, whose pixels these images have."""
    model, images = build(x=True).float(), torch.rand(3, 3, *HW)
    cameras = Cameras(
        random_rigid(3), torch.tensor([[40.0, 0.0, 20.5], [0.0, 44.0, 13.5], [0.0, 0.0, 1.0]]).double().repeat(3, 1, 1)
    )
    scene = geomtx.reconstruct(model, images, cameras=cameras)
    torch.testing.assert_close(scene.cameras.cam_from_world.double(), cameras.cam_from_world, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scene.cameras.intrinsics.double(), cameras.intrinsics, rtol=1e-5, atol=1e-3)
    helped = model(images, cameras=Cameras(*(each.float() for each in cameras))).depth.value[0]
    ratio = scene.predictions.depth.value / helped
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-3, atol=0)
    with pytest.raises(ValueError, match=r"^cameras must be None for this Pi3, which takes none, got some"):
        geomtx.reconstruct(build().float(), images, cameras=cameras)
