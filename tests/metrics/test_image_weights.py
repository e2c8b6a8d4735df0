from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from geomtx.losses.perceptual import VGGFeatures
from geomtx.metrics import read_vgg

TAPS = ((1, 2), (2, 1))


def test_weights_of_either_kind_of_file(tmp_path: Path):
    network = VGGFeatures(16, TAPS)
    weights = {**network.state_dict(), "classifier.6.bias": torch.zeros(3)}
    save_file(weights, tmp_path / "vgg.safetensors")
    torch.save(weights, tmp_path / "vgg.pth")
    x = torch.rand(1, 3, 16, 16)
    for name in ("vgg.safetensors", "vgg.pth"):
        read = read_vgg(tmp_path / name, 16, TAPS)
        assert all(torch.equal(a, b) for a, b in zip(read(x), network(x), strict=True))


def test_errors(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"^weights must be a file, got '.*none.pth', which is none$"):
        read_vgg(tmp_path / "none.pth", 16, TAPS)
    save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "half.safetensors")
    with pytest.raises(
        ValueError, match=r"half.safetensors must hold the weights of VGG-19: weights must have features.0"
    ):
        read_vgg(tmp_path / "half.safetensors", 19, TAPS)
