import json

import pytest

import geomtx
from geomtx.models.nvs.config import NVSConfig


def test_plain_values_there_and_back():
    for config in (
        NVSConfig(),
        NVSConfig.nano(),
        NVSConfig.tiny(
            isolate_targets=True, known_cameras=True, ray_order="direction_moment", rgb_channels=(4, 8, 8, 8)
        ),
    ):
        assert NVSConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert NVSConfig.tiny().patch_size == 14
    assert NVSConfig.tiny().vggt == geomtx.VGGTConfig.tiny()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vggt": 3}, r"^vggt must be a VGGTConfig, got 3$"),
        ({"ray_order": "dm"}, r"^ray_order must be one of 'moment_direction', 'direction_moment', got 'dm'$"),
        ({"rgb_features": 0}, r"^rgb_features must be a whole number, at least 1, got 0$"),
        ({"isolate_targets": "no"}, r"^isolate_targets must be True or False, got 'no'$"),
        ({"known_cameras": 1}, r"^known_cameras must be True or False, got 1$"),
        ({"rgb_hidden": None}, r"^rgb_hidden must be a whole number, at least 1, got None$"),
        ({"rgb_hidden": 0}, r"^rgb_hidden must be a whole number, at least 1, got 0$"),
        ({"rgb_channels": 5}, r"^rgb_channels must be four whole numbers, got 5$"),
        ({"rgb_channels": (4, 8, 8)}, r"^rgb_channels must be four whole numbers, got \(4, 8, 8\)$"),
        ({"rgb_channels": (4, 8, 8, 0)}, r"^rgb_channels must be a whole number, at least 1, got 0$"),
        ({"camera_drop": "0.4"}, r"^camera_drop must be a number, got '0.4'$"),
        ({"camera_drop": True}, r"^camera_drop must be a number, got True$"),
        ({"camera_drop": 2}, r"^camera_drop must be in 0 … 1, got 2$"),
        (
            {"isolate_targets": True, "vggt": geomtx.VGGTConfig.tiny(scopes=("frame", "cross"))},
            r"^isolate_targets must be False with the scope 'cross', got True$",
        ),
    ],
)
def test_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        NVSConfig(**changes)


def test_unknown_keys():
    with pytest.raises(ValueError, match=r"^config key must be one of .*, got 'rays'$"):
        NVSConfig.from_dict({"rays": 1})


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vggt": 3}, r"^vggt must be a mapping of keys, got 3$"),
        ({"vggt": {"width": 3}}, r"^config key must be one of .*, got 'vggt.width'; did you mean"),
        ({"vggt": {"num_heads": 0}}, r"^vggt.num_heads must be positive, got 0$"),
        ({"rgb_hidden": "32"}, r"^rgb_hidden must be a whole number, got '32'$"),
        ({"rgb_channels": "1234"}, r"^rgb_channels must be a list, got '1234'$"),
        ({"input_rays": 0}, r"^input_rays must be true or false, got 0$"),
    ],
)
def test_plain_values_that_make_no_configuration(values, message):
    with pytest.raises(ValueError, match=message):
        NVSConfig.from_dict(values)
