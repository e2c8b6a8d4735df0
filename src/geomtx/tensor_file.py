"""Files of named tensors: .safetensors and pickles without code. Shapes are known without reading the tensors."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

__all__ = ["PICKLE_SUFFIXES", "PickleFile", "SafetensorsFile", "TensorFile", "open_tensor_file"]

PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
# Tensors read from one opening of a file. What they show is the mapped file, whose pages count as this process's
# memory until it is closed.
READ_GROUP = 32


@runtime_checkable
class TensorFile(Protocol):
    """A file of named tensors.

    Attributes:
        path: Of the file.
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


class PickleFile:
    """A state dict that `torch.save` wrote, itself or under "model" or "state_dict"; see `TensorFile`.

    Raises:
        ValueError: If the file holds code, is broken or holds no state dict.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, str] = {}
        self._tensors = _find_state_dict(_load_pickle(path))
        if not self._tensors:
            raise ValueError(f"{path} holds no state dict")
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        self.dtypes = {name: tensor.dtype for name, tensor in self._tensors.items()}

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """See `TensorFile.read`."""
        return ((name, self._tensors[name]) for name in names)


def _load_pickle(path: Path) -> Any:
    try:
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


def _find_state_dict(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, dict):
        return {}
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), dict):
            content = content[key]
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


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
