import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from geomtx import (
    VGGT,
    CameraHead,
    DenseHead,
    DPTDecoder,
    Tokens,
    Tracker,
    TrackHead,
    VGGTConfig,
    VGGTForNVS,
    VideoTracker,
    add_lora,
)
from geomtx.heads import RGBHead
from geomtx.layers.lora import adapted_layers
from geomtx.models.saved_heads import describe_heads
from reference import named_tensors, randomize


class Foreign(nn.Module):
    """With a buffer that is saved, one that isn't, and a layer that is no parameter's."""

    def __init__(self, dim: int = 64) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(dim)
        self.register_buffer("scale", torch.tensor(3.0), persistent=False)
        self.project = nn.Linear(dim, 2)

    def forward(self, tokens: Tokens) -> Tensor:
        return self.scale * self.project(self.norm(tokens.layer(3)[:, :, 0].flatten(0, 1)))


def decoder(**options) -> DPTDecoder:
    numbers = {"channels": (16, 16, 32, 32), "taps": (0, 1, 1, 3), "position_signal": False, **options}
    return DPTDecoder(64, 16, **numbers)


def own_heads() -> dict[str, nn.Module]:
    """With few of the constructors' defaults."""
    numbers = {"num_levels": 3, "radius": 2, "num_iterations": 2, "hidden_dim": 32, "num_heads": 2, "depth": 1}
    return {
        "dense": DenseHead(decoder(out_channels=12), 5, activation="signed_expm1", hidden_dim=8),
        "my_camera": CameraHead(64, 1, num_heads=4, num_iterations=2, mlp_ratio=2.0, layer_scale=0.5, layer=1),
        "track": TrackHead(
            decoder(out_channels=16, stride=2), Tracker(16, num_virtual=4, max_displacement=100.0, **numbers)
        ),
        "colours": RGBHead(decoder(out_channels=12), hidden_dim=8),
    }


@pytest.fixture
def model(tiny_model: VGGT) -> VGGT:
    for name, head in own_heads().items():
        tiny_model.add_head(name, head)
    return randomize(tiny_model)


@pytest.fixture
def queries() -> Tensor:
    return torch.rand(2, 4, 2) * 50


def assert_same(ours, reference) -> None:
    ours, reference = named_tensors(ours), named_tensors(reference)
    assert ours.keys() == reference.keys()
    assert all(torch.equal(ours[name], reference[name]) for name in reference)


def test_own_heads_come_back_by_themselves(model, images, queries, tmp_path: Path):
    model.save_pretrained(tmp_path / "saved")
    for source in (tmp_path / "saved", tmp_path / "saved" / "model.safetensors"):
        loaded = VGGT.from_pretrained(source)
        assert loaded.heads == model.heads
        assert not loaded.training
        assert not any(module.training for module in loaded.modules())
        assert {type(head) for head in loaded.extra_heads.values()} == {DenseHead, CameraHead, TrackHead, RGBHead}
        assert_same(loaded(images, queries), model(images, queries))
        assert describe_heads(loaded.extra_heads) == describe_heads(model.extra_heads)
        assert repr(loaded) == repr(model)


def test_what_a_constructor_was_given_is_described(model):
    described = describe_heads(model.extra_heads)
    assert json.loads(json.dumps(described)) == described
    assert described["dense"]["numbers"]["decoder"]["numbers"] == {
        "dim": 64,
        "features": 16,
        "channels": [16, 16, 32, 32],
        "taps": [0, 1, 1, 3],
        "out_channels": 12,
        "stride": 1,
        "position_signal": False,
    }
    assert described["my_camera"]["numbers"]["layer"] == 1
    assert described["my_camera"]["numbers"]["mlp_ratio"] == 2.0
    assert described["track"]["numbers"]["tracker"]["numbers"]["max_displacement"] == 100.0
    assert described["colours"]["numbers"]["hidden_dim"] == 8


def test_precision_and_chosen_heads(model, images, tmp_path: Path):
    model.save_pretrained(tmp_path)
    loaded = VGGT.from_pretrained(tmp_path, heads=("depth", "dense"), dtype=torch.float64)
    assert loaded.heads == ("depth", "dense")
    assert {p.dtype for p in loaded.parameters()} == {torch.float64}
    assert loaded(images.double()).extra.keys() == {"dense"}
    assert VGGT.from_pretrained(tmp_path, heads=("depth",)).heads == ("depth",)
    assert VGGT.read_config(tmp_path) == model.config
    with pytest.raises(ValueError, match=r"^head must be one of 'camera', .*'colours', got 'normals'$"):
        VGGT.from_pretrained(tmp_path, heads=("normals",))


def test_adapters_within_a_head_are_merged(model, images, tmp_path: Path):
    add_lora(model, ["extra_heads.my_camera.trunk.*"])
    for _, adapter in adapted_layers(model).values():
        nn.init.normal_(adapter.up, std=0.1)
    model.save_pretrained(tmp_path)
    assert_same(VGGT.from_pretrained(tmp_path)(images), model(images))


def test_heads_of_others_are_given(tiny_model, images, tmp_path: Path):
    tiny_model.add_head("mine", Foreign())
    tiny_model.train()(images)  # statistics of the norm
    tiny_model.eval()
    expected = tiny_model(images)
    tiny_model.save_pretrained(tmp_path)
    for given in (Foreign(), lambda config: Foreign(2 * config.dim)):
        loaded = VGGT.from_pretrained(tmp_path, extra_heads={"mine": given})
        assert_same(loaded(images), expected)
    message = r"given the head 'mine', of the class \S*test_saved_heads.Foreign, which geomtx can't build, got none; "
    with pytest.raises(ValueError, match=message):
        VGGT.from_pretrained(tmp_path)
    assert VGGT.from_pretrained(tmp_path, heads=("depth",)).heads == ("depth",)
    assert VGGT.from_pretrained(tmp_path, extra_heads={"mine": None}).heads == tiny_model.config.heads


def test_a_part_of_a_head_may_be_another_librarys(tiny_model, tmp_path: Path):
    class MyDecoder(DPTDecoder):
        pass

    head = DenseHead(MyDecoder(64, 16, channels=(16, 16, 32, 32), taps=(0, 1, 2, 3)), 1)
    tiny_model.add_head("mine", head)
    tiny_model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"'mine', of the class \S*MyDecoder, which geomtx can't build"):
        VGGT.from_pretrained(tmp_path)


@pytest.mark.usefixtures("unchecked")
def test_given_heads_that_do_not_fit(tiny_model, tmp_path: Path):
    tiny_model.add_head("mine", Foreign())
    tiny_model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^extra_heads must be among those of the weights, 'mine', got 'other'$"):
        VGGT.from_pretrained(tmp_path, extra_heads={"other": Foreign()})
    with pytest.raises(ValueError, match=r"doesn't fit the head 'mine': .*size mismatch for norm.weight") as error:
        VGGT.from_pretrained(tmp_path, extra_heads={"mine": Foreign(32)})
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"doesn't fit the head 'mine': .*Unexpected key.*norm.weight"):
        VGGT.from_pretrained(tmp_path, extra_heads={"mine": nn.Linear(3, 3)})
    with pytest.raises(ValueError, match=r"^extra_heads must be modules, got int for 'mine'$"):
        VGGT.from_pretrained(tmp_path, extra_heads={"mine": lambda config: 3})


def test_loading_stays_strict(model, tmp_path: Path):
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["extra_heads"]["dense"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"extra_heads.dense.\S+ is unexpected"):
        VGGT.from_pretrained(tmp_path)
    config["extra_heads"]["dense"] = {"class": "DenseHead", "numbers": {"value": 3}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"^extra_heads must describe 'dense' by numbers that make a head, got: "):
        VGGT.from_pretrained(tmp_path)


def test_files_without_added_heads_are_what_they_were(tiny_model, images, tmp_path: Path):
    tiny_model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored == {"format": "geomtx.model", "kind": "VGGT", **tiny_model.config.to_dict()}
    assert_same(VGGT.from_pretrained(tmp_path)(images), tiny_model(images))
    with pytest.raises(ValueError, match=r"^extra_heads must be among those of the weights, none, got 'mine'$"):
        VGGT.from_pretrained(tmp_path, extra_heads={"mine": Foreign()})


def test_published_names_have_no_place_for_added_heads(model, tmp_path: Path):
    with pytest.raises(ValueError, match=r"^extra_heads.\S+ has no published name; use names='geomtx'$"):
        model.save_pretrained(tmp_path / "new", names="published")
    assert not (tmp_path / "new").exists()


def test_a_configuration_of_another_type_of_heads(tmp_path: Path):
    VGGT(VGGTConfig.tiny(heads=("camera",))).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "extra_heads": 3}))
    with pytest.raises(ValueError, match=r"has a configuration that makes no model"):
        VGGT.from_pretrained(tmp_path)


# Around a VGGT

AROUND = {"nvs": VGGTForNVS, "video_tracker": VideoTracker}


def around(kind: str, vggt: VGGT) -> VGGTForNVS | VideoTracker:
    if kind == "nvs":
        return VGGTForNVS.from_vggt(vggt)
    return VideoTracker.from_vggt(vggt, levels=2, radius=1, dim=16, num_heads=2, depth=1, num_virtual=4)


@pytest.mark.parametrize("kind", AROUND)
def test_heads_of_the_vggt_inside_come_back(model, images, queries, kind, tmp_path: Path):
    model.add_head("mine", Foreign())
    model.train()(images)  # statistics of the norm
    outer = around(kind, model.eval())
    add_lora(outer, ["*extra_heads.my_camera.trunk.*"])
    for _, adapter in adapted_layers(outer).values():
        nn.init.normal_(adapter.up, std=0.1)
    outer.save_pretrained(tmp_path / "saved")
    for source in (tmp_path / "saved", tmp_path / "saved" / "model.safetensors"):
        loaded = AROUND[kind].from_pretrained(source, extra_heads={"mine": Foreign()})
        assert loaded.config == outer.config
        assert loaded.vggt.heads == model.heads
        assert not any(module.training for module in loaded.modules())
        assert_same(loaded.vggt(images, queries), model(images, queries))
    assert describe_heads(loaded.vggt.extra_heads) == describe_heads(model.extra_heads)
    double = AROUND[kind].from_pretrained(tmp_path / "saved", dtype=torch.float64, extra_heads={"mine": None})
    assert double.vggt.heads == model.heads[:-1]
    assert {parameter.dtype for parameter in double.parameters()} == {torch.float64}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kind", AROUND)
def test_heads_of_the_vggt_inside_that_do_not_fit(tiny_model, kind, tmp_path: Path):
    tiny_model.add_head("mine", Foreign())
    around(kind, tiny_model).save_pretrained(tmp_path)
    load = AROUND[kind].from_pretrained
    with pytest.raises(ValueError, match=r"given the head 'mine', of the class \S*Foreign, which geomtx can't build"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"^extra_heads must be among those of the weights, 'mine', got 'other'$"):
        load(tmp_path, extra_heads={"other": Foreign()})
    with pytest.raises(ValueError, match=r"doesn't fit the head 'mine': .*size mismatch for norm.weight"):
        load(tmp_path, extra_heads={"mine": Foreign(32)})
    config = json.loads((tmp_path / "config.json").read_text())
    del config["extra_heads"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"vggt\.extra_heads\.mine\.\S+ is unexpected"):
        load(tmp_path)


@pytest.mark.parametrize("kind", AROUND)
def test_added_heads_keep_their_precision_inside(tiny_model, images, kind, tmp_path: Path):
    tiny_model.bfloat16().add_head("colours", RGBHead(decoder(), hidden_dim=8))
    outer = around(kind, tiny_model)
    new = [name for name, p in outer.named_parameters() if p.dtype == torch.float32]
    assert new == [name for name, _ in outer.named_parameters() if "extra_heads" in name]
    outer.save_pretrained(tmp_path)
    loaded = AROUND[kind].from_pretrained(tmp_path)
    assert {n: p.dtype for n, p in loaded.named_parameters()} == {n: p.dtype for n, p in outer.named_parameters()}
    assert_same(loaded.vggt(images).extra, outer.vggt(images).extra)
