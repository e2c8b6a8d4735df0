import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from geomtx import VGGT, DenseHead, DPTDecoder, Tokens, VGGTForNVS, VideoTracker, add_lora
from geomtx.heads import RGBHead
from geomtx.layers.lora import adapted_layers
from lean import build_lean
from reference import named_tensors, randomize


class Foreign(nn.Module):
    """With a buffer that is saved, one that isn't, and an integer."""

    def __init__(self, dim: int = 64) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(dim)
        self.register_buffer("scale", torch.tensor(3.0), persistent=False)
        self.project = nn.Linear(dim, 2)

    def forward(self, tokens: Tokens) -> Tensor:
        return self.scale * self.project(self.norm(tokens.layer(1)[:, :, 0].flatten(0, 1)))


def dense() -> DenseHead:
    return DenseHead(DPTDecoder(64, 16, channels=(16, 16, 32, 32), taps=(0, 1, 1, 1)), 5)


HEADS = {"mine": Foreign, "dense": dense}


def given() -> dict[str, nn.Module]:
    return {name: make() for name, make in HEADS.items()}


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 2, 3, 28, 42)


@pytest.fixture
def plain_model() -> VGGT:
    return build_lean(heads=("camera", "depth"))


@pytest.fixture
def model(plain_model: VGGT, images: Tensor) -> VGGT:
    for name, head in given().items():
        plain_model.add_head(name, head)
    randomize(plain_model).train()(images)  # statistics of the norm
    return plain_model.eval()


def assert_same(ours, reference) -> None:
    ours, reference = named_tensors(ours), named_tensors(reference)
    assert ours.keys() == reference.keys()
    assert all(torch.equal(ours[name], reference[name]) for name in reference)


def test_heads_that_are_given_are_filled(model, images, tmp_path: Path):
    model.save_pretrained(tmp_path)
    made = {"dense": lambda config: dense(), "mine": lambda config: Foreign(2 * config.dim)}
    for source, heads in ((tmp_path, given()), (tmp_path / "model.safetensors", made)):
        loaded = VGGT.from_pretrained(source, extra_heads=heads)
        assert loaded.heads == model.heads
        assert not any(module.training for module in loaded.modules())
        assert_same(loaded(images), model(images))


def test_heads_with_a_dpt_decoder_come_back_by_themselves(plain_model, images, tmp_path: Path):
    plain_model.add_head("dense", dense())
    plain_model.add_head("colours", RGBHead(plain_model.depth_head.decoder, hidden_dim=8))
    loaded = VGGT.from_pretrained(plain_model.save_pretrained(tmp_path))
    assert_same(loaded(images), plain_model(images))
    assert repr(loaded.extra_heads) == repr(plain_model.extra_heads)
    assert loaded.extra_heads["colours"].decoder.smooth.weight is loaded.depth_head.decoder.smooth.weight


def test_precision_and_chosen_heads(model, images, tmp_path: Path):
    model.save_pretrained(tmp_path)
    loaded = VGGT.from_pretrained(tmp_path, heads=("depth", "mine"), dtype=torch.float64, extra_heads=given())
    assert loaded.heads == ("depth", "mine")
    assert {t.dtype for t in loaded.state_dict().values()} == {torch.float64, torch.int64}
    assert loaded.extra_heads["mine"].scale.dtype == torch.float64
    assert loaded(images.double()).extra.keys() == {"mine"}
    assert VGGT.from_pretrained(tmp_path, heads=("depth",)).heads == ("depth",)
    assert VGGT.from_pretrained(tmp_path, extra_heads={"mine": None, "dense": None}).heads == model.config.heads
    assert VGGT.read_config(tmp_path) == model.config
    with pytest.raises(ValueError, match=r"^head must be one of 'camera', .*'mine', got 'normals'$"):
        VGGT.from_pretrained(tmp_path, heads=("normals",))


def test_adapters_within_a_head_are_merged(model, images, tmp_path: Path):
    add_lora(model, ["extra_heads.mine.project"])
    for _, adapter in adapted_layers(model).values():
        nn.init.normal_(adapter.up, std=0.1)
    model.save_pretrained(tmp_path)
    assert_same(VGGT.from_pretrained(tmp_path, extra_heads=given())(images), model(images))


@pytest.mark.usefixtures("unchecked")
def test_given_heads_that_do_not_fit(plain_model, tmp_path: Path):
    plain_model.add_head("mine", Foreign())
    plain_model.save_pretrained(tmp_path)
    message = r"^extra_heads must have a module for the head 'mine' of '.*', got none; from_pretrained\(…, extra_heads="
    with pytest.raises(ValueError, match=message):
        VGGT.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^extra_heads must be among those of the weights, 'mine', got 'other'$"):
        VGGT.from_pretrained(tmp_path, extra_heads={"mine": Foreign(), "other": Foreign()})
    with pytest.raises(ValueError, match=r"doesn't fit the model: extra_heads.mine.norm.bias has shape \(64,\) instea"):
        VGGT.from_pretrained(tmp_path, extra_heads={"mine": Foreign(32)})
    with pytest.raises(ValueError, match=r"doesn't fit the model: extra_heads.mine.norm.bias is unexpected, "):
        VGGT.from_pretrained(tmp_path, extra_heads={"mine": nn.Linear(3, 3)})
    with pytest.raises(ValueError, match=r"^extra_heads must be modules, got int for 'mine'$"):
        VGGT.from_pretrained(tmp_path, extra_heads={"mine": lambda config: 3})


def test_files_of_before_describe_their_heads(model, images, tmp_path: Path):
    """Until 0.1, the configuration had a mapping of them."""
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    described = {name: {"class": "DenseHead", "numbers": {}} for name in HEADS}
    (tmp_path / "config.json").write_text(json.dumps({**config, "extra_heads": described}))
    assert_same(VGGT.from_pretrained(tmp_path, extra_heads=given())(images), model(images))


def test_published_names_have_no_place_for_added_heads(model, tmp_path: Path):
    with pytest.raises(ValueError, match=r"^extra_heads.\S+ has no published name; use names='geomtx'$"):
        model.save_pretrained(tmp_path / "new", names="published")
    assert not (tmp_path / "new").exists()


# Around a VGGT

AROUND = {"nvs": VGGTForNVS, "video_tracker": VideoTracker}


def around(kind: str, vggt: VGGT) -> VGGTForNVS | VideoTracker:
    if kind == "nvs":
        return VGGTForNVS.from_vggt(vggt)
    return VideoTracker.from_vggt(vggt, levels=2, radius=1, dim=16, num_heads=2, depth=1, num_virtual=4)


@pytest.mark.parametrize("kind", AROUND)
def test_heads_of_the_vggt_inside(model, images, kind, tmp_path: Path):
    outer = around(kind, model)
    outer.save_pretrained(tmp_path)
    load = AROUND[kind].from_pretrained
    for source in (tmp_path, tmp_path / "model.safetensors"):
        loaded = load(source, extra_heads=given())
        assert loaded.config == outer.config
        assert loaded.vggt.heads == model.heads
        assert_same(loaded.vggt(images), model(images))
    double = load(tmp_path, dtype=torch.float64, extra_heads={**given(), "mine": None})
    assert double.vggt.heads == (*model.config.heads, "dense")
    assert {parameter.dtype for parameter in double.parameters()} == {torch.float64}
    with pytest.raises(ValueError, match=r"^extra_heads must have a module for the head 'mine'"):
        load(tmp_path)


@pytest.mark.parametrize("kind", AROUND)
def test_added_heads_keep_their_precision_inside(images, kind, tmp_path: Path):
    vggt = build_lean(heads=("tracks",)).bfloat16()
    vggt.add_head("dense", dense())
    outer = around(kind, vggt)
    new = [name for name, p in outer.named_parameters() if p.dtype == torch.float32]
    assert new == [name for name, _ in outer.named_parameters() if "extra_heads" in name]
    outer.save_pretrained(tmp_path)
    loaded = AROUND[kind].from_pretrained(tmp_path, extra_heads={"dense": dense()})
    assert {n: p.dtype for n, p in loaded.named_parameters()} == {n: p.dtype for n, p in outer.named_parameters()}
    assert_same(loaded.vggt(images).extra, outer.vggt(images).extra)
