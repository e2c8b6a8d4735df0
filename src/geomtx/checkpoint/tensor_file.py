"""Files of named tensors: .safetensors and pickles without code. Shapes are known without reading the tensors."""

from __future__ import annotations

import argparse
import codecs
import collections
import logging
import pathlib
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

__all__ = ["PICKLE_SUFFIXES", "PickleFile", "RenamedFile", "SafetensorsFile", "TensorFile", "open_tensor_file"]

logger = logging.getLogger("geomtx")

PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
# Tensors read from one opening of a file. What they show is the mapped file, whose pages count as this process's
# memory until it is closed.
READ_GROUP = 32


@runtime_checkable
class TensorFile(Protocol):
    """A file of named tensors.

    Attributes:
        path: Path of the file.
        shapes: Name → shape.
        dtypes: Name → dtype.
        metadata: Strings that the file carries.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    metadata: dict[str, str]

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor); the tensor may show the file, so copy it before taking the next."""
        ...


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}


def _dtype_of(name: str, path: Path) -> torch.dtype:
    if name not in _DTYPES:
        raise ValueError(f"{path} has tensors of a type that is not supported, {name}")
    return _DTYPES[name]


class SafetensorsFile:
    """A .safetensors file; see `TensorFile`.

    Raises:
        ValueError: If the file is truncated or no safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, framework="pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, no mapping
                self.shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
                self.dtypes = {name: _dtype_of(part.get_dtype(), path) for name, part in slices.items()}
                self.metadata = file.metadata() or {}
        except SafetensorError as error:
            raise ValueError(f"{path} is truncated or no safetensors file ({error})") from error

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """See `TensorFile.read`."""
        names = list(names)
        for start in range(0, len(names), READ_GROUP):
            with safe_open(self.path, framework="pt") as file:
                for name in names[start : start + READ_GROUP]:
                    yield name, file.get_tensor(name)


class RenamedFile:
    """Tensors of another file under other names; see `TensorFile`.

    Args:
        file: The other file.
        names: New name → name in the file. Several names may show the same tensor; others are left out.
    """

    def __init__(self, file: TensorFile, names: Mapping[str, str]) -> None:
        self.path = file.path
        self.metadata = file.metadata
        self.shapes = {name: file.shapes[stored] for name, stored in names.items()}
        self.dtypes = {name: file.dtypes[stored] for name, stored in names.items()}
        self._file = file
        self._names = dict(names)

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """See `TensorFile.read`."""
        names = list(names)
        tensors = self._file.read([self._names[name] for name in names])
        return ((name, tensor) for name, (_, tensor) in zip(names, tensors, strict=True))


class PickleFile:
    """A state dict that `torch.save` wrote, itself or within a training's checkpoint; see `TensorFile`.

    Raises:
        ValueError: If the file holds code, is broken or holds no state dict, or several of which none is the model's
            by its name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, str] = {}
        self._tensors = _find_state_dict(_load_pickle(path), path)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        self.dtypes = {name: tensor.dtype for name, tensor in self._tensors.items()}

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """See `TensorFile.read`."""
        return ((name, self._tensors[name]) for name in names)


_SCALAR = np.float64(0).__reduce__()[0]
# What trainers put beside weights and what runs nothing: options of a command line, folders, a figure of numpy's.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    collections.defaultdict,
    dict,
    list,
    pathlib.PosixPath,
    codecs.encode,
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32)),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


def _load_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # files from before torch 1.6 can't be mapped
                return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # broken pickles fail in many ways: IndexError, KeyError, struct.error, …
        refused = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if refused is None:
            raise ValueError(f"{path} is truncated or no file of torch.save") from error
        raise ValueError(
            f"{path} is a pickle with more than tensors in it ({refused[1]}), which could run code; "
            "save its state dict as .safetensors where you trust it"
        ) from error


# Where trainers keep the weights, in order of preference; and what else of a checkpoint has tensors.
_MODEL_KEYS = (
    "model",
    "state_dict",
    "model_state_dict",
    "model_state",
    "module",
    "net",
    "network",
    "weights",
    "params",
)
_EMA = re.compile(r"(^|_)ema(_|$)|(^|_)averaged?(_|$)")
_OTHERS = re.compile(r"optim|sched|scaler|loss|criterion|rng|random|callback|loops|hyper_?param|args|config")


def _find_state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The weights within what a trainer saved: the model's by the key, else the only ones, else the averaged ones."""
    found = _state_dicts(content)
    if not found:
        raise ValueError(f"{path} holds no state dict")
    ranks = {keys: _rank(keys) for keys in found}
    best = [keys for keys in found if ranks[keys] == min(ranks.values())]
    if len(best) > 1:
        raise ValueError(f"{path} must hold one state dict, got {', '.join(map(_join, best))}; save one of them alone")
    others = [keys for keys in found if keys and keys != best[0]]
    if others:
        ours, theirs = _join(best[0]) or "the top", ", ".join(map(_join, others))
        logger.warning("%s: the weights at %s are read, not those at %s.", path, ours, theirs)
    return found[best[0]]


def _state_dicts(content: Any, keys: tuple[str, ...] = ()) -> dict[tuple[str, ...], dict[str, Tensor]]:
    """Keys that lead to it → state dict, of all that have tensors, without what is an optimiser's or the like."""
    if not isinstance(content, dict) or len(keys) > 3:
        return {}
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    found = {keys: tensors} if tensors else {}
    for name, value in content.items():
        if isinstance(name, str) and (name in _MODEL_KEYS or not _OTHERS.search(name.lower())):
            found |= _state_dicts(value, (*keys, name))
    return found


def _rank(keys: tuple[str, ...]) -> tuple[int, ...]:
    if any(_EMA.search(key.lower()) for key in keys):
        return (3,)
    if any(key in _MODEL_KEYS for key in keys):
        return (0, *(_MODEL_KEYS.index(key) if key in _MODEL_KEYS else len(_MODEL_KEYS) for key in keys))
    return (2,) if keys else (1,)


def _join(keys: tuple[str, ...]) -> str:
    return ".".join(map(repr, keys))


def open_tensor_file(path: Path) -> TensorFile:
    """Open a file by its suffix.

    Raises:
        ValueError: For another suffix, or a broken file.
    """
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    if path.suffix in PICKLE_SUFFIXES:
        return PickleFile(path)
    raise ValueError(f"weights must be a {', '.join(('.safetensors', *PICKLE_SUFFIXES))} file, got {path}")
