"""Checkpoints as other trainers write them: wrapped, of two precisions, with shared or without unused tensors."""

import argparse
import collections
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor, nn

from geomtx import (
    VGGT,
    DenseHead,
    DPTDecoder,
    NVSConfig,
    VGGTConfig,
    VGGTForNVS,
    VideoTracker,
    VideoTrackerConfig,
    add_lora,
    load_lora,
    save_lora,
)
from geomtx.checkpoint.tensor_file import open_tensor_file
from geomtx.cli.checkpoint_summary import summarize_checkpoint
from geomtx.layers.lora import adapted_layers
from geomtx.models.vggt.keys import VGGT_KEYS
from geomtx.training.checkpoint import load_into, training_state
from lean import lean_config
from reference import named_tensors

MASK_TOKEN = "encoder.backbone.mask_token"


def write(tensors: dict[str, Tensor], folder: Path) -> Path:
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "w.safetensors")
    return folder / "w.safetensors"


def published(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {VGGT_KEYS.to_published(name): tensor for name, tensor in tensors.items()}


def assert_same_weights(ours: nn.Module, reference: nn.Module) -> None:
    mine, theirs = ours.state_dict(), reference.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.fixture
def tiny_model() -> VGGT:
    """One head is enough here."""
    return VGGT(lean_config(heads=("depth",))).eval()


@pytest.fixture
def whole_model() -> VGGT:
    return VGGT(lean_config()).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 2, 3, 28, 42)


# Names

PREFIXES = ("module.", "_orig_mod.", "module._orig_mod.", "model.", "model._orig_mod.", "net.vggt.", "encoder.")


@pytest.mark.parametrize(
    ("prefix", "rename"), [*((prefix, dict) for prefix in PREFIXES), ("module.", published), ("model.", published)]
)
def test_a_prefix_of_all_names_is_taken_off(tiny_model, prefix, rename, tmp_path: Path, caplog):
    tensors = {prefix + name: tensor for name, tensor in rename(tiny_model.state_dict()).items()}
    source = write(tensors, tmp_path)
    with caplog.at_level(logging.WARNING, logger="geomtx"):
        assert_same_weights(VGGT.from_pretrained(source, config=tiny_model.config), tiny_model)
    assert [record.getMessage() for record in caplog.records] == [
        f"{source}: the prefix {prefix!r} is taken off the tensors' names."
    ]
    # Without a configuration, too, the heads are found.
    assert VGGT.read_config(source) == VGGTConfig(heads=tiny_model.heads)
    summary = summarize_checkpoint(str(source))
    assert (summary.prefix, summary.heads) == (prefix, tiny_model.heads)
    assert summary.naming == ("geomtx" if rename is dict else "published")


def test_names_of_compiled_and_wrapped_parts(tiny_model, images, tmp_path: Path):
    names = {
        "encoder.": "encoder._orig_mod.",
        "depth_head.": "depth_head.module.",
        ".global_blocks.1.": ".global_blocks.1._checkpoint_wrapped_module.",
    }
    tensors = {}
    for name, tensor in tiny_model.state_dict().items():
        for plain, wrapped in names.items():
            name = name.replace(plain, wrapped)
        tensors[f"_fsdp_wrapped_module.{name}"] = tensor
    assert_same_weights(VGGT.from_pretrained(write(tensors, tmp_path), config=tiny_model.config), tiny_model)
    # geomtx writes none of them itself.
    expected = tiny_model(images).depth.value
    tiny_model.encoder = torch.compile(tiny_model.encoder, backend="eager")
    for naming in ("geomtx", "published"):
        folder = tiny_model.save_pretrained(tmp_path / naming, names=naming)
        loaded = VGGT.from_pretrained(folder, config=tiny_model.config)
        assert torch.equal(loaded(images).depth.value, expected)


def test_what_stands_beside_a_wrapped_model_is_passed_over(tiny_model, tmp_path: Path, caplog):
    averaged = torch.optim.swa_utils.AveragedModel(tiny_model)
    tensors = {**averaged.state_dict(), "criterion.weight": torch.ones(2)}
    with caplog.at_level(logging.WARNING, logger="geomtx"):
        loaded = VGGT.from_pretrained(write(tensors, tmp_path), config=tiny_model.config)
    assert_same_weights(loaded, tiny_model)
    assert "2 tensors beside the model's are passed over, criterion.weight, n_averaged" in caplog.text


def test_two_copies_of_a_model(tiny_model, tmp_path: Path):
    tensors = tiny_model.state_dict()
    other = {name: tensor + 1 for name, tensor in tensors.items()}
    for plain, averaged in (("", "ema."), ("model.", "model_ema."), ("model.", "ema.module.")):
        both = {plain + n: t for n, t in tensors.items()} | {averaged + n: t for n, t in other.items()}
        assert_same_weights(VGGT.from_pretrained(write(both, tmp_path), config=tiny_model.config), tiny_model)
    both = {f"student.{n}": t for n, t in tensors.items()} | {f"teacher.{n}": t for n, t in other.items()}
    wanted = r"doesn't fit the model: names must be of one model, got several under 'student\.', 'teacher\.'; save one"
    with pytest.raises(ValueError, match=wanted):
        VGGT.from_pretrained(write(both, tmp_path), config=tiny_model.config)


def test_a_prefix_does_not_make_it_lax(tiny_model, tmp_path: Path):
    tensors = {f"module.{name}": tensor for name, tensor in tiny_model.state_dict().items()}
    tensors["module.depth_head.surplus"] = torch.ones(1)
    del tensors["module.depth_head.out.bias"]
    wanted = r"model: depth_head\.surplus is unexpected, depth_head\.out\.bias is missing$"
    with pytest.raises(ValueError, match=wanted):
        VGGT.from_pretrained(write(tensors, tmp_path), config=tiny_model.config)


FEW = lean_config(heads=("depth", "tracks"))
AROUND = {
    "nvs": lambda: VGGTForNVS(NVSConfig.tiny(vggt=FEW)),
    "video": lambda: VideoTracker(VideoTrackerConfig.tiny(vggt=FEW)),
    "images": lambda: VideoTracker(VideoTrackerConfig.tiny(features="images")),
}


@pytest.mark.parametrize("kind", AROUND)
def test_models_around_a_vggt(kind, tmp_path: Path):
    """Prefixed, and without the mask token where there is one."""
    model = AROUND[kind]().eval()
    folder = model.save_pretrained(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors = {f"module.{name}": tensor for name, tensor in tensors.items() if "mask_token" not in name}
    save_file(tensors, folder / "model.safetensors")
    assert_same_weights(type(model).from_pretrained(folder), model)


def test_added_heads_of_a_wrapped_model(whole_model, images, tmp_path: Path):
    whole_model.add_head("mine", DenseHead(whole_model.point_head.decoder, 2))
    folder = whole_model.save_pretrained(tmp_path)
    save_file(
        {f"module.{n}": t for n, t in whole_model.state_dict().items() if "mine.decoder" not in n}, tmp_path / "x"
    )
    (tmp_path / "x").replace(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["shared"] = {f"module.{a}": f"module.{b}" for a, b in config["shared"].items()}
    (folder / "config.json").write_text(json.dumps(config))
    loaded = VGGT.from_pretrained(folder, extra_heads={"mine": dense_head(2)})
    assert torch.equal(loaded(images).extra["mine"].value, whole_model(images).extra["mine"].value)


def test_adapters_of_wrapped_models(whole_model, images, tmp_path: Path):
    wrapped = nn.ModuleDict({"module": whole_model})  # names as DistributedDataParallel gives them
    add_lora(wrapped, ["*.frame_blocks.0.attention.qkv", "*.camera_head.trunk.0.*"], rank=2)
    for _, adapter in adapted_layers(wrapped).values():
        nn.init.normal_(adapter.up, std=0.1)
    expected, file = whole_model(images), save_lora(wrapped, tmp_path / "a.safetensors")
    base = VGGT(whole_model.config).eval()
    weights = {n.replace("parametrizations.weight.original", "weight"): t for n, t in whole_model.state_dict().items()}
    base.load_state_dict({n: t for n, t in weights.items() if "parametrizations" not in n})
    # Others put a prefix before the tensors, the layers' names in the file's own words are as they were.
    metadata = open_tensor_file(file).metadata
    save_file({f"_orig_mod.{n}": t for n, t in load_file(file).items()}, tmp_path / "b.safetensors", metadata)
    for source in (file, tmp_path / "b.safetensors"):
        for around in (lambda model: model, lambda model: nn.ModuleDict({"_orig_mod": model})):
            model = VGGT(whole_model.config).eval()
            model.load_state_dict(base.state_dict())
            assert len(load_lora(around(model), source)) == len(adapted_layers(wrapped))
            assert torch.equal(model(images).pose_encodings, expected.pose_encodings)


def test_adapters_of_a_head_that_is_left_out(whole_model, tmp_path: Path, caplog):
    add_lora(whole_model, ["encoder.frame_blocks.0.mlp.*", "camera_head.trunk.0.mlp.*"], rank=2)
    file = save_lora(whole_model, tmp_path / "a.safetensors")
    model = VGGT(lean_config(heads=("depth",)))
    with caplog.at_level(logging.WARNING, logger="geomtx"):
        layers = load_lora(model, file)
    assert layers == ["encoder.frame_blocks.0.mlp.expand", "encoder.frame_blocks.0.mlp.contract"]
    assert "passed over: camera_head.trunk.0.mlp.expand, camera_head.trunk.0.mlp.contract." in caplog.text


# Precisions


def in_precisions(model: VGGT, choose) -> dict[str, Tensor]:
    return {name: tensor.to(choose(name, tensor)) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("encoder", "heads"), [("bfloat16", "float32"), ("float32", "bfloat16"), ("float16", "float64")]
)
def test_each_part_runs_in_its_own_precision(whole_model, images, encoder, heads, tmp_path: Path):
    ours = {True: getattr(torch, encoder), False: getattr(torch, heads)}
    tensors = in_precisions(whole_model, lambda name, _: ours[name.startswith("encoder.")])
    loaded = VGGT.from_pretrained(write(tensors, tmp_path), config=whole_model.config)
    assert {name: p.dtype for name, p in loaded.named_parameters()} == {n: t.dtype for n, t in tensors.items()}
    queries = torch.rand(2, 3, 2) * 20
    with torch.no_grad():
        found = named_tensors(loaded(images, queries))
        reference = named_tensors(whole_model(images, queries))
    assert found.keys() == reference.keys()
    assert all(tensor.isfinite().all() for tensor in found.values())
    error = (found["depth.value"] - reference["depth.value"]).abs().mean() / reference["depth.value"].abs().mean()
    assert error < 0.05


def test_two_precisions_within_a_part_are_made_one(tiny_model, images, tmp_path: Path, caplog):
    tensors = in_precisions(tiny_model, lambda _, tensor: torch.bfloat16 if tensor.ndim > 1 else torch.float32)
    tensors[MASK_TOKEN] = tensors[MASK_TOKEN].double()  # which no prediction depends on
    source = write(tensors, tmp_path)
    with caplog.at_level(logging.WARNING, logger="geomtx"):
        loaded = VGGT.from_pretrained(source, config=tiny_model.config)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert [record.getMessage() for record in caplog.records] == [
        f"{source} mixes precisions within a part of the model, which is brought to the widest (the model to "
        "torch.float32, depth_head to torch.float32); dtype= (--dtype) chooses one."
    ]
    assert all(torch.equal(p, tensors[name].float()) for name, p in loaded.named_parameters())
    half = VGGT.from_pretrained(source, config=tiny_model.config, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    half(images)


@pytest.mark.parametrize("kind", AROUND)
def test_two_precisions_around_a_vggt(kind, tmp_path: Path):
    model = AROUND[kind]().eval()
    folder = model.save_pretrained(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: t.bfloat16() if ".encoder." in name or "features.conv" in name else t for name, t in tensors.items()},
        folder / "model.safetensors",
    )
    loaded = type(model).from_pretrained(folder)
    # Only heads that cast what they read may differ from the rest.
    rest = {p.dtype for n, p in loaded.named_parameters() if "_head." not in n and not n.startswith("tracker.")}
    assert len(rest) == 1


def test_types_that_are_only_for_storage(tiny_model, tmp_path: Path):
    tensors = in_precisions(tiny_model, lambda _, tensor: torch.float8_e4m3fn if tensor.ndim == 2 else torch.float32)
    source = write(tensors, tmp_path)
    wanted = (
        r"numbers of type torch\.float8_e4m3fn, which layers don't compute with; choose another type with dtype= \("
    )
    with pytest.raises(ValueError, match=wanted):
        VGGT.from_pretrained(source, config=tiny_model.config)
    loaded = VGGT.from_pretrained(source, config=tiny_model.config, dtype=torch.float32)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


# Shared tensors


def dense_head(num_values: int = 3, **options) -> DenseHead:
    """With a decoder of its own, as large as the model's."""
    return DenseHead(DPTDecoder(64, 16, channels=(16, 16, 32, 32), taps=(0, 0, 1, 1)), num_values, **options)


class Tied(nn.Module):
    """Two layers with the same weight, and a part of it as a view."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(64, 64), nn.Linear(64, 64)
        self.two.weight = self.one.weight
        self.row = nn.Parameter(self.one.weight.detach()[0])

    def forward(self, tokens) -> Tensor:
        return self.two(self.one(tokens.layer(1))) * self.row


def test_shared_parts_are_saved_once_and_shared_again(whole_model, images, tmp_path: Path):
    whole_model.add_head("normals", DenseHead(whole_model.depth_head.decoder, 3))
    whole_model.add_head("colours", DenseHead(whole_model.extra_heads["normals"].decoder, 3, hidden_dim=8))
    whole_model.add_head("tied", Tied())
    whole_model.eval()
    folder = whole_model.save_pretrained(tmp_path / "saved")
    stored = load_file(folder / "model.safetensors")
    assert not any(name.startswith(("extra_heads.normals.decoder", "extra_heads.colours.decoder")) for name in stored)
    for source in (folder, folder / "model.safetensors"):
        given = {"normals": dense_head(), "colours": dense_head(hidden_dim=8), "tied": Tied()}
        loaded = VGGT.from_pretrained(source, extra_heads=given)
        expected, found = named_tensors(whole_model(images)), named_tensors(loaded(images))
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert len(list(loaded.parameters())) == len(list(whole_model.parameters()))
        weights = dict(loaded.named_parameters(remove_duplicate=False))
        shared = ("depth_head.decoder", "extra_heads.normals.decoder", "extra_heads.colours.decoder")
        assert len({id(weights[f"{path}.project.0.weight"]) for path in shared}) == 1
        assert weights["extra_heads.tied.one.weight"] is weights["extra_heads.tied.two.weight"]
    # Without the head that had it first, the others still share.
    given = {"normals": dense_head(), "colours": dense_head(hidden_dim=8)}
    some = VGGT.from_pretrained(folder, heads=("camera", "normals", "colours"), extra_heads=given)
    assert torch.equal(some(images).extra["normals"].value, expected["extra.normals.value"])
    weights = dict(some.named_parameters(remove_duplicate=False))
    assert weights[f"{shared[1]}.project.0.weight"] is weights[f"{shared[2]}.project.0.weight"]


def test_shared_parts_of_the_models_own(whole_model, images, tmp_path: Path):
    whole_model.point_head.decoder = whole_model.depth_head.decoder
    ours = VGGT.from_pretrained(whole_model.save_pretrained(tmp_path / "ours"))
    assert ours.point_head.decoder.smooth.weight is ours.depth_head.decoder.smooth.weight
    # The published code knows nothing of sharing: there each has its own.
    folder = whole_model.save_pretrained(tmp_path / "theirs", names="published")
    assert load_file(folder / "model.safetensors").keys() == published(whole_model.state_dict()).keys()
    # safetensors' own function names the shared ones in the metadata.
    save_model(whole_model, tmp_path / "others.safetensors")
    others = VGGT.from_pretrained(tmp_path / "others.safetensors", config=whole_model.config)
    for loaded in (ours, VGGT.from_pretrained(folder, config=whole_model.config), others):
        assert torch.equal(loaded(images).points.value, whole_model(images).points.value)


def test_adapters_in_a_shared_layer(images, tmp_path: Path):
    whole_model = VGGT(lean_config(heads=("camera",), camera_depth=2)).eval()
    whole_model.camera_head.trunk[1] = whole_model.camera_head.trunk[0]
    add_lora(whole_model, ["camera_head.trunk.0.mlp.*"])
    for _, adapter in adapted_layers(whole_model).values():
        nn.init.normal_(adapter.up, std=0.1)
    loaded = VGGT.from_pretrained(whole_model.save_pretrained(tmp_path))
    assert torch.equal(loaded(images).pose_encodings, whole_model(images).pose_encodings)
    assert loaded.camera_head.trunk[1].mlp.expand.weight is loaded.camera_head.trunk[0].mlp.expand.weight


def test_a_training_with_a_shared_part_can_be_resumed(images, tmp_path: Path):
    def start() -> tuple[VGGT, torch.optim.Optimizer]:
        model = VGGT(lean_config(heads=("depth",)))
        model.add_head("normals", DenseHead(model.depth_head.decoder, 3))
        return model, torch.optim.AdamW(model.parameters())

    model, optimiser = start()
    predictions = model(images)
    (predictions.extra["normals"].value.sum() + predictions.depth.value.sum()).backward()
    optimiser.step()
    torch.save(training_state(model, optimiser), tmp_path / "state.pt")
    again, its_optimiser = start()
    load_into(again, its_optimiser, torch.load(tmp_path / "state.pt"))
    assert_same_weights(again, model)
    assert again.extra_heads["normals"].decoder is again.depth_head.decoder
    assert len(its_optimiser.state) == len(optimiser.state)


# Unused tensors


@pytest.mark.parametrize("rename", [dict, published])
def test_a_tensor_that_no_prediction_depends_on_may_be_missing(tiny_model, images, rename, tmp_path: Path, caplog):
    tensors = {name: t.bfloat16() for name, t in tiny_model.state_dict().items() if name != MASK_TOKEN}
    source = write(rename(tensors), tmp_path)
    with caplog.at_level(logging.WARNING, logger="geomtx"):
        loaded = VGGT.from_pretrained(source, config=tiny_model.config)
    assert caplog.messages == [f"{source} has no {MASK_TOKEN}, which no prediction depends on; it is zero."]
    token = loaded.encoder.backbone.mask_token
    assert token.dtype == torch.bfloat16
    assert not token.any()
    assert not token.requires_grad
    assert torch.equal(loaded(images).depth.value, tiny_model.bfloat16()(images).depth.value)


def test_no_other_parameter_is_unused(whole_model, images):
    predictions = whole_model(images, torch.rand(2, 3, 2) * 20)
    sum(t.float().sum() for t in named_tensors(predictions).values() if t.requires_grad).backward()
    assert [name for name, p in whole_model.named_parameters() if p.grad is None] == [MASK_TOKEN]


# Pickles of trainers


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "hyper_parameters": {"lr": 0.1}, "optimizer_states": [{"state": {}}]},
        lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {0: {"step": torch.ones(1)}}}},
        lambda state: {"module": state, "lr_scheduler": {"base": torch.ones(2)}, "global_steps": 3},
        lambda state: {"epoch": 7, "checkpoint": {"model": state, "ema": {n: t + 1 for n, t in state.items()}}},
        lambda state: {"model": state, "model_ema": {n: t + 1 for n, t in state.items()}, "step": torch.tensor(3)},
        lambda state: {"vggt": state, "optimizer": {"exp_avg": dict(state)}, "rng_state": {"cpu": torch.ones(3)}},
        lambda state: {"ema": state, "optimizer": {"exp_avg": dict(state)}},
        lambda state: {**state, "epoch": 3, "name": "mine", "best": None},
        lambda state: {"model": state, "args": argparse.Namespace(lr=1e-4, folder=Path("/tmp"))},
        lambda state: {
            "model": state,
            "best": np.float64(0.5),
            "seen": np.int64(3),
            "log": collections.defaultdict(list),
        },
    ],
)
def test_state_dicts_within_trainers_checkpoints(tiny_model, wrap, tmp_path: Path):
    state = {f"module.{name}": tensor for name, tensor in tiny_model.state_dict().items()}
    torch.save(wrap(state), tmp_path / "w.pt")
    assert_same_weights(VGGT.from_pretrained(tmp_path / "w.pt", config=tiny_model.config), tiny_model)


def test_pickles_with_several_state_dicts_of_which_none_is_the_models(tmp_path: Path):
    torch.save({"student": {"a": torch.ones(1)}, "teacher": {"a": torch.zeros(1)}}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt must hold one state dict, got 'student', 'teacher'; save one of them"):
        open_tensor_file(tmp_path / "w.pt")
