"""Golden files, weights made from their names, and the comparison of outputs; for `check_goldens.py`."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from geomtx.checkpoint.files import fill_tensor
from geomtx.checkpoint.key_table import KeyTable

TOLERANCE = 1e-4
ZERO_TOLERANCE = 1e-6


class ReadOnce(dict[str, Tensor]):
    """Tensors by name; knows which were never looked at."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__(tensors)
        self.unread = set(tensors)

    def __getitem__(self, name: str) -> Tensor:
        self.unread.discard(name)
        return super().__getitem__(name)


class Golden(NamedTuple):
    """Tensors and metadata of a golden file, floats in the precision that its component is computed in."""

    path: Path
    tensors: ReadOnce
    meta: dict[str, Any]
    dtype: torch.dtype

    @classmethod
    def load(cls, path: Path, dtype: torch.dtype | None = None) -> Golden:
        """Read a file, with floats in the precision it asks for, or in another one."""
        with safe_open(path, framework="pt") as file:
            meta = {key: json.loads(value) for key, value in (file.metadata() or {}).items() if key != "note"}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        dtype = dtype or getattr(torch, meta.get("dtype", "float32"))
        tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
        return cls(path, ReadOnce(tensors), meta, dtype)

    def require(self, **values: Any) -> None:
        """Refuse metadata that asks for something else than what our components always do."""
        for key, value in values.items():
            if self.meta.get(key, value) != value:
                raise ValueError(f"{key} {self.meta[key]} is not supported, only {value}")

    def numbered(self, stem: str) -> dict[int, Tensor]:
        """Tensors `STEM.i` by i."""
        indices = sorted(int(n.removeprefix(f"{stem}.")) for n in self.tensors if n.startswith(f"{stem}."))
        return {index: self.tensors[f"{stem}.{index}"] for index in indices}


class Check(NamedTuple):
    """One output: ours, the golden one, and what the error is relative to (None = the golden one)."""

    name: str
    ours: Tensor
    golden: Tensor
    baseline: Tensor | None = None

    def error(self) -> float:
        """||ours - golden|| / ||golden - baseline||; infinite for another shape or a NaN.

        A golden zero has no relative error: there, 1e-6 counts like the tolerance.
        """
        if self.ours.shape != self.golden.shape:
            return float("inf")
        golden = self.golden.double()
        scale = (golden if self.baseline is None else golden - self.baseline.double()).norm()
        error = (self.ours.double() - golden).norm() / (scale if scale > 0 else ZERO_TOLERANCE / TOLERANCE)
        return error.item() if error.isfinite() else float("inf")


def weight_by_rule(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The made-up weight of a published name, prefix included."""
    x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)
    leaf = name.rpartition(".")[-1]
    if leaf == "bias_mask":
        return (x > 0).astype(np.float32)
    if leaf == "periods":  # as official files have them, rounded to bfloat16
        exponents = torch.arange(shape[0], dtype=torch.float64) / (2 * shape[0])
        return (100.0 ** (2 * exponents)).float().bfloat16().float().numpy()
    if leaf.endswith("weight") and len(shape) > 1:
        x /= np.sqrt(np.prod(shape[1:]), dtype=np.float32)  # in place: of a large model, memory takes longer than this
        return x
    if leaf.endswith("weight"):
        return 1 + np.float32(0.1) * x
    if leaf == "gamma":
        return np.float32(0.3) + np.float32(0.05) * x
    return np.float32(0.05 if leaf.endswith("bias") else 0.2) * x


def made_up_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters, masks and periods by name; other stored tables have their true values."""
    tensors = module.state_dict(keep_vars=True)
    return {n: t for n, t in tensors.items() if isinstance(t, nn.Parameter) or n.endswith((".bias_mask", ".periods"))}


def fill_by_rule(module: nn.Module, keys: KeyTable, prefix: str = "", dtype: torch.dtype = torch.float32) -> nn.Module:
    """Give every parameter, mask and period its made-up values; the module may be on the meta device."""
    for name, tensor in made_up_tensors(module).items():
        published = keys.to_published(name)
        assert published is not None, f"{name} has no published name"
        value = torch.from_numpy(weight_by_rule(prefix + published, tuple(tensor.shape))).to(dtype)
        fill_tensor(module, name, value)
    return module.eval()


def make(golden: Golden, build: Callable[[], nn.Module], keys: KeyTable) -> nn.Module:
    """Build a component on the meta device, check its names and shapes against the file's, fill it."""
    with torch.device("meta"):
        module = build()
    wanted = {name: tuple(shape) for name, shape in golden.meta["weights"]["shapes"].items()}
    ours = {keys.to_published(name): tuple(tensor.shape) for name, tensor in made_up_tensors(module).items()}
    if ours != wanted:
        different = sorted(map(str, set(ours.items()) ^ set(wanted.items())))
        raise ValueError(f"{golden.path.name}: parameters differ from the file's: {', '.join(different[:4])}")
    return fill_by_rule(module, keys, golden.meta["weights"]["prefix"], golden.dtype)
