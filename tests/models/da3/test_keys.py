import json
from pathlib import Path

import pytest
import torch

from geomtx import DepthAnything3, DepthAnything3Config
from geomtx.checkpoint.files import SkippedInitialisation
from geomtx.models.da3.keys import config_of, keys_of, published_config

NAMES = json.loads((Path(__file__).parents[2] / "goldens" / "da3_names.json").read_text())


def shapes_of(config: DepthAnything3Config) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"), SkippedInitialisation():
        model = DepthAnything3(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("preset", ["small", "mono"])
def test_names_and_shapes_are_the_published_ones(preset):
    config = getattr(DepthAnything3Config, preset)()
    keys, published = keys_of(config), {name: tuple(shape) for name, shape in NAMES[preset].items()}
    ours = shapes_of(config)
    assert {keys.to_published(name): shape for name, shape in ours.items()} == published
    assert [keys.to_geomtx(keys.to_published(name)) for name in ours] == list(ours)
    assert [keys.to_geomtx(name.removeprefix("model.")) for name in published] == list(map(keys.to_geomtx, published))


def test_the_giants_names():
    """40 blocks in three lists, gated MLPs, and no name twice."""
    config = DepthAnything3Config.giant()
    keys, ours = keys_of(config), shapes_of(config)
    published = {keys.to_published(name): shape for name, shape in ours.items()}
    assert len(published) == len(ours)
    assert None not in published
    assert [keys.to_geomtx(name) for name in published] == list(ours)
    block = "model.backbone.pretrained.blocks"
    assert published[f"{block}.39.mlp.w12.weight"] == (8192, 1536)
    assert published[f"{block}.0.mlp.w3.weight"] == (1536, 4096)
    assert keys.to_geomtx(f"{block}.13.attn.q_norm.weight") == "encoder.global_blocks.0.attention.q_norm.weight"
    assert f"{block}.12.attn.q_norm.weight" not in published


@pytest.mark.parametrize("preset", ["small", "base", "large", "giant", "mono", "metric_large"])
def test_the_configuration_comes_from_sizes_and_name(preset):
    config = getattr(DepthAnything3Config, preset)()
    token = {"model.backbone.pretrained.cls_token": (1, 1, config.dim)}
    camera = {} if config.first_global is None else {"model.backbone.pretrained.camera_token": (1, 2, config.dim)}
    assert config_of(token | camera, published_config(config)["model_name"], "file") == config


def test_a_metric_model_is_known_by_the_name_of_its_file():
    token = {"backbone.pretrained.cls_token": (1, 1, 1024)}
    assert config_of(token, "", "depth-anything/DA3METRIC-LARGE").metric
    assert not config_of(token, "", "depth-anything/DA3MONO-LARGE").metric
    with pytest.raises(ValueError, match=r"^weights must be of a published Depth Anything 3 model, got 'x' 5 wide$"):
        config_of({"backbone.pretrained.cls_token": (1, 1, 5)}, "", "x")
