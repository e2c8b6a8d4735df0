from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import geomtx
from geomtx import DenseHead, DPTDecoder, Scene
from geomtx.scene.windows import WindowPlan


@pytest.fixture
def model(tiny_model: geomtx.VGGT) -> geomtx.VGGT:
    """With a dense head of three channels, one of one channel, and one that no scene knows."""

    class Mean(nn.Module):
        def forward(self, tokens: geomtx.Tokens) -> Tensor:
            return tokens.layer(3).mean()

    for name, channels in (("normals", 3), ("heat", 1)):
        decoder = DPTDecoder(64, 16, channels=(16, 16, 32, 32), taps=(0, 1, 2, 3))
        tiny_model.add_head(name, DenseHead(decoder, channels))
    tiny_model.add_head("mean", Mean())
    return tiny_model


@pytest.fixture
def photos() -> Tensor:
    return torch.rand(4, 3, 56, 84)


@pytest.mark.parametrize("memory", ["auto", "low"])
def test_maps_of_dense_heads_are_in_the_scene(model, photos, memory):
    scene = geomtx.reconstruct(model, photos, memory=memory)
    with torch.no_grad():
        extra = model(photos).extra
    assert scene.predictions.extra.keys() == {"normals", "heat"}
    for name in ("normals", "heat"):
        for ours, whole in zip(scene.predictions.extra[name], extra[name], strict=True):
            torch.testing.assert_close(ours, whole[0], rtol=1e-4, atol=1e-5)
    assert scene.extra["normals"][1].value.shape == (56, 84, 3)
    assert scene.extra["heat"][1].value.shape == scene.extra["heat"][1].confidence.shape == (56, 84)
    torch.testing.assert_close(scene.extra["normals"][2].value, scene.predictions.extra["normals"].value[2])
    assert geomtx.reconstruct(model, photos, heads=("camera",)).extra is None


def test_each_channel_comes_to_the_photos_pixels_as_depth_does(model, tmp_path: Path):
    from PIL import Image

    for index in range(2):
        pixels = torch.randint(0, 255, (90, 150, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    scene = geomtx.reconstruct(model, tmp_path, heads=("camera", "normals"))
    found = scene.extra["normals"][1].value
    assert found.shape == (90, 150, 3)
    for channel in range(3):
        plane = scene.predictions.extra["normals"].value[1, ..., channel]
        assert torch.equal(found[..., channel], scene.transforms[1].depth_to_original(plane))


def test_heads_without_maps_are_left_out(model, photos):
    with pytest.raises(ValueError, match=r"^head must be one of .*'normals', 'heat', got 'mean'"):
        geomtx.reconstruct(model, photos, heads=("camera", "mean"))


def test_a_saved_scene_has_them(model, photos, tmp_path: Path):
    scene = geomtx.reconstruct(model, photos)
    scene.save(tmp_path, report=False)
    loaded = Scene.load(tmp_path)
    assert loaded.predictions.extra.keys() == scene.predictions.extra.keys()
    for name, maps in scene.predictions.extra.items():
        assert all(map(torch.equal, loaded.predictions.extra[name], maps))
    plain = geomtx.reconstruct(model, photos, heads=("camera", "depth"))
    plain.save(tmp_path / "plain", report=False)
    assert Scene.load(tmp_path / "plain").predictions.extra is None


def test_windows_are_joined_and_other_frames_leave_them_alone(model, photos):
    scene = geomtx.reconstruct(model, photos, window=WindowPlan(3, 2), heads=("camera", "depth", "normals"))
    parts = [geomtx.reconstruct(model, photos[start : start + 3]).predictions.extra["normals"] for start in (0, 1)]
    joined = scene.predictions.extra["normals"]
    assert joined.value.shape == (4, 56, 84, 3)
    # Of the two views that both windows see, each gives one.
    for ours, first, second in zip(joined, *parts, strict=True):
        torch.testing.assert_close(ours, torch.cat([first[:2], second[1:]]))
    assert all(map(torch.equal, scene.rescale(2.0).predictions.extra["normals"], joined))
