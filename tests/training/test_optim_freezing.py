import pytest
import torch

import geomtx
from geomtx import add_lora, freeze, unfreeze


def test_frozen_parts_have_no_gradient_and_are_in_evaluation_mode(tiny_model: geomtx.VGGT):
    tiny_model.train()
    names = freeze(tiny_model, ["encoder.backbone", "encoder.frame_blocks.[01]"])
    assert names == ["encoder.backbone", "encoder.frame_blocks.0", "encoder.frame_blocks.1"]
    frozen = [tiny_model.get_submodule(name) for name in names]
    assert not any(module.training for part in frozen for module in part.modules())
    assert not any(parameter.requires_grad for part in frozen for parameter in part.parameters())
    assert tiny_model.encoder.frame_blocks[2].training
    assert all(parameter.requires_grad for parameter in tiny_model.encoder.frame_blocks[2].parameters())


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
    with pytest.raises(ValueError, match=r"^unfreeze must match a name of the model, got 'encodr'; did you mean"):
        unfreeze(tiny_model, ["encodr"])
    with pytest.raises(ValueError, match=r"^freeze must be a sequence of patterns, got 'encoder'$"):
        freeze(tiny_model, "encoder")
    assert all(module.requires_grad for module in tiny_model.camera_head.parameters())


def modes(model: geomtx.VGGT) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


def trained(model: geomtx.VGGT) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("training", [True, False])
def test_unfreezing_is_the_inverse(tiny_model: geomtx.VGGT, training: bool):
    unfreeze(tiny_model, ["*"])  # the mask token isn't trained at first
    tiny_model.train(training)
    before = modes(tiny_model), trained(tiny_model), {name: dict(vars(m)) for name, m in tiny_model.named_modules()}
    names = freeze(tiny_model, ["encoder", "*_head"])
    assert trained(tiny_model) == set()
    assert unfreeze(tiny_model, ["encoder", "*_head"]) == names
    assert (modes(tiny_model), trained(tiny_model)) == before[:2]
    assert {name: dict(vars(m)).keys() for name, m in tiny_model.named_modules()} == {
        name: values.keys() for name, values in before[2].items()
    }
    tiny_model.train(not training)
    assert set(modes(tiny_model).values()) == {not training}


def test_a_part_of_what_is_frozen(tiny_model: geomtx.VGGT, images: torch.Tensor):
    tiny_model.train()
    freeze(tiny_model, ["encoder"])
    unfreeze(tiny_model, ["encoder.global_blocks.3"])
    assert tiny_model.encoder.global_blocks[3].mlp.training
    assert not tiny_model.encoder.global_blocks[2].mlp.training
    tiny_model(images, heads=("depth",)).depth.value.sum().backward()
    learned = {name for name, p in tiny_model.encoder.named_parameters() if p.grad is not None}
    assert learned == {name for name, _ in tiny_model.encoder.named_parameters() if name.startswith("global_blocks.3.")}


def test_weights_under_adapters_stay_frozen(tiny_model: geomtx.VGGT):
    freeze(tiny_model, ["encoder"])
    add_lora(tiny_model, ["encoder.global_blocks.*.qkv"])
    adapters = {name for name in trained(tiny_model) if name.startswith("encoder.")}
    assert len(adapters) == 8
    unfreeze(tiny_model, ["encoder.global_blocks.*"])
    now = {name for name in trained(tiny_model) if name.startswith("encoder.global_blocks.")}
    assert adapters < now
    assert not [name for name in now if name.endswith("original")]
    freeze(tiny_model, ["encoder"])
    assert not adapters & trained(tiny_model)
