"""Build models on the meta device, load and save their weights, strictly.

Reads .safetensors files, sharded or not, hub-style folders, pickles without code and the hub. Loading peaks at about
the size of the model, because each tensor is copied and let go before the next is read; a pickle, which is mapped or
read as a whole, adds its own size.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from geomtx.checkpoint.hub import download
from geomtx.checkpoint.key_table import KeyTable, drop_wrappers, unwrap_names
from geomtx.checkpoint.tensor_file import PICKLE_SUFFIXES, RenamedFile, TensorFile, open_tensor_file
from geomtx.checks import check_option
from geomtx.files import staged_folder, user_path
from geomtx.layers.lora import merged_state

__all__ = ["Checkpoint", "SkippedInitialisation", "load_weights", "open_checkpoint", "save_model", "share_parameters"]

logger = logging.getLogger("geomtx")

Model = TypeVar("Model", bound=nn.Module)
WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
CONFIG_FORMAT = "geomtx.model"  # in a config.json, by which `is_own` knows it
CONFIG_KEY = "geomtx_config"  # in a .safetensors file's own metadata
SHARED_KEY = "shared"  # in a configuration: names of parameters that are another one's too
_RANDOM_FILLS = ("normal_", "uniform_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_", "orthogonal_")
# What layers compute with; others are only for storage.
_COMPUTING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class SkippedInitialisation(TorchFunctionMode):
    """While this context is entered, random initialisation of tensors on the meta device does nothing.

    They have no values, and drawing some would import `torch._dynamo`, which takes as long as importing torch.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch, or return the tensor that a random initialisation was to fill."""
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _RANDOM_FILLS:
            tensor = args[0] if args else kwargs.get("tensor")
            if isinstance(tensor, Tensor) and tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


class Checkpoint(NamedTuple):
    """Open files and what is stored with them.

    Attributes:
        source: Name, hub id or path that they were asked for by.
        files: Open files of tensors, one or more.
        config: Content of the `config.json` beside them, if there is one.
        embedded_config: Configuration in the metadata of the files, if geomtx wrote them.
        shared: Name of a tensor that was saved under another name, because several parameters are one → that name.
    """

    source: str
    files: tuple[TensorFile, ...]
    config: dict[str, Any] | None
    embedded_config: dict[str, Any] | None
    shared: Mapping[str, str] = {}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Stored name → shape, over all files."""
        return {name: shape for file in self.files for name, shape in file.shapes.items()}

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """Stored name → dtype, over all files."""
        return {name: dtype for file in self.files for name, dtype in file.dtypes.items()}

    def unwrapped(self, known: Callable[[str], bool]) -> Checkpoint:
        """The same tensors under a model's names, if all are stored under a prefix or with names of wrappers in them.

        Logs what was taken off and which tensors are passed over because they are beside the prefix.

        Args:
            known: Says whether a name is the model's.

        Raises:
            ValueError: If there are several copies of the model, and none is the one to take.
        """
        stored = self.shapes
        try:
            names, prefix, ignored = unwrap_names(stored, known)
        except ValueError as error:
            raise ValueError(f"{self.source} doesn't fit the model: {error}") from error
        if all(name == ours for name, ours in names.items()) and not ignored:
            return self
        _say_unwrapped(self.source, prefix, len(ignored), ", ".join(ignored[:3]))
        files = [RenamedFile(file, {names[name]: name for name in file.shapes if name in names}) for file in self.files]
        shared = {names[a]: names[b] for a, b in self.shared.items() if a in names and b in names}
        return self._replace(files=tuple(files), shared=shared)


@functools.cache
def _say_unwrapped(source: str, prefix: str, num_ignored: int, first: str) -> None:
    """Log, once a process: a checkpoint is opened more than once, for its configuration and for its tensors."""
    what = f"the prefix {prefix!r} is" if prefix else "names of wrappers are"
    beside = f"; {num_ignored} tensors beside the model's are passed over, {first}, …" if num_ignored else ""
    logger.warning("%s: %s taken off the tensors' names%s.", source, what, beside)


def load_weights(
    checkpoint: Checkpoint,
    build: Callable[[], Model],
    keys: KeyTable,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    ignored: Sequence[str] = (),
    parts: Sequence[str] = (),
) -> Model:
    """Build a model on the meta device and fill it; parts of it may be elsewhere, with values that are replaced.

    Parameters that a module names in `unused_parameters`, because no prediction depends on them, may be missing; they
    are zero then. Weights of several precisions are brought to the widest of them, each of `parts` and the rest of the
    model by itself. Both are logged.

    Args:
        checkpoint: Open files, as `open_checkpoint` returns them.
        build: Function that makes the model.
        keys: Names, published ↔ geomtx; a checkpoint may have either.
        device: Device of the parameters; defaults to the CPU.
        dtype: Dtype of the parameters; defaults to that in the file.
        ignored: Prefixes of names that are passed over, because the caller leaves them out.
        parts: Names of modules that run in a precision of their own.

    Returns:
        The model in evaluation mode.

    Raises:
        ValueError: If the tensors don't fit the model, `dtype` is not floating point, or is None where the tensors have
            a type that layers don't compute with.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype must be a floating point torch.dtype, got {dtype!r}")
    with torch.device("meta"), SkippedInitialisation():
        model = build()
    names = match_names(model, checkpoint, keys, ignored)
    buffers = dict(model.named_buffers())
    ties = _ties(model, names.values())
    dtypes = _choose_dtypes(model, checkpoint, names, parts) if dtype is None else {}
    for file in checkpoint.files:
        for stored, tensor in file.read([name for name in file.shapes if name in names]):
            # A copy, in memory of its own: what `tensor` shows may be the file.
            wanted = dtype or dtypes.get(_part_of(names[stored], parts), tensor.dtype)
            if not tensor.is_floating_point() or names[stored] in buffers:  # a counter; a table, as exact as it is
                wanted = tensor.dtype
            copy = torch.empty_like(tensor, device=device or "cpu", dtype=wanted).copy_(tensor)
            fill_tensor(model, names[stored], copy)
    for name in sorted(_unused(model) - set(names.values())):
        logger.warning("%s has no %s, which no prediction depends on; it is zero.", checkpoint.source, name)
        wanted = dtype or dtypes[_part_of(name, parts)]
        fill_tensor(model, name, torch.zeros_like(model.get_parameter(name), device=device or "cpu", dtype=wanted))
    share_parameters(model, {**ties, **checkpoint.shared})
    return model.to(device=device or "cpu", dtype=dtype).eval()  # what isn't saved, such as tables of constants


def _ties(model: nn.Module, filled: Container[str]) -> dict[str, str]:
    """Other name → name of each tensor that a model has under several names; the one that is filled, if any is."""
    groups: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        groups.setdefault(id(tensor), []).append(name)
    ties: dict[str, str] = {}
    for names in groups.values():
        owner = next((name for name in names if name in filled), names[0])
        ties |= {name: owner for name in names if name != owner}
    return ties


def _unused(model: nn.Module) -> set[str]:
    """Names of parameters that no prediction depends on, as the modules themselves say."""
    return {
        f"{path}.{leaf}".removeprefix(".")
        for path, module in model.named_modules()
        for leaf in getattr(module, "unused_parameters", ())
    }


def _part_of(name: str, parts: Sequence[str]) -> str:
    return next((part for part in parts if name.startswith(f"{part}.")), "")


def _choose_dtypes(
    model: nn.Module, checkpoint: Checkpoint, names: Mapping[str, str], parts: Sequence[str]
) -> dict[str, torch.dtype]:
    """Part → precision that holds all of its tensors' numbers; "" is what is in no part."""
    found: dict[str, dict[torch.dtype, None]] = {part: {} for part in ("", *parts)}
    unused, stored_dtypes, tensors = _unused(model), checkpoint.dtypes, model.state_dict(keep_vars=True)
    for stored, ours in names.items():
        if ours not in unused and isinstance(tensors[ours], nn.Parameter):
            found[_part_of(ours, parts)][stored_dtypes[stored]] = None
    for dtypes in found.values():
        for dtype in dtypes:
            if dtype not in _COMPUTING:
                raise ValueError(
                    f"{checkpoint.source} has numbers of type {dtype}, which layers don't compute with; choose another "
                    "type with dtype= (--dtype)"
                )
    chosen = {part: functools.reduce(torch.promote_types, dtypes) for part, dtypes in found.items() if dtypes}
    mixed = [f"{part or 'the model'} to {chosen[part]}" for part, dtypes in found.items() if len(dtypes) > 1]
    if mixed:
        logger.warning(
            "%s mixes precisions within a part of the model, which is brought to the widest (%s); dtype= (--dtype) "
            "chooses one.",
            checkpoint.source,
            ", ".join(mixed),
        )
    return chosen


def fill_tensor(model: nn.Module, name: str, value: Tensor) -> None:
    """Put `value` in place of a parameter, which may still be on the meta device, or of a buffer."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    old = getattr(module, leaf)
    is_parameter = isinstance(old, nn.Parameter)
    setattr(module, leaf, nn.Parameter(value, requires_grad=old.requires_grad) if is_parameter else value)


def match_names(
    model: nn.Module, checkpoint: Checkpoint, keys: KeyTable, ignored: Sequence[str] = ()
) -> dict[str, str]:
    """Stored name → our name of every parameter, and of every buffer that is saved.

    Tensors of parts that the model leaves out (None), and those that are `ignored`, are passed over.

    Raises:
        ValueError: Naming the first ten tensors that are missing, unexpected or misshapen.
    """
    expected = model.state_dict(keep_vars=True)
    plain = {drop_wrappers(name, private=True): name for name in expected}
    dtypes = checkpoint.dtypes
    matched: dict[str, str] = {}
    found: set[str] = set()
    problems = []
    for stored, shape in checkpoint.shapes.items():
        if stored.startswith(tuple(ignored)):
            continue
        ours = stored if stored in expected else keys.to_geomtx(stored) or stored
        ours = plain.get(drop_wrappers(ours, private=True), ours)
        if ours in expected:
            if ours in found:
                problems.append(f"{stored} is {ours} a second time")
            found.add(ours)
            matched[stored] = ours
            if shape != tuple(expected[ours].shape):
                problems.append(f"{stored} has shape {shape} instead of {tuple(expected[ours].shape)}")
            if expected[ours].is_floating_point() and not dtypes[stored].is_floating_point:
                problems.append(f"{stored} has numbers of type {dtypes[stored]}")
        elif getattr(model, ours.partition(".")[0], model) is not None:
            problems.append(f"{stored} is unexpected")
    unused, ties = _unused(model), _ties(model, found)
    problems += [f"{name} is missing" for name in expected if ties.get(name, name) not in found | unused]
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
    found = path if path.exists() else download(str(source))
    weights = [found] if found.is_file() else _weight_files(found)
    files = tuple(open_tensor_file(file) for file in weights)
    beside, embedded = found / CONFIG, files[0].metadata.get(CONFIG_KEY)
    config = _read_config(beside) if found != files[0].path and beside.is_file() else None
    embedded_config = None if embedded is None else parse_json(embedded, files[0].path)
    listed = [each.pop(SHARED_KEY, None) for each in (config, embedded_config) if each is not None]
    # Others' tools write such pairs of names into the metadata itself.
    pairs = [*files[0].metadata.items(), *(pair for each in listed if isinstance(each, dict) for pair in each.items())]
    files, shared = _with_shared(files, dict(pairs))
    return Checkpoint(str(source), files, config, embedded_config, shared)


def _with_shared(
    files: tuple[TensorFile, ...], pairs: Mapping[str, Any]
) -> tuple[tuple[TensorFile, ...], dict[str, str]]:
    """The files with tensors under all of their names, and which of those names is another one's: alias → stored."""
    stored = {name for file in files for name in file.shapes}
    shared = {alias: name for alias, name in pairs.items() if alias not in stored and name in stored}
    if not shared:
        return files, {}
    complete = []
    for file in files:
        aliases = {alias: name for alias, name in shared.items() if name in file.shapes}
        complete.append(RenamedFile(file, {name: name for name in file.shapes} | aliases))
    return tuple(complete), shared


def share_parameters(model: nn.Module, shared: Mapping[str, str]) -> None:
    """Make parameters and buffers one again that were one when a model was saved.

    Args:
        model: Model with a tensor of its own for each name, changed in place.
        shared: Names that share a tensor, see `Checkpoint.shared`; names that the model lacks are passed over.
    """
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    owners: dict[str, Tensor] = {}
    for alias, name in shared.items():
        if name in tensors:
            owners[name] = tensors[name]
        if alias in tensors:
            path, _, leaf = alias.rpartition(".")
            setattr(model.get_submodule(path), leaf, owners.setdefault(name, tensors[alias]))


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
        model: Model to write, on any device; adapters (`geomtx.layers.lora`) are merged in what is written.
        folder: Folder to write into, which is made if it does not exist.
        keys: Names, published ↔ geomtx.
        config: Configuration for `config.json` and for the weights' own metadata, so that the file can be loaded alone.
        published_config: Content of `config.json` where names are published ones.
        names: Names of the tensors.
        overwrite: Whether files of these names, and an index of shards, that geomtx did not write may be replaced.

    Returns:
        The folder.

    Raises:
        ValueError: If a parameter has no published name.
        FileExistsError: If there are such files and `overwrite` is False.
        OSError: If the folder can't be written.
    """
    check_option("names", names, ("geomtx", "published"))
    state = {drop_wrappers(name, private=True): tensor for name, tensor in merged_state(model).items()}
    state, shared = _save_once(state, once=names == "geomtx")
    if shared:
        config = {**config, SHARED_KEY: shared}
    tensors = {}
    for ours, tensor in state.items():
        name = keys.to_published(ours) if names == "published" else ours
        if name is None:
            raise ValueError(f"{ours} has no published name; use names='geomtx'")
        tensors[name] = tensor
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


def _save_once(state: Mapping[str, Tensor], *, once: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors that share no memory, and, of those that are one under several names, the other names → the first.

    Without `once`, each name has a tensor.
    """
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[Any, str] = {}
    storages: set[tuple[torch.device, int]] = set()
    for name, tensor in state.items():
        same = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
        if once and tensor.numel() and same in first:
            shared[name] = first[same]
            continue
        first.setdefault(same, name)
        storage = (tensor.device, tensor.untyped_storage().data_ptr())
        own = tensor.clone() if storage in storages else tensor
        tensors[name] = own.contiguous()
        storages.add(storage)
    return tensors, shared
