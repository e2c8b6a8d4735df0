import json
import re
from pathlib import Path

import pytest
import torch

from geomtx import VGGTOmega, VGGTOmegaConfig
from geomtx.checkpoint.files import SkippedInitialisation
from geomtx.models.omega.keys import OMEGA_KEYS, config_of, describe_omega
from geomtx.models.published import PUBLISHED, kind_of_names

TEXT = ("camera", "depth", "text")
# Name → shape, blocks once: "{0-23}" stands for all numbers from 0 to 23.
NAMES = json.loads((Path(__file__).parents[2] / "goldens" / "omega_names.json").read_text())


def published_shapes(*, text: bool) -> dict[str, tuple[int, ...]]:
    found = {}
    for name, shape in NAMES.items():
        last = re.search(r"\{0-(\d+)\}", name)
        for number in range(int(last[1]) + 1 if last else 1):
            found[re.sub(r"\{.*\}", str(number), name)] = tuple(shape)
    return {name: shape for name, shape in found.items() if text or not name.startswith("text_")}


@pytest.mark.parametrize("text", [False, True])
def test_names_and_shapes_are_the_published_ones(text):
    """Masks of biases and periods too; both ways, and none twice."""
    shapes = published_shapes(text=text)
    with torch.device("meta"), SkippedInitialisation():
        model = VGGTOmega(VGGTOmegaConfig(heads=TEXT if text else TEXT[:2]))
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert {OMEGA_KEYS.to_published(name): shape for name, shape in ours.items()} == shapes
    assert len(shapes) == len(ours) == (1482 if text else 1411)
    assert [OMEGA_KEYS.to_geomtx(OMEGA_KEYS.to_published(name)) for name in ours] == list(ours)
    assert len(set(map(OMEGA_KEYS.to_geomtx, shapes))) == len(ours)
    assert sum("bias_mask" in name for name in shapes) == (80 if text else 76)
    file = "facebook/VGGT-Omega/" + ("vggt_omega_1b_256_text.pt" if text else "vggt_omega_1b_512.pt")
    assert PUBLISHED[file].num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert PUBLISHED[file].size == 4 * sum(tensor.numel() for tensor in model.state_dict().values())


@pytest.mark.parametrize(
    ("file", "text", "size"),
    [
        ("facebook/VGGT-Omega/vggt_omega_1b_512.pt", False, 512),
        ("/weights/vggt_omega_1b_416_reproduce.pt", False, 416),
        ("vggt_omega_1b_256_text.pt", True, 256),
        ("renamed.pt", True, 256),
        ("renamed.pt", False, 512),
    ],
)
def test_the_variant_comes_from_names_and_file(file, text, size):
    shapes = published_shapes(text=text)
    assert config_of(shapes, file) == VGGTOmegaConfig(heads=TEXT if text else TEXT[:2], image_size=size)
    assert describe_omega(shapes) == ("published", TEXT if text else TEXT[:2])
    assert kind_of_names(shapes) == "VGGTOmega"


def test_another_width_is_not_published():
    with pytest.raises(ValueError, match=r"^weights must be of a published VGGT-Omega, 1024 wide, got 'x' 64 wide$"):
        config_of({"aggregator.camera_token": (1, 2, 1, 64)}, "x")
