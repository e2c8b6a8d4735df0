import dataclasses
import json

import pytest

from geomtx import VGGTConfig, VideoTrackerConfig


@pytest.mark.parametrize("config", [VideoTrackerConfig(), VideoTrackerConfig.tiny(window=6), VideoTrackerConfig.nano()])
def test_there_and_back_through_json(config):
    assert VideoTrackerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_frozen_and_what_it_is_made_for():
    config = VideoTrackerConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.window = 4
    assert (config.window, config.window_stride, config.iterations, config.test_iterations) == (8, 4, 4, 6)
    assert config.vggt == VGGTConfig()
    assert config.patch_size == 14
    assert VideoTrackerConfig.nano(features="images").patch_size == 2


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"windows": 8}, r"^config key must be one of .*, got 'windows'; did you mean 'window'"),
        ({"window": "8"}, r"^window must be a whole number, got '8'$"),
        ({"vggt": 3}, r"^vggt must be a mapping of keys, got 3$"),
        ({"vggt": {"width": 3}}, r"^config key must be one of .*, got 'vggt.width'"),
        ({"features": "sift"}, r"^features must be one of 'vggt', 'images', got 'sift'$"),
        ({"stride": 3}, r"^stride must be a multiple of 2, got 3$"),
        ({"window_stride": 8}, r"^window_stride must be in 1 … 7, got 8$"),
        ({"encoder_frames": -1}, r"^encoder_frames must be a whole number, at least 0, got -1$"),
        ({"radius": -1}, r"^radius must be a whole number, at least 0, got -1$"),
        ({"radius": 1.5}, r"^radius must be a whole number, got 1.5$"),
        ({"image_width": 0}, r"^image_width must be a whole number, at least 1, got 0$"),
        ({"image_width": None}, r"^image_width must be a whole number, got None$"),
        ({"image_width": 6, "features": "images"}, r"^image_width must be a multiple of 4, got 6$"),
        ({"window_stride": 1.5}, r"^window_stride must be a whole number, got 1.5$"),
        ({"depth": 0}, r"^depth must be a whole number, at least 1, got 0$"),
    ],
)
def test_errors(values, error):
    with pytest.raises(ValueError, match=error):
        VideoTrackerConfig.from_dict(values)


@pytest.mark.usefixtures("unchecked")
def test_a_vggt_that_is_no_configuration():
    with pytest.raises(ValueError, match=r"^vggt must be a VGGTConfig, got 3$"):
        VideoTrackerConfig(vggt=3)
