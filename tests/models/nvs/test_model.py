import dataclasses
from pathlib import Path

import pytest
import torch

from geometry.random_cameras import random_rigid
from geomtx import VGGT, VideoTracker, VideoTrackerConfig
from geomtx.geometry import relate_cameras
from geomtx.heads import DenseHead, DPTDecoder
from geomtx.layers import key_mask
from geomtx.models.nvs import NVSConfig, VGGTForNVS
from geomtx.models.nvs.model import _IsolatedViews
from geomtx.types import Cameras
from lean import build_lean, lean_config

HW = (28, 42)


def make_model(**changes) -> VGGTForNVS:
    model = VGGTForNVS(NVSConfig.tiny(**{"vggt": lean_config(heads=("depth",)), **changes}))
    with torch.no_grad():
        torch.nn.init.normal_(model.rgb_head.out.weight)
        if model.conditioning is not None:
            torch.nn.init.normal_(model.conditioning.contract.weight)
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.uniform_(0.2, 0.6)
    return model.eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 3, *HW)


@pytest.fixture
def vggt() -> VGGT:
    return build_lean(heads=("camera", "depth"))


def make_cameras(*shape: int) -> Cameras:
    intrinsics = torch.tensor([[40.0, 0, HW[1] / 2], [0, 40.0, HW[0] / 2], [0, 0, 1]]).expand(*shape, 3, 3)
    return Cameras(random_rigid(*shape).float(), intrinsics)


def make_inputs(*shape: int) -> Cameras:
    """The first of every scene is the world."""
    cameras = make_cameras(*shape)
    cameras.cam_from_world[:, 0] = torch.eye(3, 4)
    return cameras


def take(cameras: Cameras, *index) -> Cameras:
    return Cameras(*(t[index] for t in cameras))


def test_pictures_of_every_target_with_and_without_the_axis_of_scenes(images):
    model, targets = make_model(), make_cameras(2, 4)
    made = model(images, targets).images
    assert made.shape == (2, 4, 3, *HW)
    assert 0 <= made.min() < made.max() <= 1
    torch.testing.assert_close(model(images[1], take(targets, 1)).images, made[1:])
    torch.testing.assert_close(model(images[1:], take(targets, slice(1, None))).images, made[1:])


def test_a_picture_depends_on_the_photos_and_on_its_camera(images):
    model, targets = make_model(), make_cameras(2, 1)
    made = model(images, targets).images
    assert (model(1 - images, targets).images - made).abs().max() > 1e-3
    assert (model(images, make_cameras(2, 1)).images - made).abs().max() > 1e-3
    torch.nn.init.normal_(model.encoder.special.camera.data[:, 0])  # of the first view alone
    assert (model(images, targets).images - made).abs().max() > 1e-5


def test_isolated_targets_do_not_depend_on_the_others(images):
    model, targets = make_model(isolate_targets=True), make_cameras(2, 4)
    made = model(images, targets).images
    alone = torch.cat([model(images, take(targets, slice(None), slice(i, i + 1))).images for i in range(4)], dim=1)
    assert (made - alone).abs().max() < 1e-5
    paper = make_model()
    paper.load_state_dict(model.state_dict())
    together = paper(images, targets).images
    assert (paper(images, take(targets, slice(None), slice(1))).images - together[:, :1]).abs().max() > 1e-5


def test_isolated_targets_are_attention_with_a_mask(images):
    """No view attends to a target but itself; the images' blocks are those of a scene without targets."""
    model, targets = make_model(isolate_targets=True).double(), make_cameras(2, 2)
    targets = Cameras(*(each.double() for each in targets))
    views, attend = model.embed(images.double(), targets)
    num = views.x.shape[1]
    view = torch.arange(num).repeat_interleave(views.x.shape[2])
    allowed = (view[None] < num - 2) | (view[:, None] == view[None])  # queries are rows
    plain = model.encoder.attention(views)
    masked = dataclasses.replace(plain["global"], mask=allowed[None, None])
    for number, block in enumerate(model.encoder.global_blocks):
        torch.testing.assert_close(attend["global"](number, block, views.x), masked(number, block, views.x))
    made = model.encoder.collect(views, attend)
    alone = model.encoder(images.double())
    for index, layer in alone.layers.items():
        torch.testing.assert_close(made.layers[index][:, :3], layer, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.decode(made, targets).images, model(images.double(), targets).images)


def test_masked_tokens_of_isolated_views_are_no_keys(images):
    """As in attention with a mask of pairs, also where the images' patches are masked."""
    model, targets = make_model(isolate_targets=True).double(), Cameras(*(each.double() for each in make_cameras(2, 2)))
    views, _ = model.embed(images.double(), targets)
    mask = torch.rand(views.x.shape[:3]) > 0.3
    views = views._replace(mask=mask)
    num = views.x.shape[1]
    view = torch.arange(num).repeat_interleave(views.x.shape[2])
    allowed = (view[None] < num - 2) | (view[:, None] == view[None])
    table = _IsolatedViews(2, model.encoder.rotary_table(views), mask)
    both = allowed[None, None] & key_mask(mask.flatten(1))
    masked = dataclasses.replace(model.encoder.attention(views)["global"], mask=both)
    block = model.encoder.global_blocks[0]
    torch.testing.assert_close(table(0, block, views.x), masked(0, block, views.x))


def test_the_order_of_the_rays_is_the_configurations(images):
    model, targets = make_model(), make_cameras(2, 1)
    other = make_model(ray_order="direction_moment")
    other.load_state_dict(model.state_dict())
    other.ray_embedding.project.weight.data = model.ray_embedding.project.weight.data.roll(3, dims=1)
    torch.testing.assert_close(other(images, targets).images, model(images, targets).images)


@pytest.mark.parametrize("how", ["known_cameras", "input_rays"])
def test_known_cameras(images, how):
    model, targets, cameras = make_model(**{how: True}), make_cameras(2, 1), make_inputs(2, 3)
    without = model(images, targets).images
    made = model(images, targets, input_cameras=cameras).images
    assert (made - without).abs().max() > 1e-4
    unknown = torch.zeros(2, 3, dtype=torch.bool)
    torch.testing.assert_close(model(images, targets, input_cameras=cameras, input_mask=unknown).images, without)
    single = model(images[0], take(targets, 0), input_cameras=take(cameras, 0), input_mask=~unknown[0])
    torch.testing.assert_close(single.images, made[:1])
    garbage = Cameras(cameras.cam_from_world * torch.nan, cameras.intrinsics * torch.nan)
    torch.testing.assert_close(model(images, targets, input_cameras=garbage, input_mask=unknown).images, without)
    model.train()
    model.config = dataclasses.replace(model.config, camera_drop=1.0)
    torch.testing.assert_close(model(images, targets, input_cameras=cameras).images, without)


def test_scenes_of_a_batch_do_not_meet(images):
    model = make_model(known_cameras=True)
    inputs, targets = make_inputs(2, 3), make_cameras(2, 2)
    mask = torch.tensor([[True, True, False], [True, False, True]])
    made = model(images, targets, input_cameras=inputs, input_mask=mask).images
    for b in range(2):
        alone = model(images[b], take(targets, b), input_cameras=take(inputs, b), input_mask=mask[b]).images
        assert (alone - made[b : b + 1]).abs().max() < 1e-5


def test_half_precision_leaves_the_rays_as_they_are(images):
    """A pixel's width to the side is still another picture."""
    model, targets = make_model(), make_cameras(2, 1)
    model.ray_embedding.project.register_forward_hook(lambda module, args, out: rays.append((args[0], out)))
    rays: list[tuple[torch.Tensor, torch.Tensor]] = []
    exact = model(images, targets).images
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = model(images, targets).images
    assert made.dtype == torch.float32
    assert (made - exact).abs().max() < 0.05
    model.bfloat16()(images, targets)
    assert [tuple(t.dtype for t in pair) for pair in rays] == [(torch.float32, torch.float32)] * 3
    assert torch.equal(rays[2][0], rays[0][0])


def test_cameras_of_any_precision(images):
    model, targets = make_model(), make_cameras(2, 1)
    mixed = Cameras(targets.cam_from_world.double(), targets.intrinsics)
    torch.testing.assert_close(model(images, mixed).images, model(images, targets).images)


def test_the_vggt_inside_is_a_vggt(images, vggt):
    model = VGGTForNVS.from_vggt(vggt)
    assert model.vggt is vggt
    assert not model.training
    expected = vggt(images)
    assert torch.equal(model.vggt(images).depth.value, expected.depth.value)


def test_every_parameter_of_what_is_new_has_a_gradient_and_so_has_the_encoder(images):
    for isolated in (False, True):
        model = make_model(known_cameras=True, camera_drop=0.0, isolate_targets=isolated).train()
        model(images, make_cameras(2, 2), input_cameras=make_inputs(2, 3)).images.square().mean().backward()
        silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        # Masks of patches have a token of their own, and the last global block's input tokens feed nothing but targets.
        silent = [
            name for name in silent if not name.startswith(("vggt.camera", "vggt.depth", "vggt.point", "vggt.track"))
        ]
        assert [name for name in silent if "mask_token" not in name] == []


def test_saved_and_loaded_is_equal(images, tmp_path: Path):
    model, targets = make_model(known_cameras=True, isolate_targets=True, rgb_features=8), make_cameras(2, 2)
    model.save_pretrained(tmp_path / "nvs")
    loaded = VGGTForNVS.from_pretrained(tmp_path / "nvs")
    assert loaded.config == model.config
    assert torch.equal(loaded(images, targets).images, model(images, targets).images)
    alone = VGGTForNVS.from_pretrained(tmp_path / "nvs" / "model.safetensors", dtype=torch.float64)
    assert next(alone.parameters()).dtype == torch.float64
    with pytest.raises(ValueError, match=r"^numbers must be none for weights that bring theirs, got rgb_features$"):
        VGGTForNVS.from_pretrained(tmp_path / "nvs", rgb_features=8)


def test_numbers_that_are_none(vggt, tmp_path: Path):
    vggt.save_pretrained(tmp_path)
    for name in ("rgb_hiden", "vggt"):
        with pytest.raises(ValueError, match=rf"^number must be one of .*'rgb_hidden', got '{name}'$"):
            VGGTForNVS.from_vggt(vggt, **{name: 8})
        with pytest.raises(ValueError, match=rf"^number must be one of .*'rgb_hidden', got '{name}'$"):
            VGGTForNVS.from_pretrained(tmp_path, **{name: 8})


def test_weights_of_another_kind(tmp_path: Path):
    make_model().save_pretrained(tmp_path / "nvs")
    VideoTracker(VideoTrackerConfig.tiny(features="images")).save_pretrained(tmp_path / "tracker")
    with pytest.raises(
        ValueError,
        match=r"^weights must be of a VGGT, got '.*nvs' of a VGGTForNVS; VGGTForNVS.from_pretrained\('.*nvs'\)",
    ):
        VGGT.from_pretrained(tmp_path / "nvs")
    with pytest.raises(
        ValueError, match=r"^weights must be of a VGGT, got '.*tracker' of a VideoTracker; VideoTracker\."
    ):
        VGGTForNVS.from_vggt(tmp_path / "tracker")
    with pytest.raises(
        ValueError, match=r"^weights must be of a VGGTForNVS, got '.*' of a VideoTracker; VideoTracker\."
    ):
        VGGTForNVS.from_pretrained(tmp_path / "tracker")


def test_added_heads_of_the_vggt_inside(images, vggt, tmp_path: Path):
    def build() -> DenseHead:
        return DenseHead(DPTDecoder(64, 16, channels=(16, 16, 32, 32), taps=(0, 0, 1, 1)), 3)

    vggt.add_head("normals", build())
    vggt.save_pretrained(tmp_path / "vggt")
    VGGTForNVS.from_vggt(vggt).save_pretrained(tmp_path / "nvs")
    expected = vggt(images).extra["normals"].value
    for source in ("nvs", "vggt"):
        model = VGGTForNVS.from_pretrained(tmp_path / source, extra_heads={"normals": build()})
        assert torch.equal(model.vggt(images).extra["normals"].value, expected)
    bare = VGGTForNVS.from_pretrained(tmp_path / "vggt", extra_heads={"normals": None}, rgb_features=8)
    assert bare.vggt.heads == vggt.config.heads


def test_weights_of_a_plain_vggt(images, vggt, tmp_path: Path):
    vggt.save_pretrained(tmp_path / "vggt")
    model = VGGTForNVS.from_pretrained(tmp_path / "vggt", isolate_targets=True, rgb_features=8)
    assert model.config == NVSConfig(vggt=vggt.config, isolate_targets=True, rgb_features=8)
    assert torch.equal(model.vggt(images).depth.value, vggt(images).depth.value)
    assert (model(images, make_cameras(2, 1)).images - 0.5).abs().max() < 0.3  # fresh
    assert next(VGGTForNVS.from_vggt("nano", dtype=torch.float16).parameters()).dtype == torch.float16


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_cameras": None}, r"^target_cameras must be given, got None$"),
        ({"target_cameras": make_cameras(2, 0)}, r"^target_cameras must be at least one a scene, got 0$"),
        (
            {"target_cameras": make_cameras(1, 2)},
            r"^target_cameras.cam_from_world must have shape \(2, T, 3, 4\), got \(1, 2, 3, 4\)$",
        ),
        (
            {"target_cameras": Cameras(make_cameras(2, 2)[0], make_cameras(2, 1)[1])},
            r"^target_cameras.intrinsics must have shape \(2, 2, 3, 3\), got \(2, 1, 3, 3\)$",
        ),
        ({"images": torch.rand(2, 3, 3, 57, 42)}, r"^image height must be a multiple of 14, got 57$"),
        (
            {"images": torch.rand(2, 3, *HW)},  # one scene, whose cameras have the axis of scenes
            r"^target_cameras.cam_from_world must have shape \(1, T, 3, 4\), got \(1, 2, 1, 3, 4\)$",
        ),
        (
            {"input_cameras": make_cameras(2, 3)},
            r"^input_cameras must be None for a model without config.known_cameras or config.input_rays, got some$",
        ),
        ({"input_mask": torch.ones(2, 3).bool()}, r"^input_mask must be None without input_cameras, got a mask$"),
    ],
)
def test_errors(images, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_model()(**{"images": images, "target_cameras": make_cameras(2, 1), **arguments})


@pytest.mark.usefixtures("unchecked")
def test_input_cameras_are_as_many_as_photos(images):
    with pytest.raises(
        ValueError, match=r"^input_cameras.cam_from_world must have shape \(2, 3, 3, 4\), got \(2, 2, 3, 4\)$"
    ):
        make_model(known_cameras=True)(images, make_cameras(2, 1), input_cameras=make_cameras(2, 2))


def test_input_cameras_are_in_the_frame_of_the_first(images):
    model, targets, world = make_model(input_rays=True), make_cameras(2, 1), make_cameras(2, 3)
    with pytest.raises(
        ValueError,
        match=r"^input_cameras must be in the frame of the first input view, got a first camera that is not the "
        r"identity; geomtx.geometry.relate_cameras brings cameras there$",
    ):
        model(images, targets, input_cameras=world)
    related = relate_cameras(world, targets)
    model(images, related.targets, input_cameras=related.inputs)
    known = torch.tensor([False, True, True]).expand(2, 3)
    model(images, targets, input_cameras=world, input_mask=known)  # what an unknown one holds is not read


def test_a_vggt_of_another_configuration(vggt):
    with pytest.raises(ValueError, match=r"^vggt must have the configuration config.vggt, got another one$"):
        VGGTForNVS(NVSConfig.nano(), vggt)
