import dataclasses
import json

import pytest
import torch

from geomtx import VGGT, VGGTConfig


@pytest.mark.parametrize(
    "config", [VGGTConfig(), VGGTConfig.tiny(), VGGTConfig.tiny(heads=("depth",), backbone="conv")]
)
def test_round_trip_through_json(config):
    values = json.loads(json.dumps(config.to_dict()))
    assert VGGTConfig.from_dict(values) == config
    assert set(values) == {field.name for field in dataclasses.fields(VGGTConfig)}


def test_what_is_not_said_is_as_in_vggt_1b():
    assert VGGTConfig.from_dict({"dim": 512}) == dataclasses.replace(VGGTConfig(), dim=512)
    assert VGGTConfig.from_dict({}) == VGGTConfig()


def test_the_numbers_of_vggt_1b():
    config = VGGTConfig()
    assert (config.dim, config.depth, config.num_heads, config.vit_depth, config.vit_num_heads) == (
        1024,
        24,
        16,
        24,
        16,
    )
    assert (config.patch_size, config.image_size, config.num_registers, config.rope_base) == (14, 518, 4, 100)
    assert (config.taps, config.dpt_features, config.dpt_channels) == ((4, 11, 17, 23), 256, (256, 512, 1024, 1024))
    assert (config.camera_depth, config.camera_num_heads, config.camera_iterations) == (4, 16, 4)
    assert (config.track_features, config.track_levels, config.track_radius, config.track_iterations) == (128, 7, 4, 4)
    assert (config.track_dim, config.track_num_heads, config.track_depth, config.track_virtual) == (384, 8, 6, 64)
    assert config.heads == ("camera", "depth", "points", "tracks")


def test_tiny_takes_changes():
    assert VGGTConfig.tiny(dim=48).dim == 48
    assert dataclasses.replace(VGGTConfig.tiny(dim=48), dim=32) == VGGTConfig.tiny()


def test_is_frozen_and_hashable():
    config = VGGTConfig.tiny()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.dim = 3
    assert hash(config) == hash(VGGTConfig.tiny())
    assert config != VGGTConfig()


@pytest.mark.usefixtures("unchecked")
def test_lists_become_tuples():
    config = VGGTConfig.tiny(taps=[0, 1, 2, 3], heads=["camera"], dpt_channels=[16, 16, 32, 32])
    assert config == VGGTConfig.tiny(heads=("camera",))
    assert hash(config)


def test_unknown_names():
    with pytest.raises(ValueError, match=r"^config key must be one of heads, .*, got 'width'; did you mean"):
        VGGTConfig.from_dict({"width": 3})
    with pytest.raises(TypeError, match="width"):
        VGGTConfig.tiny(width=3)


@pytest.mark.usefixtures("unchecked")
def test_unknown_options():
    with pytest.raises(ValueError, match=r"^backbone must be one of 'vit', 'conv', got 'swin'$"):
        VGGTConfig.tiny(backbone="swin")
    with pytest.raises(ValueError, match=r"^attention must be one of 'auto', 'math', .*'flex', got 'flash'$"):
        VGGTConfig.tiny(attention="flash")
    with pytest.raises(ValueError, match=r"^head must be one of 'camera', 'depth', 'points', 'tracks', got 'normals'$"):
        VGGTConfig.tiny(heads=("camera", "normals"))


@pytest.mark.usefixtures("unchecked")
def test_heads_are_no_single_string():
    with pytest.raises(ValueError, match=r"^heads must be a tuple of names, got 'camera'$"):
        VGGTConfig.tiny(heads="camera")


def test_rotary_positions_need_heads_of_a_multiple_of_four():
    with pytest.raises(ValueError, match=r"^dim / num_heads must be a multiple of 4, got 6.0$"):
        VGGTConfig.tiny(dim=36, num_heads=6)
    with pytest.raises(ValueError, match=r"^dim / num_heads must be a multiple of 4, got 10.6"):
        VGGTConfig.tiny(num_heads=3)
    with pytest.raises(ValueError, match=r"^num_heads must be positive, got 0$"):
        VGGTConfig.tiny(num_heads=0)


def test_sizes_in_between():
    def millions(config: VGGTConfig) -> float:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in VGGT(config).parameters()) / 1e6

    sizes = {name: millions(getattr(VGGTConfig, name)()) for name in ("tiny", "nano", "small", "base")}
    assert [*sizes.values(), 1256] == sorted([*sizes.values(), 1256])  # of VGGT-1B
    assert 50 < sizes["small"] < 150
    assert 250 < sizes["base"] < 600
    assert VGGTConfig.small(heads=("camera",)).heads == ("camera",)


def test_dense_heads_of_a_quarter_of_a_patch():
    with pytest.raises(ValueError, match=r"^patch_size must be a multiple of 4, got 14$"):
        VGGTConfig.tiny(dense_head="pixel_shuffle")
    with pytest.raises(ValueError, match=r"^dense_head must be one of 'dpt', 'pixel_shuffle', got 'mlp'$"):
        VGGTConfig.tiny(dense_head="mlp")
    model = VGGT(VGGTConfig.nano(dense_head="pixel_shuffle", heads=("depth", "points"))).eval()
    with torch.no_grad():
        found = model(torch.rand(2, 3, 16, 24))
    assert found.depth.value.shape == (1, 2, 16, 24)
    assert found.points.value.shape == (1, 2, 16, 24, 3)
