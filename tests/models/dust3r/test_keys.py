import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from geomtx import CroCo, CroCoConfig, DUSt3R, DUSt3RConfig, MASt3R, MASt3RConfig
from geomtx.checkpoint.files import SkippedInitialisation
from geomtx.checkpoint.key_table import KeyTable
from geomtx.models.dust3r.keys import CROCO_KEYS, DUST3R_KEYS, config_of, repeated_names
from geomtx.models.published import PUBLISHED
from geomtx.models.registry import FAMILIES

NAMES = json.loads((Path(__file__).parents[2] / "goldens" / "dust3r_names.json").read_text())
MODELS = {"dust3r": (DUSt3R, DUSt3RConfig()), "mast3r": (MASt3R, MASt3RConfig())}


def build(kind: type[nn.Module], config) -> nn.Module:
    with torch.device("meta"), SkippedInitialisation():
        return kind(config)


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", MODELS)
def test_names_and_shapes_are_the_published_ones(name):
    """Both ways; of the names that one tensor has in published files, the first."""
    ours = shapes_of(build(*MODELS[name]))
    published = {each: tuple(shape) for each, shape in NAMES[name].items()}
    repeated = repeated_names(published)
    assert len(repeated) == 8
    assert all(".layer_rn." in each for each in repeated)
    once = {each: shape for each, shape in published.items() if each not in repeated}
    assert {DUST3R_KEYS.to_published(each): shape for each, shape in ours.items()} == once
    assert [DUST3R_KEYS.to_geomtx(DUST3R_KEYS.to_published(each)) for each in ours] == list(ours)
    assert {DUST3R_KEYS.to_geomtx(each) for each in repeated} <= ours.keys()
    assert config_of(published, "a file") == MODELS[name][1]


def test_a_linear_head_has_a_layer_in_the_place_of_136_names():
    model = build(DUSt3R, DUSt3RConfig(head="linear", image_size=224))
    ours = {DUST3R_KEYS.to_published(name): shape for name, shape in shapes_of(model).items()}
    kept = {name for name in NAMES["dust3r"] if ".dpt." not in name}
    heads = {f"downstream_head{head}.proj.{leaf}" for head in (1, 2) for leaf in ("weight", "bias")}
    assert ours.keys() == kept | heads
    assert len(NAMES["dust3r"]) - len(kept) == 136
    assert ours["downstream_head1.proj.weight"] == (1024, 768)
    assert config_of(ours, "DUSt3R_ViTLarge_BaseDecoder_224_linear.pth") == model.config
    assert config_of(ours, "DUSt3R_ViTLarge_BaseDecoder_224_linear/model.safetensors") == model.config
    assert config_of(ours, "/data/20240224_224/runs/2240/weights_2241.safetensors").image_size == 512
    assert config_of(ours, "a file", 512).image_size == 512


CROCO = {
    "naver/CroCo_V2_ViTLarge_BaseDecoder": CroCoConfig(),
    "naver/CroCo_V2_ViTBase_BaseDecoder": CroCoConfig(768, 12, 12),
    "naver/CroCo_V2_ViTBase_SmallDecoder": CroCoConfig(768, 12, 12, 512, 8, 16),
    "naver/CroCo": CroCoConfig(768, 12, 12, 512, 8, 16, rope_base=None),
}


def invert(keys: KeyTable, names) -> list[str | None]:
    return [keys.to_geomtx(keys.to_published(name)) for name in names]


@pytest.mark.parametrize("name", CROCO)
def test_croco(name):
    ours = shapes_of(build(CroCo, CROCO[name]))
    assert invert(CROCO_KEYS, ours) == list(ours)
    published = {CROCO_KEYS.to_published(each): shape for each, shape in ours.items()}
    assert config_of(published, "a file") == CROCO[name]
    # What DUSt3R's names have of it, but for the second stream's and the heads'.
    shared = {each for each in published if "prediction_head" not in each and "pos_embed" not in each}
    assert {each for each in shared if "blocks.7." in each} <= NAMES["dust3r"].keys()


@pytest.mark.parametrize("name", [name for name, weights in PUBLISHED.items() if weights.kind in ("DUSt3R", "MASt3R")])
def test_the_numbers_of_parameters_are_the_published_ones(name):
    weights = PUBLISHED[name]
    head = "linear" if "linear" in name else "dpt"
    config = MASt3RConfig() if weights.kind == "MASt3R" else DUSt3RConfig(head=head)
    model = build(MASt3R if weights.kind == "MASt3R" else DUSt3R, config)
    assert sum(math.prod(shape) for shape in shapes_of(model).values()) == weights.num_parameters
    assert weights.licence.startswith("CC BY-NC-SA 4.0: no commercial use")
    assert weights.kind in {family.model.__name__ for family in FAMILIES}


@pytest.mark.parametrize("name", CROCO)
def test_the_numbers_of_crocos_parameters(name):
    found = sum(math.prod(shape) for shape in shapes_of(build(CroCo, CROCO[name])).values())
    assert PUBLISHED[name].num_parameters == found
    assert PUBLISHED[name].kind == "CroCo"


def test_configurations_are_checked():
    with pytest.raises(ValueError, match=r"^head must be one of 'dpt', 'linear', got 'cnn'$"):
        DUSt3RConfig(head="cnn")
    with pytest.raises(ValueError, match=r"^dim / num_heads must be a multiple of 4, got 6\.0$"):
        DUSt3RConfig(dim=24, num_heads=4)
    with pytest.raises(ValueError, match=r"^image_size must be a multiple of 16, got 100$"):
        CroCoConfig(image_size=100)
    with pytest.raises(ValueError, match=r"^head must be one of 'dpt', got 'linear'$"):
        MASt3RConfig(head="linear")
    for config in (DUSt3RConfig.tiny(), MASt3RConfig.tiny(), CroCoConfig.tiny(rope_base=None)):
        assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config
