import json
from pathlib import Path

import pytest
import torch

from geomtx import VGGT, VGGTConfig
from geomtx.models.vggt.keys import VGGT_KEYS, parse_config, published_config

NAMES = Path(__file__).parents[2] / "goldens" / "vggt_1b_names.json"


@pytest.fixture(scope="module")
def published() -> dict[str, tuple[int, ...]]:
    """Every tensor of the published checkpoint, name → shape."""
    return {name: tuple(shape) for name, shape in json.loads(NAMES.read_text()).items()}


@pytest.fixture(scope="module")
def ours() -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = VGGT(VGGTConfig())
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def test_every_published_tensor_is_one_of_ours_with_its_shape(published, ours):
    assert len(published) == 1797
    assert {VGGT_KEYS.to_geomtx(name): shape for name, shape in published.items()} == ours


def test_every_one_of_ours_is_a_published_one(published, ours):
    assert {VGGT_KEYS.to_published(name): shape for name, shape in ours.items()} == published


def test_round_trips(published, ours):
    for name in published:
        assert VGGT_KEYS.to_published(VGGT_KEYS.to_geomtx(name)) == name
    for name in ours:
        assert VGGT_KEYS.to_geomtx(VGGT_KEYS.to_published(name)) == name


def test_a_name_of_both_kinds_means_the_same(published, ours):
    """Checkpoints may have either names, so none may be a different tensor's name in the other kind."""
    for name in published.keys() & ours.keys():
        assert VGGT_KEYS.to_geomtx(name) == name


def test_odd_spellings_stay_in_the_table(ours):
    for odd in ("virual", "poseLN", "resConfUnit", "scratch", "refinenet", "_rn"):
        assert not any(odd in name for name in ours), odd


@pytest.mark.parametrize(
    "name",
    [
        "aggregator.frame_blocks.0.attn.qkv",
        "aggregator.frame_blocks.x.attn.qkv.weight",
        "frame_blocks.0.attn.qkv.weight",
        "aggregator.camera_tokens",
        "depth_head.scratch.layer5_rn.weight",
        "depth_head.scratch.refinenet0.out_conv.weight",
        "depth_head.scratch.refinenet1.resConfUnit3.conv1.weight",
        "track_head.tracker.updateformer.virtual_tracks",
        "camera_head.poseLN_modulation.0.weight",
        "optimizer.state",
        "",
    ],
)
def test_unknown_names_give_none(name):
    assert VGGT_KEYS.to_geomtx(name) is None


def test_names_of_a_backbone_without_a_vit():
    with torch.device("meta"):
        model = VGGT(VGGTConfig.tiny(backbone="conv"))
    names = [VGGT_KEYS.to_published(name) for name in model.state_dict()]
    assert None not in names
    assert len(set(names)) == len(names)
    assert {name for name in names if "patch_embed" in name} == {
        "aggregator.patch_embed.proj.weight",
        "aggregator.patch_embed.proj.bias",
    }


def test_published_configuration():
    config = VGGTConfig.tiny(heads=("camera", "points"))
    assert published_config(config) == {
        "img_size": 70,
        "patch_size": 14,
        "embed_dim": 32,
        "enable_camera": True,
        "enable_depth": False,
        "enable_point": True,
        "enable_track": False,
    }


def test_configurations_of_either_kind_are_read():
    heads = ("camera", "tracks")
    assert parse_config(published_config(VGGTConfig(heads=heads))) == VGGTConfig(heads=heads)
    assert parse_config({"img_size": 518, "patch_size": 14, "embed_dim": 1024}) == VGGTConfig()
    assert parse_config({"embed_dim": 1024, "enable_track": False}).heads == ("camera", "depth", "points")
    assert parse_config({"img_size": 224, "anything": "else"}) == VGGTConfig(image_size=224)
    tiny = VGGTConfig.tiny(heads=heads)
    assert parse_config(tiny.to_dict()) == tiny
    with pytest.raises(ValueError, match=r"^config key must be one of .*, got 'architectures'$"):
        parse_config({"architectures": ["VGGT"]})
