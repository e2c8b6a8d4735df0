import subprocess
import sys

import jaxtyping
import pytest
import torch

import geomtx
from geomtx import Predictions, Tokens


def tokens(mask: torch.Tensor | None = None) -> Tokens:
    layers = {4: torch.randn(2, 3, 1 + 6, 8), 1: torch.randn(2, 3, 1 + 6, 8)}
    return Tokens(layers, 1, (28, 42), (2, 3), mask)


def test_layers_by_index():
    kept = tokens()
    assert kept.layer(4) is kept.layers[4]
    assert kept.views() == (2, 3)
    with pytest.raises(ValueError, match=r"^layer must be one of the tapped layers \[1, 4\], got 2$"):
        kept.layer(2)


def test_the_mask_of_the_patches():
    assert tokens().patch_mask() is None
    mask = torch.rand(2, 3, 7) < 0.5
    assert torch.equal(tokens(mask).patch_mask(), mask[:, :, 1:].reshape(6, 6))


def test_patches_as_a_map():
    kept = tokens()
    expected = kept.layer(4)[:, :, 1:].reshape(2, 3, 2, 3, 8).permute(0, 1, 4, 2, 3)
    assert torch.equal(kept.patch_map(4), expected)
    mask = torch.rand(2, 3, 7) < 0.5
    taken = mask[:, :, None, 1:].unflatten(-1, (2, 3))
    assert torch.equal(tokens(mask)._replace(layers=kept.layers).patch_map(4), torch.where(taken, expected, 0.0))


def test_predictions_are_empty_until_a_head_fills_them():
    assert all(part is None for part in Predictions())


def test_shapes_are_checked_in_these_tests():
    with pytest.raises(jaxtyping.TypeCheckError):
        geomtx.decode_pose(torch.zeros(2, 8), (4, 4))
    with pytest.raises(jaxtyping.TypeCheckError):
        geomtx.encode_pose(torch.zeros(2, 3, 4), torch.zeros(3, 3, 3), (4, 4))


@pytest.mark.usefixtures("unchecked")
def test_and_not_where_they_stand_in_the_way():
    with pytest.raises(ValueError, match=r"^encoding must have shape"):
        geomtx.decode_pose(torch.zeros(2, 8), (4, 4))


def test_annotations_are_plain_tensors_at_a_users():
    """And jaxtyping isn't needed."""
    code = """
import sys
sys.modules["jaxtyping"] = None
import geomtx, torch
from geomtx.types import Float
assert Float[torch.Tensor, "a b"] is torch.Tensor
print(geomtx.decode_pose(torch.zeros(2, 9), (4, 4)).intrinsics.shape)
"""
    result = subprocess.run([sys.executable, "-c", code], env={"PATH": ""}, capture_output=True, text=True)
    assert result.stdout.strip() == "torch.Size([2, 3, 3])", result.stderr
