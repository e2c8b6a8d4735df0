import os
import pickle
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from geomtx.checkpoint.tensor_file import PICKLE_SUFFIXES, TensorFile, open_tensor_file

DTYPES = {
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.bool,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8,
    torch.complex64,
}  # fmt: skip


def tensors() -> dict[str, Tensor]:
    return {
        "a.weight": torch.randn(3, 4),
        "a.bias": torch.randn(4).bfloat16(),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 7),
        "mask": torch.tensor([True, False]),
        "transposed": torch.randn(5, 2).T,
    }


def write(path: Path, content: dict[str, Tensor], *, kind: str) -> Path:
    if kind == "safetensors":
        path = path.with_suffix(".safetensors")
        save_file({name: tensor.contiguous() for name, tensor in content.items()}, path)
    else:
        path = path.with_suffix(".pt")
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    return path


KINDS = ("safetensors", "zip", "legacy")


@pytest.mark.parametrize("kind", KINDS)
def test_reads_what_was_written(tmp_path, kind):
    content = tensors()
    file = open_tensor_file(write(tmp_path / "file", content, kind=kind))
    assert isinstance(file, TensorFile)
    assert file.shapes == {name: tuple(tensor.shape) for name, tensor in content.items()}
    assert file.dtypes == {name: tensor.dtype for name, tensor in content.items()}
    assert file.path.parent == tmp_path
    read = dict(file.read(content))
    assert read.keys() == content.keys()
    for name, tensor in content.items():
        assert torch.equal(read[name], tensor)


@pytest.mark.parametrize("kind", KINDS)
def test_reads_only_what_is_asked_for(tmp_path, kind):
    file = open_tensor_file(write(tmp_path / "file", tensors(), kind=kind))
    assert [name for name, _ in file.read(["mask", "a.bias"])] == ["mask", "a.bias"]
    assert list(file.read([])) == []


@pytest.mark.parametrize("count", [1, 31, 32, 33, 100])
def test_reads_any_number_of_tensors(tmp_path, count):
    content = {f"t{i}": torch.full((2,), float(i)) for i in range(count)}
    file = open_tensor_file(write(tmp_path / "file", content, kind="safetensors"))
    assert {name: tensor[0].item() for name, tensor in file.read(content)} == {f"t{i}": float(i) for i in range(count)}


def test_metadata(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", {"format": "pt", "note": "hello"})
    assert open_tensor_file(tmp_path / "a.safetensors").metadata == {"format": "pt", "note": "hello"}
    save_file({"a": torch.zeros(1)}, tmp_path / "b.safetensors")
    assert open_tensor_file(tmp_path / "b.safetensors").metadata == {}
    torch.save({"a": torch.zeros(1)}, tmp_path / "c.pt")
    assert open_tensor_file(tmp_path / "c.pt").metadata == {}


@pytest.mark.parametrize("dtype", sorted(DTYPES, key=str))
def test_every_type_of_number(tmp_path, dtype):
    save_file({"a": torch.zeros(2, 3).to(dtype)}, tmp_path / "a.safetensors")
    file = open_tensor_file(tmp_path / "a.safetensors")
    assert file.dtypes == {"a": dtype}
    assert next(iter(file.read(["a"])))[1].dtype == dtype


def test_a_type_of_number_that_torch_does_not_have(tmp_path):
    header = b'{"a":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]}}'
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(3))
    with pytest.raises(ValueError, match=r"a\.safetensors has tensors of a type that is not supported, F6_E2M3$"):
        open_tensor_file(tmp_path / "a.safetensors")


@pytest.mark.parametrize("suffix", PICKLE_SUFFIXES)
@pytest.mark.parametrize("key", [None, "model", "state_dict"])
@pytest.mark.parametrize("new_format", [True, False])
def test_state_dicts_in_pickles(tmp_path, suffix, key, new_format):
    state = torch.nn.Linear(3, 2).state_dict()
    content = state if key is None else {key: state, "epoch": 3, "lr": [0.1], "optimizer": {"step": torch.ones(1)}}
    torch.save(content, tmp_path / f"w{suffix}", _use_new_zipfile_serialization=new_format)
    file = open_tensor_file(tmp_path / f"w{suffix}")
    assert file.shapes == {"weight": (2, 3), "bias": (2,)}
    assert torch.equal(dict(file.read(["bias"]))["bias"], state["bias"])


def test_a_parameter_called_model_is_no_state_dict(tmp_path):
    torch.save({"model": torch.ones(2), "b": torch.ones(3)}, tmp_path / "w.pt")
    assert open_tensor_file(tmp_path / "w.pt").shapes == {"model": (2,), "b": (3,)}


@pytest.mark.parametrize("content", [[1, 2], {}, {"a": 3}, {"model": {}}, torch.ones(3), None])
def test_pickles_without_a_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt holds no state dict$"):
        open_tensor_file(tmp_path / "w.pt")


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle 2"])
@pytest.mark.parametrize("suffix", PICKLE_SUFFIXES)
def test_pickles_with_code_do_not_run_it(tmp_path, how, suffix):
    path, trace = tmp_path / f"w{suffix}", tmp_path / "ran"
    content = {"a": torch.ones(2), "b": Bomb(trace)} if how != "pickle 2" else {"b": Bomb(trace)}
    if how == "pickle 2":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(
        ValueError, match=r"is a pickle with more than tensors in it \(.*mkdir\), which could run code; "
    ):
        open_tensor_file(path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Bomb(trace)))  # the bomb is a live one
    assert trace.exists()


def test_whole_modules_are_refused_by_name(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"more than tensors in it \(torch\.nn\.modules\.linear\.Linear\)"):
        open_tensor_file(tmp_path / "w.pt")


def refusal(path: Path, content: bytes) -> str | None:
    """What is said to a file of this content; None if it can be read. Other errors than a ValueError get out."""
    path.write_bytes(content)
    try:
        file = open_tensor_file(path)
        list(file.read(file.shapes))
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_and_garbled_files_are_named_in_one_line(tmp_path, kind):
    path = write(tmp_path / "file", {f"a.{i}": torch.randn(3, 4) for i in range(4)}, kind=kind)
    whole, chance = path.read_bytes(), random.Random(0)
    cuts = [0, 1, 7, 8, 9, len(whole) - 1, *(chance.randrange(len(whole)) for _ in range(60))]
    said = [refusal(path, whole[:size]) for size in cuts]
    # The end of a file of before torch 1.6 can hold nothing that matters.
    assert sum(line is None for line in said) <= (1 if kind == "legacy" else 0)
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(4):
            content[chance.randrange(len(content))] ^= chance.randrange(1, 256)
        said.append(refusal(path, bytes(content)))
    said = [line for line in said if line is not None]
    assert len(said) > len(cuts)
    assert all(line.startswith(str(path)) and "\n" not in line for line in said)


@pytest.mark.parametrize("suffix", [".safetensors", *PICKLE_SUFFIXES])
@pytest.mark.parametrize("content", [b"", b"hello world garbage", b"<html>404</html>", bytes(5000)])
def test_files_of_something_else(tmp_path, suffix, content):
    (tmp_path / f"w{suffix}").write_bytes(content)
    with pytest.raises(ValueError, match=rf"w\{suffix} is truncated or no (safetensors file|file of torch.save)"):
        open_tensor_file(tmp_path / f"w{suffix}")


def test_other_suffixes(tmp_path):
    (tmp_path / "w.npz").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"^weights must be a \.safetensors, \.pt, \.pth, \.bin, \.ckpt file, got .*w\.npz$"
    ):
        open_tensor_file(tmp_path / "w.npz")
