"""Build models on the meta device, load and save their weights, strictly.

Reads .safetensors files, sharded or not, hub-style folders, pickles without code and the hub. Loading peaks at about
the size of the model, because each tensor is copied and let go before the next is read; a pickle, which is mapped or
read as a whole, adds its own size.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from geomtx.checks import check_option
from geomtx.files import staged_folder, user_path
from geomtx.key_table import KeyTable
from geomtx.layers.lora import merged_state
from geomtx.tensor_file import PICKLE_SUFFIXES, TensorFile, open_tensor_file

__all__ = ["Checkpoint", "load_model", "open_checkpoint", "save_model"]

Model = TypeVar("Model", bound=nn.Module)
WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
CONFIG_FORMAT = "geomtx.model"  # in a config.json, by which `is_own` knows it
CONFIG_KEY = "geomtx_config"  # in a .safetensors file's own metadata


class Checkpoint(NamedTuple):
    """Open files and what is stored with them.

    Attributes:
        source: What they were asked for as.
        files: At least one.
        config: Of the `config.json` beside them, if there is one.
        embedded_config: Of the files' own metadata, if we wrote them.
    """

    source: str
    files: tuple[TensorFile, ...]
    config: dict[str, Any] | None
    embedded_config: dict[str, Any] | None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Stored name → shape, over all files."""
        return {name: shape for file in self.files for name, shape in file.shapes.items()}

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """Stored name → dtype, over all files."""
        return {name: dtype for file in self.files for name, dtype in file.dtypes.items()}


def load_model(
    checkpoint: Checkpoint,
    build: Callable[[], Model],
    keys: KeyTable,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    apart: Sequence[str] = (),
) -> Model:
    """Build a model on the meta device and fill it.

    Args:
        checkpoint: From `open_checkpoint`.
        build: Makes the model.
        keys: Names, published ↔ geomtx; a checkpoint may have either.
        device: Of the parameters; None = the CPU.
        dtype: Of the parameters; None = as stored.
        apart: Prefixes of names that are passed over, because the caller reads them itself or leaves them out.

    Returns:
        The model in evaluation mode.

    Raises:
        ValueError: If the tensors don't fit the model, or `dtype` is not floating point.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype must be a floating point torch.dtype, got {dtype!r}")
    with torch.device("meta"):
        model = build()
    names = match_names(model, checkpoint, keys, apart)
    for file in checkpoint.files:
        for stored, tensor in file.read([name for name in file.shapes if name in names]):
            # A copy, in memory of its own: what `tensor` shows may be the file.
            copy = torch.empty_like(tensor, device=device or "cpu", dtype=dtype).copy_(tensor)
            fill_parameter(model, names[stored], copy)
    return model.eval()


def fill_parameter(model: nn.Module, name: str, value: Tensor) -> None:
    """Put `value` in place of a parameter that is still on the meta device."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    requires_grad = getattr(module, leaf).requires_grad
    setattr(module, leaf, nn.Parameter(value, requires_grad=requires_grad))


def match_names(model: nn.Module, checkpoint: Checkpoint, keys: KeyTable, apart: Sequence[str] = ()) -> dict[str, str]:
    """Stored name → our name of every parameter.

    Tensors of parts that the model leaves out (None), and of those that are `apart`, are passed over.

    Raises:
        ValueError: Naming the first ten tensors that are missing, unexpected or misshapen.
    """
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    matched: dict[str, str] = {}
    found: set[str] = set()
    problems = []
    for stored, shape in checkpoint.shapes.items():
        if stored.startswith(tuple(apart)):
            continue
        ours = stored if stored in expected else keys.to_geomtx(stored) or stored
        if ours in expected:
            if ours in found:
                problems.append(f"{stored} is {ours} a second time")
            found.add(ours)
            matched[stored] = ours
            if shape != expected[ours]:
                problems.append(f"{stored} has shape {shape} instead of {expected[ours]}")
            if not checkpoint.dtypes[stored].is_floating_point:
                problems.append(f"{stored} has numbers of type {checkpoint.dtypes[stored]}")
        elif getattr(model, ours.partition(".")[0], model) is not None:
            problems.append(f"{stored} is unexpected")
    problems += [f"{name} is missing" for name in expected if name not in found]
    if problems:
        rest = f" and {len(problems) - 10} more" if len(problems) > 10 else ""
        hint = "; does it need a config of its own?" if len(problems) > len(expected) / 2 else ""
        raise ValueError(f"{checkpoint.source} doesn't fit the model: {', '.join(problems[:10])}{rest}{hint}")
    return matched


def open_checkpoint(source: str | os.PathLike[str]) -> Checkpoint:
    """Find and open the weights of a file, a folder or a hub id.

    Raises:
        ValueError: For a broken file.
        FileNotFoundError: If there is nothing.
    """
    path = user_path(source)
    folder = path if path.exists() else download(str(source))
    weights = [path] if path.is_file() else _weight_files(folder)
    files = tuple(open_tensor_file(file) for file in weights)
    beside, embedded = folder / CONFIG, files[0].metadata.get(CONFIG_KEY)
    return Checkpoint(
        source=str(source),
        files=files,
        config=_read_config(beside) if path != files[0].path and beside.is_file() else None,
        embedded_config=None if embedded is None else parse_json(embedded, files[0].path),
    )


def _read_config(path: Path) -> dict[str, Any]:
    """What a `config.json` says of the model; whose file it is, is another matter."""
    config = parse_json(path.read_bytes(), path)
    return {key: value for key, value in config.items() if (key, value) != ("format", CONFIG_FORMAT)}


def _weight_files(folder: Path) -> list[Path]:
    """The sharded weights of an index, else one file: `model.safetensors`, the only .safetensors, the only pickle."""
    if (folder / INDEX).is_file():
        weight_map = parse_json((folder / INDEX).read_bytes(), folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ValueError(f"{folder / INDEX} has no weight_map")
        names = sorted(set(weight_map.values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(f"{folder / INDEX} names {missing[0]}, which is not in the folder")
        return [folder / name for name in names]
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    for suffixes in ((".safetensors",), PICKLE_SUFFIXES):
        files = sorted(file for file in folder.iterdir() if file.suffix in suffixes)
        if len(files) == 1:
            return files
        if files:
            raise ValueError(f"{folder} has several weight files and no {INDEX}; name one of them")
    raise FileNotFoundError(f"{folder} has no weights; looked for {WEIGHTS}, {INDEX} and {', '.join(PICKLE_SUFFIXES)}")


def parse_json(text: str | bytes, path: Path) -> dict[str, Any]:
    """An object of the file at `path`; ValueError if it is none."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} holds broken JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds JSON that is no object")
    return value


def download(repo: str) -> Path:
    """Folder of a hub repository: downloaded, or from the cache when offline.

    Raises:
        FileNotFoundError: If `repo` is no hub id, or the hub doesn't have it or can't be reached.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise FileNotFoundError(f"weights must be a file, a folder or a hub id like 'facebook/VGGT-1B', got '{repo}'")
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo, allow_patterns=["*.safetensors", "*.json"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(repo, allow_patterns=[*(f"*{s}" for s in PICKLE_SUFFIXES), "*.json"]))
    except Exception as error:  # the hub's client lets many kinds through, its transport's included
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(f"'{repo}' is no local path, and the hub gave: {reason}") from error
    return folder


def save_model(
    model: nn.Module,
    folder: str | os.PathLike[str],
    keys: KeyTable,
    *,
    config: dict[str, Any],
    published_config: dict[str, Any],
    names: Literal["geomtx", "published"] = "geomtx",
    overwrite: bool = False,
) -> Path:
    """Write `model.safetensors` and `config.json`: both or none.

    Args:
        model: On any device; adapters (`geomtx.layers.lora`) are merged in what is written.
        folder: Is made if need be.
        keys: Names, published ↔ geomtx.
        config: Goes into the weights' own metadata, so that the file can be loaded alone, and into `config.json`.
        published_config: What goes into `config.json` with published names.
        names: Of the tensors.
        overwrite: Whether files of these names, and an index of shards, that geomtx did not write may be replaced.

    Returns:
        The folder.

    Raises:
        ValueError: If a parameter has no published name.
        FileExistsError: If there are such files and `overwrite` is False.
        OSError: If the folder can't be written.
    """
    check_option("names", names, ("geomtx", "published"))
    tensors = {}
    for ours, tensor in merged_state(model).items():
        name = keys.to_published(ours) if names == "published" else ours
        if name is None:
            raise ValueError(f"{ours} has no published name; use names='geomtx'")
        tensors[name] = tensor.contiguous()
    # One entry: safetensors writes several in any order, and the same model should give the same bytes.
    metadata = {CONFIG_KEY: json.dumps(config)}
    # An index of shards, which would be read in place of the new file, goes.
    with staged_folder(folder, (INDEX, WEIGHTS, CONFIG), overwrite=overwrite) as stage:
        save_file(tensors, stage / WEIGHTS, metadata=metadata)
        stored = config if names == "geomtx" else published_config
        text = json.dumps({"format": CONFIG_FORMAT, **stored}, indent=2)
        (stage / CONFIG).write_text(text + "\n", encoding="utf-8")
        # safetensors makes files that only their owner can read.
        (stage / WEIGHTS).chmod((stage / CONFIG).stat().st_mode)
    return user_path(folder)
