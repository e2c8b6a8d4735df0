import copy

import pytest
import torch

import geomtx
from geomtx.training.freezing import freeze


def test_frozen_parts_have_no_gradient_and_stay_in_evaluation_mode(tiny_model: geomtx.VGGT):
    names = freeze(tiny_model, ["encoder.backbone", "encoder.frame_blocks.[01]"])
    assert names == ["encoder.backbone", "encoder.frame_blocks.0", "encoder.frame_blocks.1"]
    tiny_model.train()
    frozen = [tiny_model.get_submodule(name) for name in names]
    assert not any(module.training for part in frozen for module in part.modules())
    assert not any(parameter.requires_grad for part in frozen for parameter in part.parameters())
    assert tiny_model.encoder.frame_blocks[2].training
    assert all(parameter.requires_grad for parameter in tiny_model.encoder.frame_blocks[2].parameters())
    copied = copy.deepcopy(tiny_model).train()
    assert not copied.encoder.backbone.training
    assert copied.encoder.global_blocks[0].training


def test_a_frozen_encoder_records_no_graph(tiny_model: geomtx.VGGT, images: torch.Tensor):
    freeze(tiny_model, ["encoder"])
    tokens = tiny_model.encoder(images)
    assert not any(layer.requires_grad for layer in tokens.layers.values())
    assert tiny_model.depth_head(tokens).value.requires_grad


def test_a_pattern_that_matches_nothing(tiny_model: geomtx.VGGT):
    with pytest.raises(
        ValueError, match=r"^freeze must match a name of the model, got 'encodr'; did you mean 'encoder'\?$"
    ):
        freeze(tiny_model, ["camera_head", "encodr"])
    with pytest.raises(ValueError, match=r"got '\*aggregator\*'$"):
        freeze(tiny_model, ["*aggregator*"])
