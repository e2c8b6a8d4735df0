import inspect

import pytest
import torch
from torch import nn

import geomtx
from geomtx.models.vggt.config import HEAD_MODULES
from geomtx.training.prepare import detach_heads, run_heads_in_float32


@pytest.mark.parametrize("head", ["camera", "depth", "points", "tracks"])
def test_probes_leave_the_encoder_alone(head: str, tiny_model: geomtx.VGGT, images: torch.Tensor):
    detach_heads(tiny_model, [head])
    predictions = tiny_model(images, torch.rand(2, 3, 2) * 50, heads=(head,))
    output = predictions.pose_encodings if head == "camera" else getattr(predictions, head)[0]
    output.square().sum().backward()
    assert all(parameter.grad is None for parameter in tiny_model.encoder.parameters())
    module = tiny_model.get_submodule(HEAD_MODULES[head])
    assert any((parameter.grad != 0).any() for parameter in module.parameters() if parameter.grad is not None)


def test_a_head_that_is_not_there():
    model = geomtx.VGGT(geomtx.VGGTConfig.tiny(heads=("camera",)))
    with pytest.raises(ValueError, match=r"^detach must be one of 'camera', got 'depth'$"):
        detach_heads(model, ["depth"])


def test_under_autocast_heads_compute_in_float32(tiny_model: geomtx.VGGT, images: torch.Tensor):
    seen = set()

    def look(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        seen.add(output.dtype)

    for module in tiny_model.depth_head.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(look)
    with torch.autocast("cpu", torch.bfloat16):
        tiny_model(images, heads=("depth",))
        assert torch.bfloat16 in seen
        seen.clear()
        run_heads_in_float32(tiny_model)
        predictions = tiny_model(images, heads=("depth",))
    assert seen == {torch.float32}
    with torch.no_grad():
        exact = tiny_model(images, heads=("depth",))
    assert predictions.depth.value.dtype == torch.float32
    torch.testing.assert_close(predictions.depth.value.detach(), exact.depth.value, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("attribute", HEAD_MODULES.values())
def test_heads_get_tokens_and_never_pixels(attribute: str, tiny_model: geomtx.VGGT):
    """One encoder, heads beside each other: none has a stem of its own."""
    head = getattr(tiny_model, attribute)
    assert next(iter(inspect.signature(head.forward).parameters)) == "tokens"
    assert not {"images", "predictions"} & inspect.signature(head.forward).parameters.keys()
    stems = [m for m in head.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3]
    assert stems == []


def add_normals(model: geomtx.VGGT) -> None:
    decoder = geomtx.DPTDecoder(64, 16, channels=(16, 16, 32, 32), taps=(0, 1, 2, 3))
    model.add_head("normals", geomtx.DenseHead(decoder, 3))


def test_added_heads_can_be_probes(tiny_model: geomtx.VGGT, images: torch.Tensor):
    add_normals(tiny_model)
    detach_heads(tiny_model, ["normals"])
    tiny_model(images, heads=("normals",)).extra["normals"].value.square().sum().backward()
    assert all(parameter.grad is None for parameter in tiny_model.encoder.parameters())
    assert any(parameter.grad is not None for parameter in tiny_model.extra_heads.parameters())
    with pytest.raises(ValueError, match=r"^detach must be one of 'camera', .*'normals', got 'colours'$"):
        detach_heads(tiny_model, ["colours"])


def test_added_heads_compute_in_float32(tiny_model: geomtx.VGGT, images: torch.Tensor):
    add_normals(tiny_model)
    seen = set()
    tiny_model.extra_heads["normals"].hidden.register_forward_hook(lambda *args: seen.add(args[2].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        tiny_model(images, heads=("normals",))
        assert seen == {torch.bfloat16}
        seen.clear()
        run_heads_in_float32(tiny_model)
        tiny_model(images, heads=("normals",))
    assert seen == {torch.float32}


def test_heads_of_a_model_around_a_vggt_leave_autocast_too(tiny_model: geomtx.VGGT, images: torch.Tensor):
    model = geomtx.VGGTForNVS.from_vggt(tiny_model)
    run_heads_in_float32(model)
    seen = set()
    for head in (model.rgb_head, tiny_model.depth_head):
        head.hidden.register_forward_hook(lambda module, args, output: seen.add((module, output.dtype)))
    cameras = geomtx.Cameras(torch.eye(3, 4).expand(2, 1, 3, 4), torch.eye(3).expand(2, 1, 3, 3))
    with torch.autocast("cpu", torch.bfloat16):
        model(images, cameras, scene_images=images)
    assert seen == {(model.rgb_head.hidden, torch.float32), (tiny_model.depth_head.hidden, torch.float32)}
