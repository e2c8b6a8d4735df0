import json
from pathlib import Path

import pytest
import torch

from geomtx import Pi3, Pi3Config
from geomtx.checkpoint.files import SkippedInitialisation
from geomtx.models.pi3.keys import config_of, describe_pi3, is_pi3_name, keys_of
from geomtx.models.registry import FAMILIES

NAMES = json.loads((Path(__file__).parents[2] / "goldens" / "pi3_names.json").read_text())


def published(preset: str) -> dict[str, tuple[int, ...]]:
    """Published name → shape: Pi3's; for Pi3X with others in place of its heads' outputs, and a ViT for depth."""
    names = {name: tuple(shape) for name, shape in NAMES["pi3"].items()}
    if preset == "pi3":
        return names
    extra = {name: tuple(shape) for name, shape in NAMES["pi3x_extra"].items()}
    vit = {f"depth_{name}": shape for name, shape in names.items() if name.startswith("encoder.")}
    names = {name: shape for name, shape in names.items() if not name.startswith(("point_head.", "conf_head."))}
    return names | vit | extra


@pytest.mark.parametrize("preset", ["pi3", "pi3x"])
def test_names_and_shapes_are_the_published_ones(preset):
    config = getattr(Pi3Config, preset)()
    with torch.device("meta"), SkippedInitialisation():
        ours = {name: tuple(tensor.shape) for name, tensor in Pi3(config).state_dict().items()}
    keys = keys_of(config)
    assert {keys.to_published(name): shape for name, shape in ours.items()} == published(preset)
    assert [keys.to_geomtx(keys.to_published(name)) for name in ours] == list(ours)
    assert all(map(is_pi3_name, published(preset)))
    assert config_of(published(preset), "file") == config
    assert describe_pi3(published(preset)) == ("published", config.heads)
    assert describe_pi3(ours) == ("geomtx", config.heads)
    for names in (published(preset), ours):
        assert next(family.model for family in FAMILIES if family.recognises(names)) is Pi3


def test_other_sizes_are_nobodys():
    with pytest.raises(ValueError, match=r"^weights must be of a published Pi3 or Pi3X, got 'x' 32 wide$"):
        config_of({"register_token": (1, 1, 5, 32)}, "x")
