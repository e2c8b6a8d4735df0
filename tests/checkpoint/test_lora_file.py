import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from geomtx import VGGT
from geomtx.checkpoint.lora_file import load_lora, save_lora
from geomtx.layers.lora import adapted_layers, add_lora, lora_state
from lean import build_lean, lean_config


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(1, 2, 3, 28, 42)


@pytest.fixture
def plain_model() -> VGGT:
    return build_lean(depth=4, taps=(0, 1, 2, 3), heads=("camera", "depth"))


@pytest.fixture
def adapted(plain_model: VGGT) -> VGGT:
    """With trained adapters of two ranks."""
    add_lora(plain_model, ["encoder.*.qkv"], rank=2)
    add_lora(plain_model, ["camera_head.*"], rank=3, alpha=1)
    with torch.no_grad():
        for _, adapter in adapted_layers(plain_model).values():
            adapter.up.normal_(std=0.1)
    return plain_model


def base_of(model: VGGT) -> VGGT:
    """The same model before adapters."""
    other = VGGT(model.config).eval()
    weights = {name.replace("parametrizations.weight.original", "weight"): t for name, t in model.state_dict().items()}
    other.load_state_dict({name: t for name, t in weights.items() if ".parametrizations." not in name})
    return other


def test_saved_and_loaded_adapters_are_the_same(adapted, images, tmp_path: Path):
    file = save_lora(adapted, tmp_path / "new" / "mine.safetensors")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mine.safetensors"]
    assert file.stat().st_size < 0.2 * sum(4 * p.numel() for p in adapted.parameters())
    other = base_of(adapted)
    assert set(load_lora(other, file)) == set(adapted_layers(adapted))
    assert torch.equal(other(images).depth.value, adapted(images).depth.value)
    assert torch.equal(other(images).pose_encodings, adapted(images).pose_encodings)


def test_a_saved_model_holds_the_merged_weights(adapted, images, tmp_path: Path):
    before = adapted.state_dict().keys()
    for names in ("geomtx", "published"):
        adapted.save_pretrained(tmp_path / names, names=names)
        loaded = VGGT.from_pretrained(tmp_path / names, config=adapted.config)
        assert adapted_layers(loaded) == {}
        assert loaded.state_dict().keys() == VGGT(adapted.config).state_dict().keys()
        assert torch.equal(loaded(images).depth.value, adapted(images).depth.value)
        assert torch.equal(loaded(images).pose_encodings, adapted(images).pose_encodings)
    assert adapted.state_dict().keys() == before


def test_nothing_to_save(plain_model, tmp_path: Path):
    with pytest.raises(ValueError, match=r"^model must have adapters to be saved, got VGGT without any$"):
        save_lora(plain_model, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"^file must end in .safetensors, got '.*a.pt'$"):
        save_lora(plain_model, tmp_path / "a.pt")
    assert list(tmp_path.iterdir()) == []


def test_files_that_do_not_fit(adapted, tmp_path: Path):
    file = save_lora(adapted, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"^model must have no adapters yet, got some"):
        load_lora(adapted, file)
    shallow = VGGT(lean_config(depth=3, taps=(0, 1, 2, 2), heads=("camera",)))
    with pytest.raises(ValueError, match=r"doesn't fit the model: patterns must match .*blocks.3.attention"):
        load_lora(shallow, file)
    assert adapted_layers(shallow) == {}
    wide = VGGT(lean_config(depth=4, dim=64, heads=("camera",)))
    trained = [name for name, parameter in wide.named_parameters() if parameter.requires_grad]
    with pytest.raises(ValueError, match=r"a.safetensors doesn't fit the model: \S+down must have shape \(2, 64\)"):
        load_lora(wide, file)
    assert adapted_layers(wide) == {}
    assert [name for name, parameter in wide.named_parameters() if parameter.requires_grad] == trained


def test_files_that_are_something_else(plain_model, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"^adapters must be a file, got '.*none.safetensors'"):
        load_lora(plain_model, tmp_path / "none.safetensors")
    plain = tmp_path / "plain.safetensors"
    save_file({"a": torch.zeros(1)}, plain)
    with pytest.raises(ValueError, match=r"plain.safetensors must hold adapters that save_lora wrote, got none$"):
        load_lora(plain_model, plain)
    (tmp_path / "cut.safetensors").write_bytes(plain.read_bytes()[:20])
    with pytest.raises(ValueError, match=r"cut.safetensors is truncated or no safetensors file"):
        load_lora(plain_model, tmp_path / "cut.safetensors")
    for numbers in ("[]", "{", json.dumps({"encoder": {}}), json.dumps({"encoder": {"rank": "x", "alpha": 1}})):
        save_file({"a": torch.zeros(1)}, plain, metadata={"geomtx_lora": numbers})
        with pytest.raises(ValueError, match=r"plain.safetensors (holds|doesn't fit|must)"):
            load_lora(plain_model, plain)
    assert lora_state(plain_model) == {}
