import copy
import dataclasses
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from geomtx import VGGT, VGGTConfig
from geomtx.checkpoint.tensor_file import PickleFile, SafetensorsFile
from geomtx.models import published as known
from geomtx.models.vggt.keys import VGGT_KEYS
from lean import lean_config

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"


@pytest.fixture(scope="module")
def model() -> VGGT:
    """Of two heads; no test changes it."""
    torch.manual_seed(1)
    return VGGT(lean_config(heads=("camera", "depth")))


@pytest.fixture(scope="module")
def saved(model: VGGT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model, which no test changes."""
    return model.save_pretrained(tmp_path_factory.mktemp("saved"))


def published_tensors(model: VGGT) -> dict[str, Tensor]:
    return {VGGT_KEYS.to_published(name): tensor for name, tensor in model.state_dict().items()}


def assert_equal(ours: VGGT, reference: VGGT) -> None:
    """To the bit."""
    assert ours.config == reference.config
    mine, theirs = ours.state_dict(), reference.state_dict()
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(mine[name], tensor), name


def shard(folder: Path, tensors: dict[str, Tensor], count: int = 3) -> None:
    """Files and an index, as the hub's tools write them."""
    folder.mkdir(exist_ok=True)
    names = list(tensors)
    weight_map = {}
    for index in range(count):
        file = f"model-{index + 1:05}-of-{count:05}.safetensors"
        part = {name: tensors[name].contiguous() for name in names[index::count]}
        save_file(part, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index))


# Every kind of source


def test_json_with_a_byte_order_mark(model: VGGT, tmp_path: Path):
    """As editors on Windows save a configuration or an index that someone changed."""
    shard(tmp_path, model.state_dict())
    text = json.dumps(model.config.to_dict())
    (tmp_path / CONFIG).write_text(text, encoding="utf-8-sig")
    (tmp_path / INDEX).write_text((tmp_path / INDEX).read_text(), encoding="utf-8-sig")
    assert_equal(VGGT.from_pretrained(tmp_path), model)


def saved_folder(model: VGGT, folder: Path) -> Path:
    return model.save_pretrained(folder)


def saved_file(model: VGGT, folder: Path) -> Path:
    return model.save_pretrained(folder) / WEIGHTS


def renamed_file_alone(model: VGGT, folder: Path) -> Path:
    model.save_pretrained(folder)
    (folder / CONFIG).unlink()
    return (folder / WEIGHTS).rename(folder / "any name.safetensors")


def folder_with_one_file_of_any_name(model: VGGT, folder: Path) -> Path:
    model.save_pretrained(folder)
    (folder / WEIGHTS).rename(folder / "vggt.safetensors")
    return folder


def sharded_folder(model: VGGT, folder: Path) -> Path:
    shard(folder, model.state_dict())
    (folder / CONFIG).write_text(json.dumps(model.config.to_dict()))
    return folder


def folder_with_a_pickle(model: VGGT, folder: Path) -> Path:
    folder.mkdir()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / CONFIG).write_text(json.dumps(model.config.to_dict()))
    return folder


@pytest.mark.parametrize(
    "write",
    [
        saved_folder,
        saved_file,
        renamed_file_alone,
        folder_with_one_file_of_any_name,
        sharded_folder,
        folder_with_a_pickle,
    ],
)
def test_sources_with_a_configuration(tmp_path, model, write):
    source = write(model, tmp_path / "weights")
    loaded = VGGT.from_pretrained(source)
    assert_equal(loaded, model)
    assert not loaded.training
    assert VGGT.read_config(source) == model.config


def test_a_source_may_be_a_string(saved, model):
    for source in (saved, saved / WEIGHTS):
        assert_equal(VGGT.from_pretrained(str(source)), model)


def bare_safetensors(tensors: dict[str, Tensor], folder: Path) -> Path:
    save_file(tensors, folder / "w.safetensors")
    return folder / "w.safetensors"


def bare_pickle(tensors: dict[str, Tensor], folder: Path) -> Path:
    torch.save(tensors, folder / "w.pt")
    return folder / "w.pt"


def legacy_pickle(tensors: dict[str, Tensor], folder: Path) -> Path:
    torch.save(tensors, folder / "w.pth", _use_new_zipfile_serialization=False)
    return folder / "w.pth"


def nested_pickle(tensors: dict[str, Tensor], folder: Path) -> Path:
    torch.save({"model": tensors, "epoch": 7, "optimizer": {"lr": 1e-4}}, folder / "w.ckpt")
    return folder / "w.ckpt"


def legacy_nested_pickle(tensors: dict[str, Tensor], folder: Path) -> Path:
    torch.save({"state_dict": tensors}, folder / "w.bin", _use_new_zipfile_serialization=False)
    return folder / "w.bin"


def bare_shards(tensors: dict[str, Tensor], folder: Path) -> Path:
    shard(folder, tensors)
    return folder


BARE = [bare_safetensors, bare_pickle, legacy_pickle, nested_pickle, legacy_nested_pickle, bare_shards]


@pytest.mark.parametrize("write", BARE)
@pytest.mark.parametrize("published", [True, False])
def test_sources_without_a_configuration(tmp_path, model, write, published):
    tensors = published_tensors(model) if published else model.state_dict()
    assert_equal(VGGT.from_pretrained(write(tensors, tmp_path), config=model.config), model)


def test_without_any_configuration_it_is_vggt_1b(tmp_path):
    """With the heads that the file has tensors of."""
    source = bare_safetensors(published_tensors(VGGT(lean_config(heads=("depth", "tracks")))), tmp_path)
    assert VGGT.read_config(source) == VGGTConfig(heads=("depth", "tracks"))
    with pytest.raises(
        ValueError, match=r"doesn't fit the model: .* and \d+ more; does it need a config of its own\?$"
    ):
        VGGT.from_pretrained(source)


def test_a_configuration_given_overrides_the_stored_one(saved, model):
    other = dataclasses.replace(model.config, camera_iterations=3, rope_base=50.0)
    loaded = VGGT.from_pretrained(saved, config=other)
    assert loaded.config == other
    assert loaded.camera_head.num_iterations == 3


def test_what_is_loaded_is_not_the_file(tmp_path, model):
    """Training on it, or writing over the file, changes neither."""
    for source in (model.save_pretrained(tmp_path) / WEIGHTS, bare_pickle(model.state_dict(), tmp_path)):
        loaded = VGGT.from_pretrained(source, config=model.config)
        before = source.read_bytes()
        with torch.no_grad():
            for parameter in loaded.parameters():
                parameter.zero_()
        assert source.read_bytes() == before
        loaded = VGGT.from_pretrained(source, config=model.config)
        source.write_bytes(bytes(len(before)))
        assert_equal(loaded, model)


def test_parameters_are_parameters(saved, model):
    loaded = VGGT.from_pretrained(saved)
    for name, parameter in loaded.named_parameters():
        assert isinstance(parameter, torch.nn.Parameter)
        assert parameter.device.type == "cpu"
        assert parameter.is_leaf
        assert parameter.requires_grad == (name != "encoder.backbone.mask_token"), name
    assert list(loaded.state_dict()) == list(model.state_dict())


# Heads, device and dtype


@pytest.mark.parametrize("write", [bare_safetensors, bare_pickle, bare_shards])
@pytest.mark.parametrize("published", [True, False])
def test_tensors_of_other_heads_are_not_read(tmp_path, model, monkeypatch, write, published):
    tensors = published_tensors(model) if published else model.state_dict()
    tensors["depth_head.norm.weight"] = torch.zeros(3)  # nor is their shape looked at
    source, read = write(tensors, tmp_path), []
    for kind in (SafetensorsFile, PickleFile):
        original = kind.read

        def spy(self, names, original=original):
            names = list(names)
            read.extend(names)
            return original(self, names)

        monkeypatch.setattr(kind, "read", spy)
    loaded = VGGT.from_pretrained(source, config=model.config, heads=("camera",))
    assert loaded.heads == ("camera",)
    assert {name.partition(".")[0] for name in read} == {"aggregator" if published else "encoder", "camera_head"}
    assert_equal_parts(loaded, model)


def assert_equal_parts(loaded: VGGT, model: VGGT) -> None:
    whole = model.state_dict()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, whole[name]), name


@pytest.mark.parametrize("heads", [("depth",), ("depth", "camera"), ()])
def test_some_heads_of_a_folder(saved, model, heads):
    loaded = VGGT.from_pretrained(saved, heads=heads)
    assert loaded.heads == heads
    assert_equal_parts(loaded, model)


@pytest.mark.usefixtures("unchecked")
def test_heads_that_are_not_there(saved):
    for head in ("normals", "points"):
        with pytest.raises(ValueError, match=rf"^head must be one of 'camera', 'depth', got '{head}'$"):
            VGGT.from_pretrained(saved, heads=(head,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype(saved, model, dtype):
    loaded = VGGT.from_pretrained(saved, dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    reference = model.state_dict()
    assert all(torch.equal(tensor, reference[name].to(dtype)) for name, tensor in loaded.state_dict().items())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, "float16", torch.complex64])
def test_dtypes_that_are_none_for_weights(saved, dtype):
    with pytest.raises(ValueError, match=rf"^dtype must be a floating point torch.dtype, got '?{dtype}'?$"):
        VGGT.from_pretrained(saved, dtype=dtype)


def test_dtype_is_as_stored_by_default(tmp_path, model):
    half = copy.deepcopy(model).bfloat16()
    assert_equal(VGGT.from_pretrained(half.save_pretrained(tmp_path)), half)


@pytest.mark.parametrize("device", ["meta", torch.device("cpu")])
def test_device(saved, device):
    loaded = VGGT.from_pretrained(saved, device=device)
    assert {parameter.device for parameter in loaded.parameters()} == {torch.device(device)}


@pytest.mark.cuda
def test_device_of_a_gpu(saved, model):
    loaded = VGGT.from_pretrained(saved, device="cuda", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in loaded.parameters()} == {("cuda", torch.bfloat16)}
    assert all(torch.equal(t.cpu(), model.state_dict()[n].bfloat16()) for n, t in loaded.state_dict().items())


# Saving


@pytest.mark.parametrize("names", ["geomtx", "published"])
def test_saving_and_loading_back(tmp_path, names):
    model = VGGT(VGGTConfig.tiny())  # with all heads
    folder = model.save_pretrained(tmp_path / "made" / "if need be", names=names)
    assert folder == tmp_path / "made" / "if need be"
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, WEIGHTS]
    assert_equal(VGGT.from_pretrained(folder, config=model.config), model)


def test_files_under_published_names(tmp_path):
    config = lean_config(heads=("camera", "points"))
    folder = VGGT(config).save_pretrained(tmp_path, names="published")
    tensors = load_file(folder / WEIGHTS)
    assert "aggregator.patch_embed.pos_embed" in tensors
    assert "point_head.scratch.refinenet4.resConfUnit2.conv1.weight" in tensors
    assert not any(name.startswith(("encoder", "depth_head", "track_head")) for name in tensors)
    assert json.loads((folder / CONFIG).read_text()) == {
        "format": "geomtx.model",
        "img_size": 70,
        "patch_size": 14,
        "embed_dim": 32,
        "enable_camera": True,
        "enable_depth": False,
        "enable_point": True,
        "enable_track": False,
    }
    # The published config.json has few of the numbers; the file itself has all.
    assert VGGT.read_config(folder) == config
    assert VGGT.read_config(folder / WEIGHTS) == config


def test_files_under_our_names(saved, model):
    assert load_file(saved / WEIGHTS).keys() == model.state_dict().keys()
    written = {"format": "geomtx.model", "kind": "VGGT", **model.config.to_dict()}
    assert json.loads((saved / CONFIG).read_text()) == written
    with safe_open(saved / WEIGHTS, framework="pt") as file:
        assert json.loads(file.metadata()["geomtx_config"]) == {"kind": "VGGT", **model.config.to_dict()}


@pytest.mark.parametrize("names", ["geomtx", "published"])
def test_saving_again_gives_the_same_bytes(tmp_path, model, names):
    folders = [model.save_pretrained(tmp_path / str(index), names=names) for index in range(3)]
    for name in (WEIGHTS, CONFIG):
        assert len({(folder / name).read_bytes() for folder in folders}) == 1


def test_saving_over_older_weights(tmp_path, model):
    """Files of other names stay, but for an index, which would lead back to the old weights."""
    sharded_folder(VGGT(model.config), tmp_path)
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(FileExistsError, match=rf"under the names of results, got {INDEX}, {CONFIG};"):
        model.save_pretrained(tmp_path)
    assert (tmp_path / INDEX).exists()
    model.save_pretrained(tmp_path, overwrite=True)
    model.save_pretrained(tmp_path, names="published")  # over files that are geomtx's
    model.save_pretrained(tmp_path)
    assert_equal(VGGT.from_pretrained(tmp_path), model)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert not (tmp_path / INDEX).exists()


def test_saving_what_is_not_contiguous_or_on_a_tape(tmp_path, model):
    model = copy.deepcopy(model)
    layer = model.camera_head.pose_mlp.expand
    layer.weight = torch.nn.Parameter(layer.weight.detach().T.contiguous().T)
    assert not layer.weight.is_contiguous()
    assert_equal(VGGT.from_pretrained(model.save_pretrained(tmp_path)), model)


def test_files_can_be_read_by_others(tmp_path, model):
    old = os.umask(0o022)
    try:
        model.save_pretrained(tmp_path)
    finally:
        os.umask(old)
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in (WEIGHTS, CONFIG)} == {0o644}


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("at", ["weights", "config", "interrupt"])
def test_a_failed_save_leaves_things_as_they_were(tmp_path, model, monkeypatch, new, at):
    folder = tmp_path / "weights"
    if not new:
        VGGT(lean_config(heads=())).save_pretrained(folder)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fail(*arguments, **_):
        path = arguments[1] if at != "config" else arguments[0]
        path.write_bytes(b"half")
        raise KeyboardInterrupt if at == "interrupt" else OSError("No space left on device")

    if at == "config":
        monkeypatch.setattr(Path, "write_text", fail)
    else:
        monkeypatch.setattr("geomtx.checkpoint.files.save_file", fail)
    with pytest.raises(KeyboardInterrupt if at == "interrupt" else OSError):
        model.save_pretrained(folder)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert folder.exists() == (not new)
    assert [path.name for path in tmp_path.iterdir()] == ([] if new else ["weights"])


def test_a_folder_that_cannot_be_written(tmp_path, model):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=r"^output folder '.*' must be a folder, but '.*file' is a file$"):
            model.save_pretrained(folder)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.usefixtures("unchecked")
def test_saving_under_names_of_another_kind(tmp_path, model):
    with pytest.raises(ValueError, match=r"^names must be one of 'geomtx', 'published', got 'original'$"):
        model.save_pretrained(tmp_path / "w", names="original")
    assert not (tmp_path / "w").exists()


def test_saving_what_has_no_published_name(tmp_path, model):
    model = copy.deepcopy(model)
    model.camera_head.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"^camera_head.extra.weight has no published name; use names='geomtx'$"):
        model.save_pretrained(tmp_path / "w", names="published")
    assert not (tmp_path / "w").exists()


# What doesn't fit or is broken: one line that says what and where


def assert_refused(source: Path, wanted: str, kind: type[Exception] = ValueError, **options) -> None:
    with pytest.raises(kind, match=wanted) as caught:
        VGGT.from_pretrained(source, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("published", [True, False])
def test_tensors_that_do_not_fit(tmp_path, model, published):
    tensors = published_tensors(model) if published else dict(model.state_dict())
    missing = next(name for name in tensors if name.startswith("camera_head.trunk.0"))
    misshapen = next(name for name in tensors if name.endswith("token_norm.bias"))
    del tensors[missing]
    tensors[misshapen] = torch.zeros(7)
    tensors["camera_head.surplus"] = torch.zeros(1)
    ours = VGGT_KEYS.to_geomtx(missing) if published else missing
    wanted = r"^.*w\.safetensors doesn't fit the model: camera_head\.surplus is unexpected, "
    wanted += rf"{misshapen} has shape \(7,\) instead of \(64,\), {ours} is missing$"
    assert_refused(bare_safetensors(tensors, tmp_path), wanted, config=model.config)


def test_only_the_first_ten_are_listed(tmp_path, model):
    tensors = dict(model.state_dict())
    names = [name for name in tensors if name.startswith("depth_head")]
    for name in names[:13]:
        del tensors[name]
    with pytest.raises(ValueError, match=r" and 3 more$") as caught:
        VGGT.from_pretrained(bare_safetensors(tensors, tmp_path), config=model.config)
    listed = str(caught.value).partition("doesn't fit the model: ")[2].removesuffix(" and 3 more").split(", ")
    assert listed == [f"{name} is missing" for name in names[:10]]
    tensors |= {name: model.state_dict()[name] for name in names[:3]}
    with pytest.raises(ValueError, match=rf"{names[12]} is missing$"):
        VGGT.from_pretrained(bare_safetensors(tensors, tmp_path), config=model.config)


def test_whole_numbers_are_no_weights(tmp_path, model):
    tensors = {**model.state_dict(), "camera_head.token_norm.bias": torch.zeros(64, dtype=torch.int8)}
    wanted = r"doesn't fit the model: camera_head.token_norm.bias has numbers of type torch.int8$"
    assert_refused(bare_safetensors(tensors, tmp_path), wanted, config=model.config)


def test_tensors_of_a_part_that_no_model_has(tmp_path, model):
    tensors = {**model.state_dict(), "training.weight": torch.zeros(1), "config": torch.zeros(1)}
    wanted = r"doesn't fit the model: config is unexpected, training.weight is unexpected$"
    assert_refused(bare_safetensors(tensors, tmp_path), wanted, config=model.config)


def test_the_same_tensor_under_both_names(tmp_path, model):
    tensors = {**model.state_dict(), "camera_head.embed_pose.bias": torch.zeros(64)}
    wanted = r"model: camera_head.pose_embedding.bias is camera_head.pose_embedding.bias a second time$"
    assert_refused(bare_safetensors(tensors, tmp_path), wanted, config=model.config)


def test_a_model_that_does_not_fit_is_told_before_anything_is_read(tmp_path, model, monkeypatch):
    tensors = {**model.state_dict(), "surplus": torch.zeros(1)}
    monkeypatch.setattr(SafetensorsFile, "read", lambda *_: pytest.fail("tensors were read"))
    assert_refused(bare_safetensors(tensors, tmp_path), "surplus is unexpected$", config=model.config)


def test_truncated_weights(tmp_path, model):
    file = model.save_pretrained(tmp_path) / WEIGHTS
    file.write_bytes(file.read_bytes()[:-1000])
    assert_refused(tmp_path, r"model\.safetensors is truncated or no safetensors file \(")


def test_garbage(tmp_path):
    for name in ("w.safetensors", "w.pt"):
        (tmp_path / name).write_bytes(b"<!DOCTYPE html>" * 100)
        assert_refused(tmp_path / name, rf"{name} is truncated or no ")


def test_pickles_with_code(tmp_path, model):
    trace = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> tuple[Callable, tuple]:
            return os.mkdir, (str(trace),)

    torch.save({"model": model.state_dict(), "args": Bomb()}, tmp_path / "w.pt")
    assert_refused(tmp_path / "w.pt", r"w\.pt is a pickle with more than tensors in it \(posix\.mkdir\), which could")
    assert not trace.exists()


def test_wrong_suffix(tmp_path):
    (tmp_path / "w.txt").write_text("hello")
    assert_refused(tmp_path / "w.txt", r"^weights must be a \.safetensors, .* file, got .*w\.txt$")


def test_folders_without_weights(tmp_path, model):
    wanted = r"has no weights; looked for model\.safetensors, .*\.index\.json and \.pt, \.pth, \.bin, \.ckpt$"
    assert_refused(tmp_path, wanted, FileNotFoundError)
    (tmp_path / CONFIG).write_text(json.dumps(model.config.to_dict()))
    assert_refused(tmp_path, wanted, FileNotFoundError)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_folders_with_several_weights(tmp_path, suffix):
    for name in "ab":
        (tmp_path / f"{name}.{suffix}").write_bytes(b"")
    assert_refused(tmp_path, r"has several weight files and no model\.safetensors\.index\.json; name one of them$")


def test_broken_shards(tmp_path, model):
    sharded_folder(model, tmp_path)
    file = tmp_path / "model-00002-of-00003.safetensors"
    content = file.read_bytes()
    file.unlink()
    wanted = r"index\.json names model-00002-of-00003\.safetensors, which is not in the folder$"
    assert_refused(tmp_path, wanted, FileNotFoundError)
    file.write_bytes(content[:-1])
    assert_refused(tmp_path, r"model-00002-of-00003\.safetensors is truncated")
    (tmp_path / INDEX).write_text("{}")
    assert_refused(tmp_path, r"index\.json has no weight_map$")
    (tmp_path / INDEX).write_text('{"weight_map": ')
    assert_refused(tmp_path, r"index\.json holds broken JSON \(Expecting value: line 1 column 16 \(char 15\)\)$")


def test_broken_configurations(tmp_path, model):
    model.save_pretrained(tmp_path)
    for content, wanted in (
        (b"{", "holds broken JSON"),
        (b"\xff\xfe\x00\x01", "holds broken JSON"),
        (b"[1, 2]", "holds JSON that is no object$"),
        (b'{"dim": "abc"}', "dim must be a whole number, got 'abc'$"),
        (b'{"width": 3}', "has a configuration that makes no model: config key must be one of .*, got 'width'"),
    ):
        (tmp_path / CONFIG).write_bytes(content)
        assert_refused(tmp_path, wanted)
    save_file(model.state_dict(), tmp_path / "w.safetensors", {"geomtx_config": "{"})
    assert_refused(tmp_path / "w.safetensors", r"w\.safetensors holds broken JSON")


# The hub


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty cache, and no network: a socket that is opened is an error."""
    from huggingface_hub import constants

    cache = tmp_path / "hub cache"
    cache.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))

    def refuse(*_, **__):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    known.state_licence.cache_clear()
    return cache


def cached_repository(cache: Path, repo: str) -> Path:
    """The folder for a repository's files, as if they had been downloaded."""
    revision = "0123456789abcdef0123456789abcdef01234567"
    home = cache / f"models--{repo.replace('/', '--')}"
    snapshot = home / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(revision)
    return snapshot


@pytest.mark.parametrize("repo", ["nobody/nothing", "facebook/VGGT-1B"])
def test_an_unknown_id_offline(hub, repo):
    with pytest.raises(FileNotFoundError, match=rf"^'{repo}' is no local path, and the hub gave: \w.*") as caught:
        VGGT.from_pretrained(repo)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["weights", "a/b/c", "/no/such/file.pt", "what ever/it is", "", "https://x.y/z"])
def test_what_is_neither_a_path_nor_an_id(hub, source):
    wanted = r"^weights must be a file, a folder or a hub id like 'facebook/VGGT-1B', got "
    with pytest.raises((FileNotFoundError, ValueError), match=wanted if source else "weights"):
        VGGT.from_pretrained(source)


@pytest.mark.parametrize("write", [saved_folder, sharded_folder])
def test_the_cache_serves_offline(hub, model, write):
    write(model, cached_repository(hub, "some.one/some-model"))
    assert_equal(VGGT.from_pretrained("some.one/some-model"), model)


def test_the_cache_serves_pickles_too(hub, model):
    snapshot = cached_repository(hub, "someone/old")
    torch.save(published_tensors(model), snapshot / "model.pt")
    assert_equal(VGGT.from_pretrained("someone/old", config=model.config), model)


def test_one_of_several_files_of_a_repository(hub, model):
    snapshot = cached_repository(hub, "someone/several")
    for name in ("first.pt", "second.pt"):
        torch.save(published_tensors(model), snapshot / name)
    assert_equal(VGGT.from_pretrained("someone/several/second.pt", config=model.config), model)
    with pytest.raises(FileNotFoundError, match=r"^'someone/several/third.pt' is no local path, and the hub gave: \w"):
        VGGT.from_pretrained("someone/several/third.pt")


def test_a_repository_of_published_weights(hub):
    """Links to blobs, published names, published configuration; what it doesn't say is given."""
    model = VGGT(lean_config(dim=64, heads=("camera",)))
    snapshot = cached_repository(hub, "facebook/VGGT-1B")
    blobs = snapshot.parent.parent / "blobs"
    model.save_pretrained(blobs, names="published")
    for name in (WEIGHTS, CONFIG):
        (snapshot / name).symlink_to(blobs / name)
    assert_equal(VGGT.from_pretrained("facebook/VGGT-1B", config=model.config), model)
    assert VGGT.read_config("facebook/VGGT-1B") == model.config
    bare = {name: tensor.clone() for name, tensor in load_file(blobs / WEIGHTS).items()}
    save_file(bare, blobs / WEIGHTS)  # as others write it, without our numbers
    assert VGGT.read_config("facebook/VGGT-1B") == VGGTConfig(dim=64, image_size=70, heads=("camera",))


def test_a_folder_goes_before_an_id(hub, model, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("some/where")
    assert_equal(VGGT.from_pretrained("some/where"), model)


def test_licences_are_stated_once(hub, model, caplog):
    model.save_pretrained(cached_repository(hub, "facebook/VGGT-1B"))
    with caplog.at_level(logging.INFO, logger="geomtx"):
        VGGT.from_pretrained("facebook/VGGT-1B")
        VGGT.from_pretrained("facebook/VGGT-1B")
    said = [record for record in caplog.records if record.name.startswith("geomtx")]
    assert [record.levelname for record in said] == ["WARNING"]
    assert said[0].getMessage() == (
        "The weights facebook/VGGT-1B have a licence of their own, CC BY-NC 4.0: no commercial use."
    )


def test_weights_of_ones_own_have_no_licence_to_state(hub, model, caplog):
    model.save_pretrained(cached_repository(hub, "someone/else"))
    VGGT.from_pretrained("someone/else")
    assert [record for record in caplog.records if record.name.startswith("geomtx")] == []


# Memory

MEASURE = """
import sys, torch, geomtx

def memory(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024

source, tiny = sys.argv[1:]
models = [geomtx.VGGT.from_pretrained(tiny)]  # whatever is imported and allocated once
for dtype in (torch.bfloat16, torch.float32):
    before = memory("VmRSS")
    models.append(geomtx.VGGT.from_pretrained(source, dtype=dtype))
    print(memory("VmHWM") - before, sum(parameter.nbytes for parameter in models[-1].parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process's peak memory from /proc")
def test_loading_peaks_at_about_the_size_of_the_model(tmp_path, saved):
    """150 MB: 1.15 times that and 40 MB for the tensors of the file that are mapped at a time."""
    with torch.device("meta"):
        large = VGGT(VGGTConfig.tiny(dim=512, depth=4, num_heads=8, heads=("camera",), camera_depth=1))
    folder = large.to_empty(device="cpu").save_pretrained(tmp_path)
    size = (folder / WEIGHTS).stat().st_size
    del large
    assert 130e6 < size < 200e6
    command = [sys.executable, "-c", MEASURE, folder, saved]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    for line, expected in zip(out.splitlines(), (size / 2, size), strict=True):
        growth, model_size = map(int, line.split())
        assert model_size == pytest.approx(expected, rel=0.01)
        assert growth < 1.15 * model_size + 40e6
        assert growth > 0.9 * model_size  # or it measures something else
